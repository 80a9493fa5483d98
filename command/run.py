"""One run, from flags to files, and the demonstration, which is two."""

import contextlib
import os
import sys
import warnings

import keras
import tensorflow as tf

import mln_keras
from mln_keras.command import checkpoints, devices, output_dir, plots, results
from mln_keras.command.flags import read_flags, settings_of
from mln_keras.command.terminal import StdoutError, complain, discard_stdout, say
from mln_keras.command.versions import versions
from mln_keras.command.xla import configure_xla
from mln_keras.data import (
    batches,
    checks,
    corruption,
    image_files,
    inputs,
    tensorflow_errors,
)
from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles
from mln_keras.data.loaders import LOADERS
from mln_keras.data.source import make_splits
from mln_keras.methods import METHODS
from mln_keras.training import before_keras


def main(argv=None):
    """Runs the command line.

    Args:
        argv: the program's name and its flags; `sys.argv` unless given.

    Returns:
        The exit status: 2 for bad input, 1 for a loss that is not finite, too little memory
        and what cannot be written, 130 for Ctrl-C, 141 where nobody reads standard output any more.
    """
    try:
        before_keras.imports_are_done()
        given = read_flags(sys.argv if argv is None else argv)
        if isinstance(given, str):
            say(f"{mln_keras.__doc__}\n{given}")
            return 0
        settings, recipe = settings_of(given)
        with contextlib.ExitStack() as claims:
            runs, finished, splits, strategy = prepare(settings, recipe, claims)
            return execute(settings, recipe, runs, finished, splits, strategy)
    except ArgumentError as error:
        complain(f"{'--' if error.name in given else ''}{error}")
        return 2
    except ValueError as error:
        complain(error)
        return 2
    except MemoryError as error:
        complain(f"not enough memory: {error}")
        return 1
    except StdoutError as error:
        complain(f"cannot write to standard output ({error})")
        return 1
    except BrokenPipeError:
        discard_stdout()
        return 141  # as a program that SIGPIPE ends
    except KeyboardInterrupt:
        complain("interrupted; --resume continues this run")
        return 130


def prepare(settings, recipe, claims):
    """Everything that may refuse the flags, before training. Sets Keras as `configure_keras`.

    Args:
        settings, recipe: as `flags.settings_of` returns them.
        claims: contextlib.ExitStack; while it is open, no other process trains there.

    Returns:
        (list of the settings of each run; list of their results, None where one is to be trained;
        `Splits`, None where all are finished; tf.distribute.Strategy, None for one device).
    """
    runs = demonstration_runs(settings) if settings["method"] is None else [settings]

    def find_runs():
        return [output_dir.find_run(r["output_dir"], r, r["resume"]) for r in runs]

    finished = find_runs()
    if None not in finished:
        return runs, finished, None, None
    configure_keras()
    strategy = configure_devices(settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        splits = load_splits(settings, recipe)
        for one, result in zip(runs, finished, strict=True):
            if result is None:
                check_model(one, recipe, splits)
        check_files(settings, splits)
    for warning in caught:
        complain(f"warning: {warning.message}")
    for one in runs if devices.workers()[1] else ():
        claims.enter_context(output_dir.claim_directory(one["output_dir"]))
    return runs, find_runs(), splits, strategy  # anew, as another process may have been there


def demonstration_runs(settings):
    """The settings of the demonstration's two runs, in two folders of --output_dir.

    Raises:
        ArgumentError: where that holds anything but an earlier demonstration.
    """
    parent, methods = settings["output_dir"], ("metalabelnet", "cross_entropy")
    own = ()
    if os.path.isdir(os.path.join(parent, methods[0])):
        own = (*methods, "curves.png", ".writing-curves.png")
    output_dir.check_holds_only(parent, lambda path: path.name in own)
    return [settings | {"method": m, "output_dir": os.path.join(parent, m)} for m in methods]


def configure_keras():
    """Keras as it is by default, whatever keras.json and the environment's KERAS_... say."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def configure_devices(settings):
    """XLA's flags where it compiles; else, on a CPU, kernels that always sum in the same order.

    Returns:
        The tf.distribute.Strategy, None for one device.
    """
    if settings["jit_compile"]:
        configure_xla()
    elif not tf.config.list_physical_devices("GPU"):  # slow there, and Keras refuses them with XLA
        tf.config.experimental.enable_op_determinism()
    return devices.strategy_of(settings["gpus"])


def load_splits(settings, recipe):
    """Loads the data set, draws meta and test set, removes labels, corrupts and corrects."""
    load = LOADERS[settings["dataset"]]
    source = load(settings["data_dir"], **recipe.loader_options())
    splits = make_splits(
        source,
        meta_size=settings["meta_size"],
        unlabeled_size=settings["unlabeled_size"],
        seed=settings["seed"],
    )
    _check_batch_size(settings, splits)  # before a teacher is trained
    labels = corruption.corrupt(
        source,
        settings["noise"],
        settings["noise_ratio"],
        settings["seed"],
        data_dir=settings["data_dir"],
        probabilities_file=settings["noise_probs"] and settings["noise_probs"]["file"],
        labels_file=settings["noise_labels"] and settings["noise_labels"]["file"],
        network=recipe.network(),
        build_teacher=recipe.classifier,
        say=say,
    )
    splits = splits.with_labels(labels)
    for file in settings["corrections"] or ():
        splits = splits.with_corrections(file["file"])
    _check_batch_size(settings, splits)  # again, as corrections take labels away
    return splits


def _check_batch_size(settings, splits):
    size, sizes = settings["batch_size"], splits.sizes()
    checks.within("batch_size", size, 1, sizes["labeled"], "the labeled samples")
    if METHODS[settings["method"] or next(iter(METHODS))].needs_meta:
        checks.within("batch_size", size, 1, sizes["meta"], "the meta samples")


def check_model(settings, recipe, splits):
    """Refuses what the method or the network of a run refuses, weights that cannot be had too."""
    with tf.device("CPU"):  # where it takes no memory of a GPU
        model_of(settings, recipe, splits)


def check_files(settings, splits):
    """Refuses image files of which too many cannot be read."""
    parts = (splits.train_images, splits.meta_images, splits.test_images)
    files = [images for images in parts if isinstance(images, ImageFiles)]
    image_files.check_files(files, settings["seed"], settings["check_files"])


def execute(settings, recipe, runs, finished, splits, strategy):
    """Trains what is not finished, and prints the table of all; returns the exit status."""
    is_first = devices.workers()[1]
    done = []
    for one, result in zip(runs, finished, strict=True):
        if result is None:
            result = run_or_say_why_not(one, recipe, splits, strategy)
            if result is None:
                return 1
        elif is_first:
            say(f"{one['method']}: {one['output_dir']} holds this run, finished")
        done.append(result)
    if not is_first:
        return 0
    say(f"\n{results.table(done)}")
    if unreadable := sum(map(len, done[0]["unreadable_files"].values())):
        say(f"\nImage files that cannot be read: {unreadable}; see unreadable_files in result.json")
    if settings["method"] is None:
        curves = os.path.join(settings["output_dir"], "curves.png")
        if None in finished or not os.path.exists(curves):
            directories = [one["output_dir"] for one in runs]
            plots.plot_curves(curves, list(zip(directories, done, strict=True)))
        say(f"\nThe same by epoch: {curves}")
    return 0


def run_or_say_why_not(settings, recipe, splits, strategy):
    """As `run`; None, and a line for the user, where the loss is not finite or a write fails."""
    directory = settings["output_dir"]
    try:
        with tensorflow_errors.of_lost_workers(strategy):
            return run(settings, recipe, splits, (), strategy)
    except FloatingPointError as error:
        state, _ = checkpoints.load_checkpoint(directory)
        kept = "no checkpoint, as no epoch was done"
        if state:
            kept = f"the last good checkpoint, of epoch {state['epoch']}"
        complain(f"{error}; {directory} keeps {kept}")
    except BrokenPipeError:
        raise
    except ConnectionError as error:
        complain(f"{error}; start all workers again, with --resume, to continue the run")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        complain(
            f"--output_dir: cannot write to {directory} ({reason}); --resume continues the run"
        )
    return None


def run(settings, recipe, splits, callbacks=(), strategy=None):
    """Trains one run, writes its files and returns its result, the content of result.json.

    Of several workers the first one alone records and writes; the others return {}.

    Args:
        settings, recipe, splits, strategy: as `prepare` takes and returns them.
        callbacks: Keras callbacks that come before what records an epoch and saves it.
    """
    directory, is_first = settings["output_dir"], devices.workers()[1]
    state, weights = checkpoints.load_checkpoint(directory)
    done = state["epoch"] if state else 0
    devices.check_same(strategy, done, splits.given_labels)
    with devices.scope(strategy):
        model = model_of(settings, recipe, splits, weights)
    _, epochs, learning_rate_at = METHODS[settings["method"]].from_recipe(recipe)
    callbacks = [keras.callbacks.LearningRateScheduler(learning_rate_at), *callbacks]
    if is_first:
        callbacks += _recorders(settings, recipe, model, splits, state)
        say(f"{settings['method']} on {versions()['device']}: {directory}, from epoch "
            f"{done + 1} to {epochs}")  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", inputs.FEW_META_SAMPLES)  # `make_splits` has said it
        model.fit(
            (splits.train_images, splits.given_labels),
            meta_data=(splits.meta_images, splits.meta_labels) if model.needs_meta else None,
            batch_size=recipe.batch_size,
            epochs=epochs,
            initial_epoch=done,
            callbacks=callbacks,
            verbose=1 if is_first and sys.stdout.isatty() else 0,
        )
    if not is_first:
        return {}
    if strategy is not None:  # what the first worker does now no other one joins
        _, weights = checkpoints.load_checkpoint(directory)
        dtype, model = model.image_dtype, model_of(settings, recipe, splits, weights)
        model.image_dtype = dtype
    return _write_files(settings, recipe, splits, model, callbacks[-1], strategy)


def _recorders(settings, recipe, model, splits, state):
    """The callbacks that record an epoch, the one that saves it last."""
    size = batches.for_inference(splits.test_images)
    held_out = {
        "meta": model.evaluation(splits.meta_images, splits.meta_labels, size),
        "test": model.evaluation(splits.test_images, splits.test_labels, size, recipe.top_k),
    }
    callbacks = []
    if checkpoints.has_soft_labels(model):
        callbacks.append(checkpoints.SoftLabelChange(splits.train_images, splits.given_labels))
    recorder = checkpoints.RunRecorder(
        settings["output_dir"], settings, held_out, state, recipe.top_k
    )
    return [*callbacks, recorder]


def _write_files(settings, recipe, splits, model, recorder, strategy):
    """Writes what a trained model leaves behind; returns the content of result.json."""
    directory = settings["output_dir"]
    if checkpoints.has_soft_labels(model):
        of_all = checkpoints.soft_labels_of(model, splits.train_images, splits.given_labels)
        results.write_soft_labels(directory, splits, of_all)
    _, epochs, _ = METHODS[settings["method"]].from_recipe(recipe)
    return results.write_results(
        directory,
        model,
        settings | {"epochs": epochs, "warmup_epochs": getattr(model, "warmup_epochs", None)},
        recorder.rows,
        splits,
        settings,
        seconds=recorder.seconds,
        batch_size=recipe.batch_size,
        replicas=strategy.num_replicas_in_sync if strategy else 1,
    )


def build_model(settings, recipe, num_classes, image_shape, class_names=None, splits=None):
    """The recipe's model for so many classes and images (H, W, channels), compiled.

    Sets Keras' global seed and dtype policy, which stay so.
    """
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy("mixed_bfloat16" if settings["mixed_precision"] else "float32")
    method = METHODS[settings["method"]]
    options, _, _ = method.from_recipe(recipe, splits)
    model = method(
        recipe.classifier(num_classes, image_shape),
        augmentation=recipe.build_augmentation(vertical_flip=recipe.vertical_flip),
        shuffle_meta=False,  # their order is drawn already, with the split
        seed=settings["seed"],
        class_names=class_names,
        **options,
    )
    meta_optimizer = None
    if "meta_learning_rate" in model.flags:
        meta_optimizer = keras.optimizers.Adam(recipe.meta_learning_rate, epsilon=1e-8)
    model.compile(
        keras.optimizers.SGD(recipe.learning_rate, momentum=0.9),
        meta_optimizer,
        jit_compile=settings["jit_compile"],
        steps_per_execution=settings["steps_per_execution"],
    )
    return model


def model_of(settings, recipe, splits, weights=None):
    """`build_model` for these splits, with weights of a checkpoint (a path) or new ones (None)."""
    names, image_shape = splits.class_names, splits.train_images.shape[1:]
    model = build_model(settings, recipe, len(names), image_shape, names, splits)
    if model.keeps_samples:
        model.see_samples(splits.given_labels)  # makes what the weights are loaded into
    if weights is not None:
        model.load_weights(weights)
    return model

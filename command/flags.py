"""The flags of the command line: what they are called, what they default to, what is allowed."""

import dataclasses
import os

import tensorflow as tf
from absl import flags

from mln_keras.command import devices
from mln_keras.command.recipes import RECIPES
from mln_keras.data import checks, corruption, label_files
from mln_keras.data.checks import ArgumentError
from mln_keras.data.loaders import YOURS
from mln_keras.layers.backbones import OWN, check_is_file, known_name
from mln_keras.methods import METHODS


class FlagsError(ValueError):
    """The command line cannot be read; the message is one line."""


def define_flags():
    """The flags, in a set of their own so that importing this module defines none."""
    f = flags.FlagValues()

    def define(kind, name, default, text, **more):
        data_sets = {}  # by the value of their recipes
        for data_set, recipe in RECIPES.items():
            data_sets.setdefault(getattr(recipe, name, None), []).append(data_set)
        data_sets.pop(None, None)
        if data_sets:
            shown = (f"{value} ({', '.join(names)})" for value, names in data_sets.items())
            text += f" Default: {'; '.join(shown)}."
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=f, **more)

    _define_data(define)
    _define_training(define)
    define("string", "output_dir", None, "Default: runs/DATASET-NOISE-RATIO-METHOD-seedN.")
    define("bool", "resume", False, "Continue the run in --output_dir from its last epoch.")
    define("integer", "gpus", 1, "GPUs of this machine that share each batch. For small networks "
           "one may be faster: benchmarks/scaling.py measures it. Several machines: see "
           "docs/several_gpus.md.")
    define("bool", "mixed_precision", False, "Compute in bfloat16, keep weights in float32.")
    define("bool", "jit_compile", None, "Compile the step with XLA. Default: where there is a GPU.")
    define("integer", "steps_per_execution", None,
           "Steps a call, at most. Default: 390 on a GPU, else 1.")
    define("bool", "help", False, "Show this help.", short_name="h")
    return f


def _define_data(define):
    define("string", "dataset", None, f"One of {', '.join(RECIPES)}. Default: digits, "
           "and without --method too, both methods side by side: a demonstration.")
    define("string", "data_dir", None, "Where the data set is: for cifar10 and cifar100 the "
           "directory of TensorFlow Datasets, by default TFDS' own; for table the CSV file; for "
           "others their folder.")
    define("string", "noise", None, f"One of {', '.join(corruption.MADE)}; for data sets whose "
           "labels are wrong already own.")
    define("float", "noise_ratio", None, "Share of wrong labels, 0 to 1; for class_dependent "
           "of the classes that flip, on cifar10 five of the ten; for human 0.09, 0.17 or 0.4, "
           "CIFAR-10N's aggregate, random 1 and worst labels, or 0.4, CIFAR-100N's.")
    define("string", "noise_labels", None, "In place of --noise, a file with the label of each "
           "training sample: .npy, .npz (FILE.npz:KEY) or CSV (FILE.csv:COLUMN).")
    define("string", "noise_probs", None, "For --noise feature_dependent: .npy file, float (N, C), "
           "of a teacher's probabilities on the training images. Default: train that teacher, "
           "once a seed, and keep its probabilities in ~/.keras/mln_keras_teachers.")
    define("integer", "meta_size", None, "Number of clean meta samples. Where no default is "
           "named, all that there are.")
    define("string", "backbone", None, "The network: cnn8, digits_cnn, or one of "
           "keras.applications by its name, as ResNet50.")
    define("string", "weights", None, "Of the network, before training: imagenet, a file, or "
           "none for random ones.")
    define("integer", "image_size", None, "Side of the square that is taken out of the middle of "
           "an image file, in pixels.")
    define("integer", "resize", None, "Side of the square to which an image file is scaled "
           "before, in pixels; at least --image_size.")
    define("bool", "check_files", False, "Decode every image file before training. Without it "
           "2,000 are, and the others are counted in the first epoch.")
    define("integer", "unlabeled_size", None, "Training samples whose label is removed.")
    define("multi_string", "corrections", None, "CSV file of corrected labels, as the page "
           "review/index.html of a run exports it. Given again, the next file corrects further.")


def _define_training(define):
    define("string", "method", None, f"One of {', '.join(METHODS)}. Default: metalabelnet.")
    define("integer", "epochs", None,
           "Epochs of both phases of MetaLabelNet together. Some methods have more or fewer, as "
           "fine_tune: the warm-up, and half of these. A run says first how many it has.")
    define("integer", "warmup_epochs", None, "Epochs of phase 1.")
    define("integer", "batch_size", None, "Of training and meta batches, over all GPUs.")
    define("float", "learning_rate", None, "λ, of the classifier, before the recipe's drops.")
    define("float", "meta_learning_rate", None, "β, of the label head.")
    define("float", "inner_learning_rate", None, "α, of the step from θ to θ̂ (Eq. 5).")
    define("bool", "as_run", None, "The loss that the paper's authors ran, where it is another.")
    define("float", "clean_weight", None, "Of metalabelnet_clean: weight of the clean images' "
           "cross-entropy in phase 2. Default: 0.1.")
    define("integer", "fine_tune_epochs", None, "Of metalabelnet_clean: epochs of fine-tuning on "
           "the clean images after phase 2. Default: 0.")
    define("bool", "vertical_flip", None, "Mirror half of the training images top to bottom, too.")
    define("integer", "seed", 0, "Of splits, noise, initial weights, order and augmentation.")


def read_flags(argv):
    """The flags that were given.

    Args:
        argv: list of strings, the program's name first.

    Returns:
        dict of every flag, None where it was left out and has no default of its own; or the text of
        --help, a string, where that was asked for.

    Raises:
        FlagsError: for flags that are unknown or have no such values.
    """
    f = define_flags()
    try:
        rest = f(argv)
    except flags.Error as error:
        text = checks.one_line(error).removeprefix("flag ")
        raise FlagsError(f"{text}; see --help") from None
    if rest[1:]:
        raise FlagsError(f"expected flags only, received {rest[1]!r}; see --help")
    if f.help:
        return f.get_help()
    given = f.flag_values_dict()
    del given["help"], given["h"]
    return given


def settings_of(given):
    """The flags with the recipe's values filled in, and the recipe with the flags' values.

    Args:
        given: dict, as `read_flags` returns it.

    Returns:
        (dict of every flag, where the demonstration has no method, and where a file is a dict of
        its name, `file`, and its `sha256`; Recipe).

    Raises:
        ArgumentError: for flags that are out of range or contradict each other.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    defaults = {
        "dataset": "digits",
        "method": next(iter(METHODS)) if given["dataset"] is not None else None,
        "noise_ratio": 0.0 if given["noise"] == "none" else None,
        "jit_compile": on_gpu,
        "steps_per_execution": 390 if on_gpu else 1,
    }
    settings = {n: defaults.get(n) if value is None else value for n, value in given.items()}
    for name in ("data_dir", "noise_probs", "noise_labels", "weights", "output_dir"):
        settings[name] = settings[name] and os.path.expanduser(settings[name])
    if settings["corrections"]:
        settings["corrections"] = [os.path.expanduser(path) for path in settings["corrections"]]
    checks.one_of("dataset", settings["dataset"], RECIPES)
    if settings["dataset"] in YOURS and settings["data_dir"]:
        settings["data_dir"] = os.path.abspath(settings["data_dir"])
    if given["method"] is not None:
        checks.one_of("method", given["method"], METHODS)
    recipe = _with_image_size(RECIPES[settings["dataset"]], given)
    recipe = _with_network(recipe.with_flags(settings), given)
    recipe = _with_labels(recipe, given)
    settings |= {name: getattr(recipe, name) for name in settings if hasattr(recipe, name)}
    _check_ranges(settings)
    devices.check(settings["gpus"], settings["batch_size"])
    _check_method(given, settings)
    _check_together(settings, recipe)
    if not settings["output_dir"]:
        parts = ("dataset", "noise", "noise_ratio", "method")
        name = "-".join(str(settings[part]) for part in parts if settings[part] is not None)
        name += "-corrected" if settings["corrections"] else ""
        settings["output_dir"] = os.path.join("runs", f"{name}-seed{settings['seed']}")
    return settings | _identified(settings), recipe


def _identified(settings):
    """Those flags that name files, each path with what identifies its content beside it."""
    found = {}
    if settings["noise_probs"]:
        found["noise_probs"] = checks.identify("noise_probs", settings["noise_probs"])
    if name := settings["noise_labels"]:
        path, _ = label_files.split_name(name)
        found["noise_labels"] = checks.identify("noise_labels", path) | {"file": name}
    if settings["weights"] not in ("imagenet", "none"):
        check_is_file(settings["weights"])
        found["weights"] = checks.identify("weights", settings["weights"])
    if paths := settings["corrections"]:
        found["corrections"] = [checks.identify("corrections", path) for path in paths]
    return found


def _with_image_size(recipe, given):
    """The recipe where the image size and not --resize is given: both in the same proportion."""
    for name in ("image_size", "resize"):
        if given[name] is not None and recipe.image_size is None:
            raise ArgumentError(name, "is for data sets of image files")
    size = given["image_size"]
    if size is None or given["resize"] is not None:
        return recipe
    return dataclasses.replace(recipe, resize=round(size * recipe.resize / recipe.image_size))


def _with_network(recipe, given):
    """The recipe with its network by the name that it has; this project's own have no weights."""
    name = known_name(recipe.backbone)
    has_none = name in OWN and given["weights"] is None
    weights = "none" if has_none else recipe.weights
    return dataclasses.replace(recipe, backbone=name, weights=weights)


def _with_labels(recipe, given):
    """The recipe with the noise that --noise_labels stands for; without it, as it is."""
    if given["noise_labels"] is None:
        if given["noise"] == "file":
            raise ArgumentError("noise", "for labels of a file give --noise_labels only")
        if recipe.noise == "own" and given["noise_ratio"] is not None:
            raise ArgumentError(
                "noise_ratio", "expected none with --noise own, as nobody knows it"
            )
        return recipe
    for name in ("noise", "noise_ratio"):
        if given[name] is not None:
            raise ArgumentError(name, "expected none with --noise_labels, which says all labels")
    return dataclasses.replace(recipe, noise="file", noise_ratio=None)


def _check_ranges(settings):
    checks.one_of("noise", settings["noise"], corruption.NAMES)
    if settings["noise_ratio"] is not None and not 0 <= settings["noise_ratio"] <= 1:
        raise ArgumentError("noise_ratio", f"expected 0 to 1, received {settings['noise_ratio']}")
    for name in ("epochs", "batch_size", "meta_size", "steps_per_execution", "image_size"):
        if settings[name] is not None:
            checks.at_least(name, settings[name], 1)
    if settings["resize"] is not None:
        checks.at_least("resize", settings["resize"], settings["image_size"])
    for name in ("warmup_epochs", "unlabeled_size", "clean_weight", "fine_tune_epochs"):
        if settings[name] is not None:
            checks.at_least(name, settings[name], 0)
    checks.within("seed", settings["seed"], 0, 2**31 - 1, "TensorFlow")
    for name in ("learning_rate", "meta_learning_rate", "inner_learning_rate"):
        checks.positive(name, settings[name])


def _check_method(given, settings):
    """Refuses the option of another method; the demonstration takes those of its first."""
    name = settings["method"] or next(iter(METHODS))
    of_some = {flag for method in METHODS.values() for flag in method.flags}
    for flag in sorted(of_some - set(METHODS[name].flags)):
        if given[flag] is not None:
            takers = ", ".join(n for n, method in METHODS.items() if flag in method.flags)
            raise ArgumentError(flag, f"is not for --method {name}, but for {takers}")


def _check_together(settings, recipe):
    if settings["noise"] == "none" and settings["noise_ratio"] != 0:
        raise ArgumentError(
            "noise_ratio", f"expected 0 with --noise none, received {settings['noise_ratio']}"
        )
    if settings["noise_probs"] is not None and settings["noise"] != "feature_dependent":
        raise ArgumentError(
            "noise_probs",
            f"is for --noise feature_dependent, received with --noise {settings['noise']}",
        )
    method = METHODS[settings["method"] or next(iter(METHODS))]
    options, epochs, _ = method.from_recipe(recipe)
    if options.get("warmup_epochs", 0) >= options.get("fine_tune_from", epochs):
        raise ArgumentError(
            "warmup_epochs",
            f"expected fewer than --epochs={settings['epochs']}, received "
            f"{settings['warmup_epochs']}, so phase 2 would never begin",
        )
    if method.needs_meta and settings["meta_size"] is not None:
        if settings["batch_size"] > settings["meta_size"]:
            raise ArgumentError(
                "batch_size",
                f"expected at most --meta_size={settings['meta_size']}, received "
                f"{settings['batch_size']}",
            )

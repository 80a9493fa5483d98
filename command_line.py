"""The flags of the command line: what they are called, what they default to, what is allowed."""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile

import tensorflow as tf
from absl import flags

from data import checks, corruption

METHODS = ("metalabelnet", "cross_entropy")
KERNELS = pathlib.Path(__file__).with_name("kernels.json")  # see benchmarks/keep_kernels.py


def configure_xla():
    """Has XLA keep which kernels it found fastest, and put however few into a CUDA graph.

    XLA times kernels whenever it compiles. Kept under $KERAS_HOME (~/.keras), a file each for an
    operation on a GPU with a cuDNN, the choice costs later runs nothing, and rounds as before: so a
    seed gives the same result to the last bit (REPRODUCE.md says how far that goes). A new folder
    begins with the choices of `KERNELS`.

    For before TensorFlow first compiles; what the environment's XLA_FLAGS say comes last and wins.
    """
    ours, given = ["--xla_gpu_graph_min_graph_size=1"], os.environ.get("XLA_FLAGS", "")
    kept = kernels_folder()
    with contextlib.suppress(OSError):
        _make_kernels_folder(kept)
    if os.access(kept, os.W_OK):
        ours += [f'--xla_gpu_{kind}_cache_dir="{kept}"'
                 for kind in ("experimental_autotuner", "per_fusion_autotune")]  # fmt: skip
    os.environ["XLA_FLAGS"] = " ".join([flag for flag in ours if flag not in given] + [given])


def kernels_folder():
    """pathlib.Path of the folder in which kernels are kept for this version of TensorFlow."""
    home = pathlib.Path(corruption.keras_home())
    return home / "mln_keras_kernels" / f"tensorflow-{tf.__version__}"


def _make_kernels_folder(folder):
    """Makes it, whole at once, for a GPU; one that is there stays as it is, an empty one empty."""
    if folder.is_dir() or not tf.config.list_physical_devices("GPU"):
        return
    shipped = json.loads(KERNELS.read_text()).get(folder.name, {}) if KERNELS.exists() else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = pathlib.Path(temporary, folder.name)
        new.mkdir()
        for name, choice in shipped.items():
            (new / name).write_text(choice)
        new.rename(folder)


def define_flags(recipes):
    """The flags, in a set of their own so that importing this module defines none."""
    f = flags.FlagValues()

    def define(kind, name, default, text, **more):
        values = {d: getattr(recipe, name, None) for d, recipe in recipes.items()}
        if None not in values.values():
            text += f" Default: {', '.join(f'{v} ({d})' for d, v in values.items())}."
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=f, **more)

    define("string", "dataset", None, f"One of {', '.join(recipes)}. Default: digits, "
           "and without --method too, both methods side by side: a demonstration.")
    define("string", "data_dir", None, "TensorFlow Datasets directory. Default: TFDS' own.")
    define("string", "noise", None, f"One of {', '.join(corruption.NAMES)}.")
    define("float", "noise_ratio", None, "Share of wrong labels, 0 to 1; for class_dependent "
           "of the classes that flip, on cifar10 five of the ten; for human 0.09, 0.17 or 0.4, "
           "CIFAR-10N's aggregate, random 1 and worst labels.")
    define("string", "noise_probs", None, "For --noise feature_dependent: .npy file, float (N, C), "
           "of a teacher's probabilities on the training images. Default: train that teacher, "
           "once a seed, and keep its probabilities in ~/.keras/mln_keras_teachers.")
    define("integer", "meta_size", None, "Number of clean meta samples.")
    define("integer", "unlabeled_size", None, "Training samples whose label is removed.")
    define("string", "method", None, f"One of {', '.join(METHODS)}. Default: metalabelnet.")
    define("integer", "epochs", None, "Epochs of both phases together.")
    define("integer", "warmup_epochs", None, "Epochs of phase 1.")
    define("integer", "batch_size", None, "Of training and meta batches.")
    define("float", "learning_rate", None, "λ, of the classifier, before the recipe's drops.")
    define("float", "meta_learning_rate", None, "β, of the label head.")
    define("float", "inner_learning_rate", None, "α, of the step from θ to θ̂ (Eq. 5).")
    define("bool", "vertical_flip", None, "Mirror half of the training images top to bottom, too.")
    define("integer", "seed", 0, "Of splits, noise, initial weights, order and augmentation.")
    define("string", "output_dir", None, "Default: runs/DATASET-NOISE-RATIO-METHOD-seedN.")
    define("bool", "resume", False, "Continue the run in --output_dir from its last epoch.")
    define("bool", "mixed_precision", False, "Compute in bfloat16, keep weights in float32.")
    define("bool", "jit_compile", None, "Compile the step with XLA. Default: where there is a GPU.")
    define("integer", "steps_per_execution", None,
           "Steps a call, at most. Default: 390 on a GPU, else 1.")
    define("bool", "help", False, "Show this help.", short_name="h")
    return f


def parse_settings(argv, recipes, description):
    """The flags with the recipe's values filled in, and the recipe with the flags' values.

    Args:
        argv: list of strings, the program's name first.
        recipes: dict, name of a data set -> its recipe, a dataclass whose fields are the defaults
            of the flags of the same names.
        description: what --help prints first.

    Returns:
        (dict of every flag, where the demonstration has no method; Recipe). (None, None) where
        only the help was asked for.

    Raises:
        ValueError: for flags that are unknown, out of range or contradict each other.
    """
    f = define_flags(recipes)
    try:
        rest = f(argv)
    except flags.Error as error:
        raise ValueError(f"{' '.join(str(error).split())}; see --help") from None
    if rest[1:]:
        raise ValueError(f"expected flags only, received {rest[1]!r}; see --help")
    if f.help:
        print(f"{description}\n{f.get_help()}")
        return None, None
    given = f.flag_values_dict()
    del given["help"], given["h"]
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    defaults = {"jit_compile": on_gpu, "steps_per_execution": 390 if on_gpu else 1}
    if given["dataset"] is not None:
        defaults["method"] = METHODS[0]
    if given["noise"] == "none":
        defaults["noise_ratio"] = 0.0
    defaults["dataset"] = "digits"
    settings = {n: defaults.get(n) if value is None else value for n, value in given.items()}
    checks.one_of("--dataset", settings["dataset"], recipes)
    if given["method"] is not None:
        checks.one_of("--method", given["method"], METHODS)
    recipe = recipes[settings["dataset"]]
    replaced = {
        field.name: settings[field.name]
        for field in dataclasses.fields(recipe)
        if settings.get(field.name) is not None
    }
    recipe = dataclasses.replace(recipe, **replaced)
    settings |= {n: getattr(recipe, n) for n in settings if hasattr(recipe, n)}
    _check_settings(settings)
    if not settings["output_dir"]:
        parts = ("dataset", "noise", "noise_ratio", "method")
        name = "-".join(str(settings[part]) for part in parts if settings[part] is not None)
        settings["output_dir"] = os.path.join("runs", f"{name}-seed{settings['seed']}")
    return settings, recipe


def _check_settings(settings):
    checks.one_of("--noise", settings["noise"], corruption.NAMES)
    if not 0 <= settings["noise_ratio"] <= 1:
        raise ValueError(f"--noise_ratio: expected 0 to 1, received {settings['noise_ratio']}")
    if settings["noise"] == "none" and settings["noise_ratio"] != 0:
        raise ValueError(
            f"--noise_ratio: expected 0 with --noise none, received {settings['noise_ratio']}"
        )
    for name in ("epochs", "batch_size", "meta_size", "steps_per_execution"):
        checks.at_least(f"--{name}", settings[name], 1)
    for name in ("warmup_epochs", "unlabeled_size"):
        checks.at_least(f"--{name}", settings[name], 0)
    checks.within("--seed", settings["seed"], 0, 2**31 - 1, "TensorFlow")
    for name in ("learning_rate", "meta_learning_rate", "inner_learning_rate"):
        checks.positive(f"--{name}", settings[name])
    if settings["method"] != "cross_entropy" and settings["warmup_epochs"] >= settings["epochs"]:
        raise ValueError(
            f"--warmup_epochs: expected fewer than --epochs={settings['epochs']}, received "
            f"{settings['warmup_epochs']}, so phase 2 would never begin"
        )
    if settings["method"] != "cross_entropy" and settings["batch_size"] > settings["meta_size"]:
        raise ValueError(
            f"--batch_size: expected at most --meta_size={settings['meta_size']}, received "
            f"{settings['batch_size']}"
        )
    if settings["noise_probs"] is not None and settings["noise"] != "feature_dependent":
        raise ValueError(
            f"--noise_probs: is for --noise feature_dependent, received with --noise "
            f"{settings['noise']}"
        )

"""The files of a run: claimed before it starts, each written whole or not at all."""

import contextlib
import csv
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil

import numpy as np

# Where a run lies and how it is continued changes nothing about what it computes.
NOT_PART_OF_A_RUN = ("output_dir", "data_dir", "resume")


@contextlib.contextmanager
def whole(path):
    """Yields a temporary path beside `path`, with the same ending; renames it when it is whole."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".writing-{path.name}")
    _remove(temporary)
    try:
        yield temporary
    except BaseException:
        _remove(temporary)
        raise
    if temporary.is_dir():
        _remove(path)
    os.replace(temporary, path)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path, content):
    with whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def claim(directory, flags, resume):
    """Makes a run's directory, or recognises the run that is in it.

    Args:
        directory: path.
        flags: dict of every flag's value.
        resume: whether to continue a run that is there.

    Returns:
        The finished run's result (dict) where the directory holds just this run, else None.

    Raises:
        ValueError: where the directory cannot be written, or holds another run.
    """
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".writing-test").touch()
        (directory / ".writing-test").unlink()
    except OSError as error:
        raise ValueError(
            f"--output_dir: cannot write to {directory} ({error.strerror})"
        ) from None
    result = directory / "result.json"
    state = load_checkpoint(directory)[0]
    if result.exists():
        held = json.loads(result.read_text())["flags"]
    elif state is not None:
        held = state["flags"]
    elif any(directory.iterdir()) and not resume:
        raise ValueError(
            f"--output_dir: {directory} is not empty; name another directory, or add --resume "
            f"to continue the run in it"
        )
    else:
        return None
    differing = [
        f"--{name} was {held.get(name)!r}, now {flags[name]!r}"
        for name in flags
        if name not in NOT_PART_OF_A_RUN and held.get(name) != flags[name]
    ]
    if differing:
        raise ValueError(
            f"--output_dir: {directory} holds another run ({'; '.join(differing)}); name another "
            f"directory, or give that run's flags"
        )
    if result.exists():
        return json.loads(result.read_text())
    if not resume:
        raise ValueError(
            f"--output_dir: {directory} holds an unfinished run with these flags; add --resume to "
            f"continue it, or name another directory"
        )
    return None


def save_checkpoint(directory, model, state, is_best):
    """Saves model and state as one: a directory that gets its name when it is whole.

    Args:
        directory: the run's.
        model: keras.Model; its weights, optimizers and random states are saved.
        state: JSON-serializable dict with "epoch", the number of epochs done, and "best_epoch".
        is_best: whether this epoch is the best one so far: its weights are then kept.
    """
    checkpoints = pathlib.Path(directory) / "checkpoint"
    checkpoints.mkdir(exist_ok=True)
    path = checkpoints / f"epoch-{state['epoch']:04d}"
    with whole(path) as temporary:
        temporary.mkdir()
        model.save_weights(temporary / "model.weights.h5")
        write_json(temporary / "state.json", state)
        if is_best:
            with whole(best_weights(directory, state["epoch"])) as best:
                shutil.copyfile(temporary / "model.weights.h5", best)
    for other in checkpoints.iterdir():
        if other not in (path, best_weights(directory, state["best_epoch"])):
            _remove(other)


def load_checkpoint(directory):
    """The newest checkpoint: (state, path of the weights), or (None, None)."""
    paths = sorted((pathlib.Path(directory) / "checkpoint").glob("epoch-*"))
    if not paths:
        return None, None
    state = json.loads((paths[-1] / "state.json").read_text())
    return state, paths[-1] / "model.weights.h5"


def best_weights(directory, epoch):
    """Where the weights of the best epoch are."""
    return pathlib.Path(directory) / "checkpoint" / f"best-{epoch:04d}.weights.h5"


def write_history(directory, rows):
    """history.csv: one row an epoch; what a phase does not have is left empty."""
    with whole(pathlib.Path(directory) / "history.csv") as temporary:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def write_soft_labels(directory, given_labels, soft_labels):
    """soft_labels.npz: `index`, `given_labels` (-1: none) and `soft_labels`, a row a sample."""
    with whole(pathlib.Path(directory) / "soft_labels.npz") as temporary:
        np.savez_compressed(
            temporary,
            index=np.arange(len(given_labels)),
            given_labels=given_labels,
            soft_labels=soft_labels,
        )


def summarize(rows, warmup_epochs):
    """The accuracies that a run is quoted by.

    Args:
        rows: of history.csv.
        warmup_epochs: where phase 2 began; None for a run without phase 2.

    Returns:
        dict: `warmup_test_accuracy` (None without phase 2), `best_epoch` (counted from 1, the
        first with the highest meta accuracy), `meta_accuracy` and `test_accuracy` of that epoch,
        `last_test_accuracy`. Accuracies in 0..1.
    """
    best = max(rows, key=lambda row: row["meta_accuracy"])
    warmup = rows[warmup_epochs - 1]["test_accuracy"] if warmup_epochs else None
    return {
        "warmup_test_accuracy": warmup,
        "best_epoch": best["epoch"],
        "meta_accuracy": best["meta_accuracy"],
        "test_accuracy": best["test_accuracy"],
        "last_test_accuracy": rows[-1]["test_accuracy"],
    }


def versions():
    """Versions of what computes, and the device."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU"
    packages = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
    found = {"python": platform.python_version(), "device": device}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def table(results):
    """Test accuracies in percent, a row a run."""
    lines = [f"{'test accuracy, %':<20}{'warm-up end':>13}{'best by meta':>22}{'last epoch':>18}"]
    for result in results:
        warmup = result["warmup_test_accuracy"]
        best = f"{100 * result['test_accuracy']:.2f} (epoch {result['best_epoch']})"
        last = f"{100 * result['last_test_accuracy']:.2f} (epoch {result['epochs']})"
        warmup = "" if warmup is None else f"{100 * warmup:.2f}"
        lines.append(f"{result['method']:<20}{warmup:>13}{best:>22}{last:>18}")
    return "\n".join(lines)


def plot_curves(path, directories):
    """curves.png: accuracy by epoch, the switch to phase 2 marked, as Figure 3 of the paper.

    Args:
        path: of the PNG.
        directories: of the finished runs to draw; one run is drawn with its meta accuracy too.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for directory in map(pathlib.Path, directories):
        result = json.loads((directory / "result.json").read_text())
        with open(directory / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        test, meta = (
            [100 * float(row[name]) for row in rows] for name in ("test_accuracy", "meta_accuracy")
        )
        name = result["method"].replace("_", "-")
        line = axes.plot(epochs, test, label=f"{name}, test set")[0]
        if len(directories) == 1:
            axes.plot(epochs, meta, linewidth=0.8, label=f"{name}, meta set")
        axes.plot(
            result["best_epoch"], 100 * result["test_accuracy"], "o", color=line.get_color(),
            label=f"{name}, best epoch by meta set: {100 * result['test_accuracy']:.1f} %",
        )  # fmt: skip
        if result["warmup_epochs"]:
            axes.axvline(result["warmup_epochs"] + 0.5, color="0.5", linestyle=":")
            axes.annotate(
                " phase 2", (result["warmup_epochs"] + 0.5, 0.02),
                xycoords=("data", "axes fraction"), color="0.4",
            )  # fmt: skip
    title = "{dataset}, {noise} noise, ratio {noise_ratio:g}, seed {seed}".format(**result)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150)


def write_results(directory, model, settings, rows, **more):
    """Writes the best epoch's model, result.json and curves.png; leaves that epoch in the model.

    Args:
        directory: the run's.
        model: the trained MetaLabelNet.
        settings: dict with dataset, noise, noise_ratio, method, seed, epochs and warmup_epochs.
        rows: of history.csv.
        **more: further entries of result.json.

    Returns:
        dict, the content of result.json.
    """
    directory = pathlib.Path(directory)
    names = ("dataset", "noise", "noise_ratio", "method", "seed", "epochs", "warmup_epochs")
    result = {name: settings[name] for name in names} | summarize(rows, settings["warmup_epochs"])
    result |= more | {"versions": versions()}
    model.load_weights(best_weights(directory, result["best_epoch"]))
    with whole(directory / "model.keras") as temporary:
        model.save(temporary)
    with whole(directory / "saved_model") as temporary:
        model.export(temporary)
    write_json(directory / "result.json", result)
    plot_curves(directory / "curves.png", [directory])
    return result

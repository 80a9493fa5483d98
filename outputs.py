"""The files of a run: looked for before it starts, each written whole or not at all."""

import contextlib
import csv
import ctypes
import errno
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import time

import h5py
import keras
import numpy as np
import tensorflow as tf

VERSION = "0.3"  # of this program: another one wherever the same flags give other numbers
CHECKPOINT_SECONDS = 30
COLORS = {"metalabelnet": "tab:blue", "cross_entropy": "tab:orange"}
# Where a run lies and how it is continued changes nothing about what it computes.
NOT_PART_OF_A_RUN = ("output_dir", "data_dir", "resume")


@contextlib.contextmanager
def atomic_write(path):
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
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def find_run(directory, flags, resume):
    """Recognises the run that is in a directory, or sees that one can begin there.

    Nothing is made or changed, so that this can come before all that takes time.

    Args:
        directory: path.
        flags: dict of every flag's value.
        resume: whether to continue a run that is there.

    Returns:
        The finished run's result (dict) where the directory holds just this run, made by this
        version of the program, else None.

    Raises:
        ValueError: where the directory cannot be written, or holds another run or no run, or one
            of another version of this program.
    """
    result, held, version = _read_run(pathlib.Path(directory))
    if held is None:
        _check_writable(pathlib.Path(directory))
        check_holds_only(directory, _is_leftover)
        return None
    if version != VERSION:
        raise ValueError(
            f"--output_dir: {directory} holds a run of version {version} of this program, and this "
            f"is version {VERSION}; name another directory"
        )
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
    if result is None:
        if not resume:
            raise ValueError(
                f"--output_dir: {directory} holds an unfinished run with these flags; add --resume "
                f"to continue it, or name another directory"
            )
        _check_writable(pathlib.Path(directory))
    return result


def _read_run(directory):
    """(result, flags, version) of the run in a directory; None for what it does not have."""
    path = directory / "result.json"
    try:
        if path.exists():
            result = json.loads(path.read_text())
            return result, dict(result["flags"]), result["versions"].get("mln_keras", "0.1")
        state, weights = load_checkpoint(directory)
        if state is None:
            return None, None, None
        for file in (weights, best_weights(directory, state["best_epoch"])):
            h5py.File(file).close()
        return None, dict(state["flags"]), state.get("version", "0.1")
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"--output_dir: {directory} holds no run of this program, or a damaged one ({reason}); "
            f"name another directory"
        ) from None


def _is_leftover(path):
    """Whether this may come from a run that was killed before its first checkpoint was whole."""
    if path.name == "checkpoint" and path.is_dir():
        return all(map(_is_leftover, path.iterdir()))
    return path.name.startswith(".writing-") or path == best_weights(path.parent.parent, 1)


def check_holds_only(directory, is_own):
    """Refuses, with a ValueError, a directory with an entry for which `is_own(path)` is False."""
    if os.path.isdir(directory) and not all(map(is_own, pathlib.Path(directory).iterdir())):
        raise ValueError(
            f"--output_dir: {directory} is not empty and holds no run of this program; name "
            f"another directory"
        )


def _check_writable(directory):
    existing = next(p for p in (directory, *directory.absolute().parents) if os.path.exists(p))
    if not existing.is_dir():
        raise ValueError(f"--output_dir: cannot write to {directory}, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir: cannot write to {directory}, no permission in {existing}")


@contextlib.contextmanager
def claim_directory(directory):
    """Makes a run's directory and keeps other processes from training in it, while the context is.

    Where the system cannot lock a directory (Windows, NFS), nothing keeps them from it.

    Raises:
        ValueError: where it cannot be made, or another process has claimed it.
    """
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir: cannot make {directory} ({error.strerror})") from None
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--output_dir: another process is training in {directory}") from None
        except (ImportError, OSError):
            pass
        yield


def save_checkpoint(directory, model, state, best=None):
    """Saves model and state as one: a directory that gets its name when it is whole.

    Args:
        directory: the run's.
        model: MetaLabelNet; its weights, optimizers and random states are saved.
        state: JSON-serializable dict with "epoch", the number of epochs done, and "best_epoch".
        best: the `values` of the model after the best epoch; None where that is
            this epoch, or one whose weights are saved.
    """
    path = _checkpoint(directory, state["epoch"])
    path.parent.mkdir(exist_ok=True)
    size = 4 * sum(math.prod(variable.shape) for variable in _variables(model))
    if shutil.disk_usage(directory).free < 3 * size:  # or HDF5 would crash Python at its end
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with atomic_write(path) as temporary:
        temporary.mkdir()
        model.save_weights(temporary / "model.weights.h5")
        write_json(temporary / "state.json", state)
        best_path = best_weights(directory, state["best_epoch"])
        if state["best_epoch"] == state["epoch"]:
            with atomic_write(best_path) as file:
                shutil.copyfile(temporary / "model.weights.h5", file)
        elif best is not None:
            now = values(model)
            _assign(model, best)
            with atomic_write(best_path) as file:
                model.save_weights(file)
            _assign(model, now)
    _remove_other_checkpoints(directory, state["epoch"], state["best_epoch"])


def values(model):
    """A copy of what `save_weights` saves of a MetaLabelNet, a list of tensors on its device."""
    return [keras.ops.copy(variable) for variable in _variables(model)]


def _assign(model, tensors):
    for variable, tensor in zip(_variables(model), tensors, strict=True):
        variable.assign(tensor)


def _variables(model):
    return model.variables + model.optimizer.variables + model.meta_optimizer.variables


def _checkpoint(directory, epoch):
    return pathlib.Path(directory) / "checkpoint" / f"epoch-{epoch:04d}"


def _remove_other_checkpoints(directory, epoch, best_epoch):
    kept = (_checkpoint(directory, epoch), best_weights(directory, best_epoch))
    for pattern in ("epoch-*", "best-*", ".writing-*"):
        for path in (pathlib.Path(directory) / "checkpoint").glob(pattern):
            if path not in kept:
                _remove(path)


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
    with atomic_write(pathlib.Path(directory) / "history.csv") as temporary:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def write_soft_labels(directory, given_labels, soft_labels):
    """soft_labels.npz: `index`, `given_labels` (-1: none) and `soft_labels`, a row a sample."""
    with atomic_write(pathlib.Path(directory) / "soft_labels.npz") as temporary:
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
    """Versions of what computes, cuDNN among it where there is a GPU, and the device."""
    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU"
    packages = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
    found = {"mln_keras": VERSION, "python": platform.python_version(), "device": device}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if gpus:
        with contextlib.suppress(OSError):
            number = ctypes.CDLL("libcudnn.so.9").cudnnGetVersion()
            found["cudnn"] = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
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


def plot_curves(path, runs):
    """curves.png: accuracy by epoch, the switch to phase 2 marked, as Figure 3 of the paper.

    Args:
        path: of the PNG.
        runs: list of (directory, result), of which the directory holds history.csv; one run is
            drawn with its meta accuracy too.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for directory, result in runs:
        with open(pathlib.Path(directory) / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        test, meta = (
            [100 * float(row[name]) for row in rows] for name in ("test_accuracy", "meta_accuracy")
        )
        name = result["method"].replace("_", "-")
        color = COLORS[result["method"]]
        axes.plot(epochs, test, color=color, label=f"{name}, test set")
        if len(runs) == 1:
            axes.plot(epochs, meta, color="0.6", linewidth=0.8, label=f"{name}, meta set")
        axes.plot(
            result["best_epoch"], 100 * result["test_accuracy"], "o", color=color,
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
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def write_results(directory, model, settings, rows, **more):
    """Writes what only a whole run has, result.json last; leaves the best epoch in the model.

    A run that was killed just after its last checkpoint has history.csv and older checkpoints as
    they were before: they too are brought up to date.

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
    write_history(directory, rows)
    _remove_other_checkpoints(directory, rows[-1]["epoch"], result["best_epoch"])
    model.load_weights(best_weights(directory, result["best_epoch"]))
    with atomic_write(directory / "model.keras") as temporary:
        model.save(temporary)
    with atomic_write(directory / "saved_model") as temporary:
        model.export(temporary)
    plot_curves(directory / "curves.png", [(directory, result)])
    write_json(directory / "result.json", result)
    return result


class RunRecorder(keras.callbacks.Callback):
    """After each epoch: measures meta and test set, keeps history.csv and the best weights, and
    prints a line; saves a checkpoint after the first and the last epoch, and where there has been
    none for `CHECKPOINT_SECONDS`.

    Args:
        directory: the run's.
        flags: dict, saved with the checkpoint.
        held_out: dict, `meta` and `test` -> `TwoPhaseModel.evaluation` of that set.
        state: a checkpoint's, to continue from; None for a new run.
    """

    def __init__(self, directory, flags, held_out, state=None):
        super().__init__()
        self.directory = directory
        self.flags = flags
        self.held_out = held_out
        self.rows = state["rows"] if state else []
        self.best_epoch = state["best_epoch"] if state else None
        self.seconds = state["seconds"] if state else 0.0
        self._since = time.monotonic()
        self._saved = self._since if state else -math.inf
        self._best = None  # values of the best epoch, where no checkpoint has them
        self._values = tf.function(lambda: values(self.model))  # one call, not one a variable

    def on_epoch_end(self, epoch, logs=None):
        meta_loss, meta_accuracy = self.held_out["meta"]()
        test_loss, test_accuracy = self.held_out["test"]()
        row = {
            "epoch": epoch + 1,
            "phase": int(self.model.phase.numpy()),
            "learning_rate": logs["learning_rate"],
            "loss": logs["loss"],
            "accuracy": logs["accuracy"],
            **{name: logs[name] for name in self.model.phase_2_metrics},
            "meta_set_loss": meta_loss,
            "meta_accuracy": meta_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        absent = self.model.phase_2_metrics if row["phase"] == 1 else ()
        for name, value in row.items():
            if name not in absent and not math.isfinite(value):
                steps = self.params["steps"] * self.model.loop_length
                raise FloatingPointError(
                    f"training stopped at epoch {epoch + 1}, step {steps}, its "
                    f"last: the {name} is {value}; lower the learning rates"
                )
        self.rows.append(row | dict.fromkeys(absent))
        best = self.best_epoch and self.rows[self.best_epoch - 1]["meta_accuracy"]
        is_best = best is None or row["meta_accuracy"] > best
        if is_best:
            self.best_epoch = epoch + 1
        now = time.monotonic()
        took, self._since = now - self._since, now
        self.seconds += took
        is_last = epoch + 1 == self.params["epochs"]
        if is_last or now - self._saved > CHECKPOINT_SECONDS:
            save_checkpoint(self.directory, self.model, self._state(epoch), self._best)
            self._saved, self._best = now, None
        elif is_best:
            self._best = self._values()
        write_history(self.directory, self.rows)
        self._print(row, took)

    def _state(self, epoch):
        return {
            "epoch": epoch + 1,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "rows": self.rows,
            "flags": self.flags,
            "version": VERSION,
        }

    def _print(self, row, took):
        phase = {1: "warm-up  ", 2: "phase 2  "}[row["phase"]]
        phase = phase if self.flags["method"] == "metalabelnet" else ""
        meta = "" if row["phase"] == 1 else f"  meta loss {row['meta_loss']:.4f}"
        print(
            f"epoch {row['epoch']:>3}  {phase}loss {row['loss']:.4f}{meta}  accuracy: "
            f"given labels {row['accuracy']:.4f}, meta {row['meta_accuracy']:.4f}, "
            f"test {row['test_accuracy']:.4f}  {took:.1f} s",
            flush=True,
        )

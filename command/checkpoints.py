"""Checkpoints, and the callback that records each epoch."""

import errno
import json
import math
import os
import pathlib
import shutil
import time

import keras
import numpy as np
import tensorflow as tf

from mln_keras.command.files import atomic_write, remove, write_csv, write_json
from mln_keras.command.terminal import say
from mln_keras.command.versions import VERSION
from mln_keras.data.checks import ArgumentError

CHECKPOINT_SECONDS = 30
CHANGE = ("soft_label_change", "soft_label_change_variance")


def save_checkpoint(directory, model, state, best):
    """Saves model and state as one: a directory that gets its name when it is whole.

    Args:
        directory: the run's.
        model: a `NoisyLabelModel`; its weights, optimizers and random states are saved.
        state: JSON-serializable dict with "epoch", the number of epochs done, and "best_epoch".
        best: the `values` of the model after the best epoch; None where that is
            this epoch, or one whose weights are saved.
    """
    path = _checkpoint(directory, state["epoch"])
    path.parent.mkdir(exist_ok=True)
    size = 4 * sum(math.prod(variable.shape) for variable in model.training_state())
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
    remove_other_checkpoints(directory, state["epoch"], state["best_epoch"])


def values(model):
    """A copy of what `save_weights` saves of a model, a list of tensors on its device."""
    return [keras.ops.copy(variable) for variable in model.training_state()]


def _assign(model, tensors):
    for variable, tensor in zip(model.training_state(), tensors, strict=True):
        variable.assign(tensor)


def _checkpoint(directory, epoch):
    return pathlib.Path(directory) / "checkpoint" / f"epoch-{epoch:04d}"


def remove_other_checkpoints(directory, epoch, best_epoch):
    kept = (_checkpoint(directory, epoch), best_weights(directory, best_epoch))
    for pattern in ("epoch-*", "best-*", ".writing-*"):
        for path in (pathlib.Path(directory) / "checkpoint").glob(pattern):
            if path not in kept:
                remove(path)


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


class SoftLabelChange(keras.callbacks.Callback):
    """Logs `soft_label_change` and `soft_label_change_variance`, as Figure 4 of the paper.

    They are the mean and the variance of the absolute differences of the soft labels from those an
    epoch before; None until the soft labels begin.

    Args:
        images: training images (N, H, W, channels), of which at most `MOST_IMAGES` count.
        given_labels: int32 (N,), -1 for none.
    """

    MOST_IMAGES = 2000

    def __init__(self, images, given_labels):
        super().__init__()
        rows = np.linspace(0, len(images) - 1, min(len(images), self.MOST_IMAGES)).astype(int)
        self._rows, self._images, self._given_labels = rows, images[rows], given_labels[rows]
        self._before = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._before is None:  # soft labels begin, or go on after a stop
            self._before = self._soft_labels()

    def on_epoch_end(self, epoch, logs=None):
        before, self._before = self._before, self._soft_labels()
        mean = variance = None
        if before is not None:
            change = np.abs(self._before - before)
            mean, variance = float(np.nanmean(change)), float(np.nanvar(change))
        logs |= dict(zip(CHANGE, (mean, variance), strict=True))

    def _soft_labels(self):
        try:
            return soft_labels_of(self.model, self._images, self._given_labels, self._rows)
        except ArgumentError:  # they have not begun
            return None


def soft_labels_of(model, images, given_labels, rows=slice(None)):
    """The soft labels of training samples, float32 (n, C).

    Args:
        model: one that `has_soft_labels`.
        images, given_labels: of the samples.
        rows: which of all training samples they are.

    Raises:
        ArgumentError: before the soft labels begin.
    """
    if model.keeps_samples:
        return model.sample_soft_labels()[rows]
    return model.soft_labels(images, given_labels=given_labels)


def has_soft_labels(model):
    return model.keeps_samples or hasattr(model, "soft_labels")


def best_row(rows, chosen_from):
    """The first row with the highest meta accuracy, of this phase on where there are such.

    Args:
        rows: of history.csv.
        chosen_from: number of a phase, from 1.
    """
    late = [row for row in rows if row["phase"] >= chosen_from]
    return max(late or rows, key=lambda row: row["meta_accuracy"])


class RunRecorder(keras.callbacks.Callback):
    """After each epoch: measures meta and test set, keeps history.csv and the best weights, and
    prints a line; saves a checkpoint after the first and the last epoch, and where there has been
    none for `CHECKPOINT_SECONDS`.

    Args:
        directory: the run's.
        flags: dict, saved with the checkpoint.
        held_out: dict, `meta` and `test` -> `NoisyLabelModel.evaluation` of that set.
        state: a checkpoint's, to continue from; None for a new run.
        top_k: that of the test set's evaluation, or None.
    """

    def __init__(self, directory, flags, held_out, state=None, top_k=None):
        super().__init__()
        self.directory = directory
        self.flags = flags
        self.held_out = held_out
        self.top_k = top_k
        self.rows = state["rows"] if state else []
        self.best_epoch = state["best_epoch"] if state else None
        self.seconds = state["seconds"] if state else 0.0
        self._since = time.monotonic()
        self._saved = self._since if state else -math.inf
        self._best = None  # values of the best epoch, where no checkpoint has them
        self._values = tf.function(lambda: values(self.model))  # one call, not one a variable

    def on_epoch_end(self, epoch, logs=None):
        meta_loss, meta_accuracy = self.held_out["meta"]()
        test_loss, test_accuracy, *top_k_accuracy = self.held_out["test"]()
        names = self.model.phase_metrics()
        row = {
            "epoch": epoch + 1,
            "phase": int(self.model.phase.numpy()),
            "learning_rate": logs["learning_rate"],
            "loss": logs["loss"],
            "accuracy": logs["accuracy"],
            **{name: logs[name] for name in (*names, *CHANGE) if name in logs},
            "meta_set_loss": meta_loss,
            "meta_accuracy": meta_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            **{f"test_top{self.top_k}_accuracy": value for value in top_k_accuracy},
        }
        phase = self.model.phases()[row["phase"] - 1]
        absent = [name for name in names if name not in phase.metrics]
        for name, value in row.items():
            if name not in absent and value is not None and not math.isfinite(value):
                steps = self.params["steps"] * self.model.loop_length
                raise FloatingPointError(
                    f"training stopped at epoch {epoch + 1}, step {steps}, its "
                    f"last: the {name} is {value}; try lower learning rates"
                )
        self.rows.append(row | dict.fromkeys(absent))
        self.best_epoch = best_row(self.rows, self.model.chosen_from)["epoch"]
        is_best = self.best_epoch == epoch + 1
        now = time.monotonic()
        took, self._since = now - self._since, now
        self.seconds += took
        is_last = epoch + 1 == self.params["epochs"]
        if is_last or now - self._saved > CHECKPOINT_SECONDS:
            save_checkpoint(self.directory, self.model, self._state(epoch), self._best)
            self._saved, self._best = now, None
        elif is_best:
            self._best = self._values()
        write_csv(pathlib.Path(self.directory) / "history.csv", self.rows)
        self._print(self.rows[-1], took)

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
        phases = self.model.phases()
        width = max(len(phase.name) for phase in phases) + 2
        phase = f"{phases[row['phase'] - 1].name:<{width}}" if len(phases) > 1 else ""
        meta = f"  meta loss {row['meta_loss']:.4f}" if row.get("meta_loss") is not None else ""
        say(
            f"epoch {row['epoch']:>3}  {phase}loss {row['loss']:.4f}{meta}  accuracy: "
            f"given labels {row['accuracy']:.4f}, meta {row['meta_accuracy']:.4f}, "
            f"test {row['test_accuracy']:.4f}  {took:.1f} s"
        )

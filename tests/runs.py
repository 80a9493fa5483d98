"""What tests of the command line share: how it is called, and how its files are read."""

import json
from pathlib import Path

from mln_keras.command import run
from mln_keras.command.files import read_csv
from mln_keras.command.flags import read_flags, settings_of

EPOCHS, WARMUP_EPOCHS, UNLABELED = 6, 3, 200
RUN = (
    "--dataset", "digits", "--unlabeled_size", str(UNLABELED),
    "--epochs", str(EPOCHS), "--warmup_epochs", str(WARMUP_EPOCHS),
)  # fmt: skip
SHORT = ("--dataset", "digits", "--epochs", "2", "--warmup_epochs", "1")
FILES = {
    "result.json", "history.csv", "curves.png", "confusion.png", "suspects.png", "suspects.csv",
    "review", "soft_labels.npz", "soft_label_change.png", "checkpoint", "model.keras",
    "saved_model",
}  # fmt: skip
OF_SOFT_LABELS = {"soft_labels.npz", "soft_label_change.png"}


def main(*flags):
    """Runs the command line in this process; returns its exit status."""
    return run.main(["mln_keras.py", *map(str, flags)])


def settings_and_recipe(*flags):
    return settings_of(read_flags(["mln_keras.py", *map(str, flags)]))


def model_of(*flags, num_classes=10, image_shape=(8, 8, 1)):
    """The model of a run; of the digits unless other images are named."""
    return run.build_model(*settings_and_recipe(*flags), num_classes, image_shape)


def splits_of(*flags):
    return run.load_splits(*settings_and_recipe(*flags))


def read_result(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def read_history(directory):
    return read_csv(Path(directory) / "history.csv")


def names(directory):
    return {path.name for path in directory.iterdir()}


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def stamps(directory):
    """What tells whether a file was written or made anew, of every file; None for a folder."""
    found = {path: path.stat() for path in directory.rglob("*")}
    return {p: None if p.is_dir() else (s.st_mtime_ns, s.st_ino) for p, s in found.items()}

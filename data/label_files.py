"""Labels of the training samples in a file of their own (the flag --noise_labels)."""

import csv
import io
import re

import numpy as np

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError

FLAG = "noise_labels"
KINDS = (".npy", ".npz", ".csv")


def split_name(name):
    """(path, key) of "FILE.npz:KEY" or "FILE.csv:COLUMN"; the key is None where there is none."""
    found = re.fullmatch(r"(.+\.(?:npz|csv)):([^:/\\]+)", name, re.IGNORECASE)
    return found.groups() if found else (name, None)


def read(name, source):
    """The labels of a file for the training samples of a data set.

    Args:
        name: of a `.npy` file; of a `.npz` file, with ":KEY" behind it where that holds several
            arrays; or of a CSV file, with ":COLUMN" behind it where that has several columns. Line
            i of a CSV file is training sample i; its labels are the classes' numbers or names, and
            it may begin with the columns' names.
        source: the `Source`.

    Returns:
        int32 (N,), -1 for a sample without a label.

    Raises:
        ArgumentError: naming the flag and the file, where it cannot be read or does not have one
            label in [0, C) or -1 for each training sample; and where a `.npz` file has
            `clean_label` too, as CIFAR-N's have, which are not those of the data set: then its rows
            are in another order.
    """
    path, key = split_name(name)
    content, kind = checks.content(FLAG, path), path[-4:].lower()
    try:
        checks.one_of("kind of file", kind, KINDS)
        if kind == ".csv":
            found = _from_csv(content, key, source)
        else:
            arrays = _arrays(content, kind)
            found = _chosen(arrays, key)
            _check_order(arrays.get("clean_label"), source)
        count = len(source.train_labels)
        return checks.labels("labels", found, count, source.num_classes, allow_unlabeled=True)
    except ValueError as error:
        text = error.text if isinstance(error, ArgumentError) else checks.one_line(error)
        raise ArgumentError(FLAG, f"{path}: {text}") from None


def _arrays(content, kind):
    """The arrays of a file by their names; of `.npy` the name is ""."""
    stream = io.BytesIO(content)
    try:
        if kind == ".npy":
            return {"": np.lib.format.read_array(stream, allow_pickle=False)}
        with np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # of damaged files NumPy, zipfile and zlib raise seven classes
        reason = checks.one_line(error) or type(error).__name__
        raise ValueError(f"not a whole {kind} file of numbers: {reason}") from None


def _chosen(columns, key):
    names = ", ".join(map(str, columns))
    if key is None and len(columns) != 1:
        raise ValueError(f"expected FILE:KEY with one of the keys {names}")
    if key is not None and key not in columns:
        raise ValueError(f"expected one of the keys {names}, received {key!r}")
    return columns[next(iter(columns)) if key is None else key]


def _check_order(clean, source):
    if clean is None or not source.has_right_labels:
        return
    if np.shape(clean) != np.shape(source.train_labels) or (clean != source.train_labels).any():
        raise ValueError(f"its clean_label is not that of {source.name}: other images or order")


def _from_csv(content, key, source):
    """The labels of a column, numbers or class names, an int array."""
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"no CSV file in UTF-8: {error}") from None
    has_header = len(rows) == len(source.train_labels) + 1
    first = rows[0] if rows else []
    names = [name.strip() for name in first] if has_header else range(len(first))
    column = _chosen({name: place for place, name in enumerate(names)}, key)
    found = [row[column].strip() if column < len(row) else "" for row in rows[has_header:]]
    numbers = {str(number): number for number in range(-1, source.num_classes)}
    names = {"-1": -1} | {name: number for number, name in enumerate(source.class_names)}
    for number, text in enumerate(found, 1 + has_header):
        if text not in numbers and text not in names:
            wanted = f"a class, 0 to {source.num_classes - 1} or its name"
            raise ValueError(f"row {number}: expected {wanted}, found {text!r}")
    readings = [
        [reading[text] for text in found]
        for reading in (names, numbers)
        if reading.keys() >= set(found)
    ]
    if not readings:
        raise ValueError("expected the numbers of the classes or their names, found both")
    if readings[0] != readings[-1]:
        raise ValueError(
            "its labels are numbers of classes and names of classes; give a .npy file of numbers"
        )
    return np.array(readings[0], np.int64)

"""Lists of image files and labels, as data sets come with them: read fast, checked line by line.

A row is (number of the line, from 1; name of the image's file; label). What is wrong with a row is
an `ArgumentError` about `data_dir` that names the file and the line.
"""

import os
from pathlib import Path

import numpy as np

from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles


def folder(data_dir, data_set, *needed):
    """The folder of a data set as a `Path`; ArgumentError where it lacks a file or folder."""
    if not data_dir:
        raise ArgumentError("data_dir", f"expected the folder of {data_set}, received none")
    root = Path(data_dir)
    expected = f"expected the folder of {data_set}, with {', '.join(needed)} in it"
    if not root.is_dir():
        raise ArgumentError("data_dir", f"{root} is no folder; {expected}")
    for name in needed:
        if not (root / name).exists():
            raise ArgumentError("data_dir", f"{root} has no {name}; {expected}")
    return root


def lines(file, header=None):
    """Yields (number, text) of the lines that are not empty, without spaces around.

    Names that are not UTF-8 stay what they are on disk (`os.fsencode`).

    Args:
        file: path.
        header: how the first line begins, which is then left out; None for a file without one.

    Raises:
        ArgumentError: where the file cannot be read, or begins with another line.
    """
    try:
        # Only at "\n", as other line ends may be part of a name.
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                line = line.strip()
                if header is not None and number == 1:
                    if not line.startswith(header):
                        raise wrong(file, 1, f"expected the header {header!r}, found {line!r}")
                elif line:
                    yield number, line
    except OSError as error:
        raise ArgumentError("data_dir", f"{file} cannot be read: {error.strerror}") from None


def pairs(file, numbers, wanted, header=None):
    """The rows of a file whose lines are "name label".

    Args:
        file, header: as `lines`.
        numbers: dict from what may stand for a label to the label; where that is None, the row is
            left out.
        wanted: what may stand for a label, in words.
    """
    for number, line in lines(file, header):
        name, *rest = line.rsplit(None, 1)
        if not rest or rest[0] not in numbers:
            raise wrong(file, number, f"expected the name of an image and {wanted}, found {line!r}")
        label = numbers[rest[0]]
        if label is not None:
            yield number, name, label


def looked_up(file, labels, origin):
    """The rows of a file whose lines are names, which have their labels in a dict.

    Args:
        file: as `lines`.
        labels: dict from name to label.
        origin: the file that the labels come from, for the error.
    """
    for number, name in lines(file):
        if name not in labels:
            raise wrong(file, number, f"expected an image with a label in {origin}, found {name}")
        yield number, name, labels[name]


def collected(file, rows, what=None):
    """Rows as a dict from name to label, in their order; the same row twice counts once.

    Args:
        file: that the rows are of.
        rows: iterable of rows.
        what: the rows, in words, for the error; None is the file.

    Raises:
        ArgumentError: for an image with two labels, and where there is no row at all.
    """
    found = {}
    for number, name, label in rows:
        if found.setdefault(name, label) != label:
            raise wrong(file, number, f"{name} has another label in an earlier line")
    if not found:
        raise ArgumentError("data_dir", f"{what or file}: expected images, found none")
    return found


def images(root, found, size, resize):
    """(`ImageFiles` (N,), labels int32 (N,)) of a dict from name to label.

    Args:
        root: the folder that the names begin in; an absolute name stays as it is.
        found: as `collected` returns it.
        size, resize: as `ImageFiles`.
    """
    root = os.fspath(root)
    paths = [os.path.join(root, name) for name in found]
    return ImageFiles(paths, size, resize), np.fromiter(found.values(), np.int32, len(found))


def integers(num_classes, kept=None):
    """(numbers, wanted) for `pairs`, of labels from 0 on; from `kept` on they are left out."""
    kept = num_classes if kept is None else kept
    numbers = {str(label): label if label < kept else None for label in range(num_classes)}
    return numbers, f"its class, 0 to {num_classes - 1}"


def wrong(file, number, text):
    """The error about a line of a file."""
    return ArgumentError("data_dir", f"{file}, line {number}: {text}")

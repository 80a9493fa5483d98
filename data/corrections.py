"""What a person has decided about suspicious labels: read from a file, and applied."""

import csv
import io
import os

import numpy as np

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError

COLUMNS = ("index", "file", "given", "action", "label")
ACTIONS = ("keep", "relabel", "drop")


def apply(path, given_labels, class_names=None, files=None):
    """The labels after the corrections of a file, as the review page exports it.

    Args:
        path: of a CSV file with the columns `index`, `given` (a class name), `action` and `label`,
            and perhaps `file`. The action "keep" changes nothing, "relabel" gives the class named
            by `label`, and "drop" takes the label away.
        given_labels: integers (N,), -1 for a sample without a label.
        class_names: C different names; None is the classes' numbers.
        files: file names (N,); where a row names a file, that has to be the same but for the
            folder. None reads no names.

    Returns:
        int32 (N,), -1 for dropped samples too.

    Raises:
        ArgumentError: naming `corrections`, the file and the line: where it cannot be read, has
            other columns, an index outside, an unknown class or action, a given label or file that
            is not the data's, or one index twice with different decisions.
    """
    given_labels = np.asarray(given_labels)
    if class_names is None:
        class_names = range(given_labels.max(initial=-1) + 1)
    numbers = {str(name): number for number, name in enumerate(class_names)}
    decided = {}
    for line, row in enumerate(_read(path), 2):
        try:
            index, label = _decision(row, given_labels, numbers)
            if files is not None:
                _check_file(row.get("file"), index, files[index])
            if decided.setdefault(index, label) != label:
                raise ValueError(f"index {index} comes twice, with different decisions")
        except ValueError as error:
            raise ArgumentError("corrections", f"{path}, line {line}: {error}") from None
    labels = given_labels.astype(np.int32)
    labels[list(decided)] = list(decided.values())
    return labels


def _read(path):
    """The rows of a file, a list of dicts of strings."""
    try:
        text = checks.content("corrections", path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        rows, found = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArgumentError("corrections", f"{path} is no CSV file in UTF-8: {error}") from None
    for name in COLUMNS:
        if name not in found and name != "file":
            raise ArgumentError(
                "corrections", f"{path}: expected the columns {', '.join(COLUMNS)}, found no {name}"
            )
    return rows


def _check_file(name, index, file):
    file = os.fsencode(file).decode("utf-8", "replace")  # as a browser exports it
    if name and os.path.basename(name) != os.path.basename(file):
        raise ValueError(f"the file of index {index} is {name}, in the data {file}")


def _decision(row, given_labels, numbers):
    """(index, label after it) of a row; ValueError for one that does not fit the data."""

    def number_of(name):
        if name not in numbers:
            known = checks.some(list(numbers))
            raise ValueError(f"expected one of the classes {known}; found {name!r}")
        return numbers[name]

    if not row["index"].isdecimal() or int(row["index"]) >= len(given_labels):
        raise ValueError(f"expected an index in [0, {len(given_labels)}), found {row['index']!r}")
    index, given = int(row["index"]), number_of(row["given"])
    if given != given_labels[index]:
        names = {number: name for name, number in numbers.items()}
        has = names.get(int(given_labels[index]), "none")
        raise ValueError(f"the given label of index {index} is {row['given']}, in the data {has}")
    if row["action"] not in ACTIONS:
        raise ValueError(f"expected an action of {', '.join(ACTIONS)}, found {row['action']!r}")
    after = {"keep": lambda: given, "drop": lambda: -1, "relabel": lambda: number_of(row["label"])}
    return index, after[row["action"]]()

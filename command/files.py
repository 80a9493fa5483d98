"""Files, each written whole or not at all."""

import contextlib
import csv
import json
import os
import pathlib
import shutil


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary path beside `path`, with the same ending; renames it when it is whole."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".writing-{path.name}")
    remove(temporary)
    try:
        yield temporary
    except BaseException:
        remove(temporary)
        raise
    if temporary.is_dir():
        remove(path)
    os.replace(temporary, path)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path, content):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


# Names of files may be no UTF-8; they are written as they are.
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def write_csv(path, rows):
    """Writes dicts with the same keys, a line each; None becomes an empty field."""
    with atomic_write(path) as temporary:
        with open(temporary, "w", **_TEXT) as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def read_csv(path):
    """The rows of a file that `write_csv` wrote, a list of dicts of strings."""
    with open(path, **_TEXT) as file:
        return list(csv.DictReader(file))

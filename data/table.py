"""Your own images in a table, a CSV file."""

import csv
from pathlib import Path

from mln_keras.data import checks, lists
from mln_keras.data.checks import ArgumentError
from mln_keras.data.source import Source

COLUMNS = ("path", "label", "split")
SPLITS = ("noisy", "meta", "unlabeled", "test")


def load(data_dir, size, resize):
    """Returns the images that a table lists as a `Source`.

    Args:
        data_dir: CSV file in UTF-8 with the columns `path` (of an image, from the table's folder),
            `label` (the name of a class; of unlabeled images it is not read) and `split`: noisy,
            meta, test, or unlabeled, for images to train on that have no label. Further columns
            are not read. The classes are the labels of noisy images, sorted, numbers by value.
        size, resize: as `ImageFiles`.

    Raises:
        ArgumentError: naming `data_dir`, the file and the line; see `lists`.
    """
    if not data_dir or Path(data_dir).is_dir():
        text = f"expected the CSV file of your images, received {data_dir or 'none'}"
        raise ArgumentError("data_dir", text)
    rows = list(_rows(data_dir))
    names = sorted({label for _, _, label, split in rows if split == "noisy"}, key=_order)
    if len(names) < 2:
        text = f"{data_dir}: expected two or more classes of noisy images, found {len(names)}"
        raise ArgumentError("data_dir", text)
    numbers = {name: number for number, name in enumerate(names)}

    def of_splits(*splits):
        for number, path, label, split in rows:
            if split in splits and split == "unlabeled":
                yield number, path, -1
            elif split in splits:
                if label not in numbers:
                    text = f"expected a label of noisy images, {checks.some(names)}"
                    raise lists.wrong(data_dir, number, f"{text}; found {label!r}")
                yield number, path, numbers[label]

    def images(*splits):
        what = f"{data_dir}, split {' or '.join(splits)}"
        found = lists.collected(data_dir, of_splits(*splits), what)
        return lists.images(Path(data_dir).parent, found, size, resize)

    train, held_out = images("noisy", "unlabeled"), images("meta")
    return Source(
        name="table",
        train_images=train[0],
        train_labels=train[1],
        held_out_images=held_out[0],
        held_out_labels=held_out[1],
        test=images("test"),
        class_names=tuple(names),
        has_right_labels=False,
    )


def _rows(file):
    """Yields (number of the line, path, label, split), strings without spaces around."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in COLUMNS:
                if header.count(name) != 1:
                    text = f"expected the columns {', '.join(COLUMNS)}, found {', '.join(header)}"
                    raise lists.wrong(file, 1, text)
            places = [header.index(name) for name in COLUMNS]
            for row in reader:
                if row:
                    yield reader.line_num, *_checked(file, reader.line_num, row, places)
    except OSError as error:
        raise ArgumentError("data_dir", f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArgumentError("data_dir", f"{file} is no CSV file in UTF-8: {error}") from None


def _checked(file, number, row, places):
    if len(row) <= max(places):
        text = f"expected {max(places) + 1} columns or more, found {len(row)}"
        raise lists.wrong(file, number, text)
    path, label, split = (row[place].strip() for place in places)
    if split not in SPLITS:
        text = f"expected a split of {', '.join(SPLITS)}, found {split!r}"
        raise lists.wrong(file, number, text)
    if not path:
        raise lists.wrong(file, number, "expected a path, found none")
    if not label and split != "unlabeled":
        raise lists.wrong(file, number, "expected a label, found none")
    return path, label, split


def _order(name):
    """Numbers by their value, before other names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)

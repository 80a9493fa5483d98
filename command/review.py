"""suspects.csv, and a page in which a person looks through the suspects and decides."""

import hashlib
import json
import math
import pathlib
import shutil

import numpy as np
import tensorflow as tf

from mln_keras.command.files import atomic_write, write_csv
from mln_keras.data import checks
from mln_keras.data import suspects as ranking

MOST_THUMBNAILS = 2000
PIXELS = 112  # a thumbnail's side, at most
COLUMNS, ROWS = 10, 10  # thumbnails in a sheet


def write(directory, suspects, images, class_names, title="Suspicious labels", run=""):
    """Writes suspects.csv and the folder review/, whose index.html opens from disk.

    The page needs no server and no network. It shows thumbnails of the first `MOST_THUMBNAILS`.

    Args:
        directory: made where it is missing; what it held of these two is replaced.
        suspects: as `data.suspects.find` returns them.
        images: the images whose numbers are `suspects["index"]`, (N, H, W, channels), or
            `ImageFiles`. Floats are scaled from their smallest to their largest number.
        class_names: of all C classes, as `find` got them; range(C) where it got none.
        title: of the page.
        run: what tells this run from others, a string. The browser keeps decisions under a hash of
            it, the class names and the given labels.

    Raises:
        ArgumentError: where a class of the suspects is not among the names.
        OSError: where the directory cannot be written.
    """
    names = ranking.names_of(class_names, len(class_names))
    for name in np.union1d(suspects["given"], suspects["suggested"]):
        checks.one_of("class_names", name, names)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_csv(directory / "suspects.csv", list(_rows(suspects)))
    thumbnails = thumbnails_of(images, suspects["index"][:MOST_THUMBNAILS])
    with atomic_write(directory / "review") as temporary:
        temporary.mkdir()
        here = pathlib.Path(__file__).parent
        shutil.copyfile(here / "review.html", temporary / "index.html")
        shutil.copyfile(here / "review.js", temporary / "review.js")
        _write_sheets(temporary, thumbnails)
        data = _columns(suspects, names) | {
            "title": title,
            "sheets": {"count": len(thumbnails), "columns": COLUMNS, "rows": ROWS,
                       "pixels": thumbnails.shape[1]},
        }  # fmt: skip
        by_index = np.argsort(suspects["index"])
        same = [run, names.tolist(), *(suspects[n][by_index].tolist() for n in ("index", "given"))]
        data["run"] = hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]
        text = json.dumps(data, separators=(",", ":"))
        (temporary / "data.js").write_text(f'"use strict";\nconst review = {text};\n')


def _rows(suspects):
    """The rows of suspects.csv, dicts; floats with 6 digits."""
    for rank, row in enumerate(suspects.tolist(), 1):
        shown = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
        yield {"rank": rank, **dict(zip(suspects.dtype.names, shown))}


def thumbnails_of(images, index):
    """Small square pictures, uint8 (n, side, side, 1 or 3), of the images of these numbers.

    A large image is scaled down to `PIXELS`; the shorter side gets black bars.
    """
    side = min(PIXELS, max(images.shape[1:3]))
    channels = 3 if images.shape[3] >= 3 else 1
    made = np.zeros((len(index), side, side, channels), np.float32)
    for start in range(0, len(index), 100):
        some = np.asarray(images[index[start : start + 100]])[..., :channels]
        made[start : start + 100] = tf.image.resize_with_pad(
            some.astype(np.float32), side, side, antialias=max(images.shape[1:3]) > side
        )
    if np.dtype(images.dtype) != np.uint8:
        low, high = made.min(initial=0), made.max(initial=0)
        made = (made - low) * (255 / ((high - low) or 1))
    return np.clip(np.round(made), 0, 255).astype(np.uint8)


def _write_sheets(directory, thumbnails):
    """sheet-0.png and so on: `COLUMNS` by `ROWS` thumbnails each, the last filled with black."""
    for number in range(math.ceil(len(thumbnails) / (COLUMNS * ROWS))):
        some = thumbnails[number * COLUMNS * ROWS :][: COLUMNS * ROWS]
        full = np.zeros((COLUMNS * ROWS, *thumbnails.shape[1:]), np.uint8)
        full[: len(some)] = some
        png = tf.io.encode_png(tiled(full, COLUMNS)).numpy()
        (directory / f"sheet-{number}.png").write_bytes(png)


def tiled(pictures, columns):
    """Pictures (rows · columns, h, w, channels) as one, (rows · h, columns · w, channels)."""
    _, height, width, channels = pictures.shape
    grid = pictures.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(-1, columns * width, channels)


def _columns(suspects, names):
    """The suspects as lists, a column each, with classes as numbers."""
    numbers = {name: number for number, name in enumerate(names.tolist())}
    has_files = any(suspects["file"])
    return {
        "classes": names.tolist(),
        "index": suspects["index"].tolist(),
        "file": suspects["file"].tolist() if has_files else [],
        **{n: [numbers[name] for name in suspects[n].tolist()] for n in ("given", "suggested")},
        **{n: [round(p, 5) for p in suspects[n].tolist()]
           for n in ("given_probability", "suggested_probability")},
    }  # fmt: skip

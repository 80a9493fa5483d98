"""Images in files, decoded while the network trains."""

import collections
import copy
import math
import os
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from mln_keras.data import checks, image_decoding, tensorflow_errors, unreadable
from mln_keras.data.checks import ArgumentError
from mln_keras.data.progress import progress

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp")
NAMED = 3  # files in a message
SAMPLE = 2000  # files that are decoded before a training
LEAST_SAMPLE = 200  # of them in each part


class ImageFiles:
    """Stands where an array of images does, uint8 (N, H, W, 3), and keeps only their file names.

    An image is put upright as EXIF says, resized, its aspect ratio not kept, and its centre taken
    (Section IV-B.2). Resizing is bilinear with antialiasing, as the authors' framework does it.
    Transparency is dropped: the colours that lie beneath it are taken, in GIF black.

    Args:
        paths: N file names: JPEG, PNG, GIF (its first frame, which has to fill the picture), BMP
            (24 or 32 bits a pixel, or 8 bits of gray, not compressed), or WebP that neither moves
            nor is transparent. `find_damaged` names the files of another kind.
        size: (H, W) of the images.
        resize: (height, width) before the centre is taken, at least `size`; None is `size`.

    Attributes:
        paths: the file names, an object array (N,).
        shape: (N, H, W, 3).
        dtype: uint8.
        nbytes: of all the images, decoded.
        unreadable: names of the files that could not be read so far, a dict whose values are None.
            Images that are taken out of others share it with them.

    Raises:
        ValueError: for arguments of another form than these.

    Example: training without the files that cannot be decoded.

        whole = ~np.isin(images.paths, images.find_damaged())
        images, labels = images[whole], labels[whole]
    """

    dtype = np.dtype("uint8")

    def __init__(self, paths, size, resize=None):
        if isinstance(paths, str | bytes | os.PathLike):
            raise ArgumentError("paths", f"expected a list of file names, received {paths!r}")
        resize = size if resize is None else resize
        for name, pair in (("size", size), ("resize", resize)):
            if np.shape(pair) != (2,):
                raise ArgumentError(name, f"expected (height, width), received {pair!r}")
        self.size, self.resize = tuple(size), tuple(resize)
        if any(before < after for before, after in zip(self.resize, self.size, strict=True)):
            raise ArgumentError(
                "resize", f"expected at least size={self.size}, received {self.resize}"
            )
        names = [_file_name(path, index) for index, path in enumerate(paths)]
        self._hold(np.array(names, dtype=object), {})

    def _hold(self, paths, unreadable):
        self.paths, self.unreadable = paths, unreadable
        self.shape = (len(paths), *self.size, 3)
        self.nbytes = math.prod(self.shape)
        self._names = None

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Of a number that image, uint8 (H, W, 3), decoded; of a slice, a mask or an array of
        numbers those images, as `ImageFiles`."""
        paths = self.paths[index]
        is_one = isinstance(paths, str)
        images = copy.copy(self)
        if not (isinstance(index, slice) and index == slice(None)):  # else their names are made
            images._hold(np.array([paths], dtype=object) if is_one else paths, self.unreadable)
        return next(iter(images)) if is_one else images

    def joined(self, others):
        """These images and others, which are read at the size of these."""
        images = copy.copy(self)
        images._hold(np.concatenate([self.paths, others.paths]), self.unreadable)
        return images

    def __iter__(self):
        """Decodes one image after the other, uint8 (H, W, 3); ValueError where that fails."""
        paths = tf.data.Dataset.from_tensor_slices(self.names())
        images = paths.map(self.decode, num_parallel_calls=tf.data.AUTOTUNE)
        with tensorflow_errors.in_one_line():
            for batch in images.batch(32).prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
                yield from batch

    def __array__(self, dtype=None, copy=None):
        """All images, decoded; ValueError where a file cannot be, or is not there."""
        images = np.empty(self.shape, self.dtype)
        for place, image in zip(images, self, strict=True):
            place[...] = image
        return images.astype(dtype or self.dtype, copy=False)

    def names(self):
        """The file names as `decode` takes them, a string tensor (N,)."""
        if self._names is None:
            names = self.paths.tolist()
            if not all(map(str.isascii, names)):
                names = list(map(os.fsencode, names))
            with tf.device("CPU"):
                self._names = tf.constant(names, tf.string)
        return self._names

    def dataset(self, labels=None, batch_size=32):
        """All images in their order, for `evaluate`, `predict` and `validation_data`.

        In the place of a file that cannot be read comes a black image with the label -1, which
        `evaluate` leaves out; its name is then in `unreadable`.

        Args:
            labels: integers (N,) or None.
            batch_size: images a batch; the last one may be smaller.

        Returns:
            tf.data.Dataset of image batches, or of (images, labels) batches.

        Raises:
            ValueError: for labels that are not as many as the images.
        """
        if labels is not None and np.shape(labels) != (len(self),):
            raise ArgumentError(
                "labels",
                f"expected shape ({len(self)},), one an image, received {np.shape(labels)}",
            )
        paths = self.names()
        columns = [] if labels is None else [tf.cast(labels, tf.int32)]

        def read(row):
            return self.decode(paths[row]), *(column[row] for column in columns)

        def note(first, end):
            self.unreadable.update(dict.fromkeys(self.paths[first:end]))

        samples = unreadable.without_gaps(
            tf.data.Dataset.range(len(self)), read, len(self), note
        )
        samples = samples if columns else samples.map(lambda image: image)
        length = math.ceil(len(self) / batch_size)
        batches = samples.batch(batch_size).prefetch(tf.data.AUTOTUNE)
        return batches.apply(tf.data.experimental.assert_cardinality(length))

    def is_readable(self):
        """Which files could be read so far, or have not been looked at yet, bool (N,)."""
        return np.array([path not in self.unreadable for path in self.paths], bool)

    def load(self, labels):
        """All images that can be read, decoded, uint8 (n, H, W, 3), and their labels (n,).

        Raises:
            ValueError: where too many cannot; see `unreadable.check`.
        """
        if not len(self):
            return np.asarray(self), labels
        images, found = np.empty(self.shape, self.dtype), []
        batches = self.dataset(np.arange(len(self))).as_numpy_iterator()
        for pixels, rows in progress(batches, len(self), "images loaded", lambda b: len(b[1])):
            is_read = rows >= 0
            images[len(found) :][: is_read.sum()] = pixels[is_read]
            found += rows[is_read].tolist()
        missing = np.setdiff1d(np.arange(len(self)), found)
        unreadable.check(self.paths[missing], len(self))
        return images[: len(found)], np.asarray(labels)[found]

    def decode(self, path):
        """The image of a file, a uint8 tensor (H, W, 3), of its name, a string tensor."""
        return image_decoding.decode(path, self.size, self.resize)

    def find_damaged(self):
        """Decodes every file once; returns the names of those for which that fails, a list.

        They are damaged, of a kind that is not read, or not there. How far it is is written to
        standard error where it takes more than ten seconds.
        """
        paths = self.names()

        def read(row):
            return row, tf.reduce_max(self.decode(paths[row]))  # or it would not be decoded

        rows = tf.data.Dataset.range(len(self)).map(read, num_parallel_calls=tf.data.AUTOTUNE)
        batches = rows.ignore_errors().batch(64).prefetch(tf.data.AUTOTUNE)
        is_damaged = np.ones(len(self), bool)
        rows = (rows for rows, _ in batches.as_numpy_iterator())
        for found in progress(rows, len(self), "image files checked"):
            is_damaged[found] = False
        damaged = self.paths[is_damaged].tolist()
        self.unreadable.update(dict.fromkeys(damaged))
        return damaged


def check_files(parts, seed, every=False):
    """Decodes some files before a training, or every file; what cannot be read is `unreadable`.

    Args:
        parts: list of `ImageFiles`.
        seed: integer, that decides which files are decoded: `SAMPLE` in all, shared out by the
            sizes of the parts, but at least `LEAST_SAMPLE` of each.
        every: whether all are.

    Raises:
        ValueError: where too many of a part's cannot be read; see `unreadable.check`.
    """
    rng, count = np.random.default_rng(seed), sum(map(len, parts))
    for part in parts:
        tried = min(len(part), max(SAMPLE * len(part) // count, LEAST_SAMPLE))
        if every or tried == len(part):
            sample = part
        else:
            sample = part[np.sort(rng.choice(len(part), tried, replace=False))]
        unreadable.check(sample.find_damaged(), len(sample))


def _file_name(path, index):
    try:
        name = os.fsdecode(path)
    except TypeError:
        name = ""
    if not name or "\0" in name:
        raise ArgumentError("paths", f"expected file names, received {path!r} at index {index}")
    return name


def from_directory(directory, size, resize=None, class_names=None):
    """The images of a directory with a folder for each class.

    Args:
        directory: path; its folders are the classes. Only images right in them are taken, by the
            endings of their names, upper case or lower, and nothing whose name begins with a dot.
        size, resize: as `ImageFiles`.
        class_names: folder names in the order of the classes, for instance those of the noisy
            images when it is the checked ones that are read; then a folder may be empty or missing.
            None takes all folders in the order of their names.

    Returns:
        (`ImageFiles` of N images, in the order of their names; int32 labels (N,); class names).

    Raises:
        ValueError: where the directory is missing, or holds fewer than two folders, or one without
            an image or not in `class_names`.

    Warns:
        UserWarning: of what is left out: what else lies in a class's folder, and images that lie
            beside these folders.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: expected a directory with a folder for each class")
    entries = _shown(directory)
    found = sorted(entry.name for entry in entries if entry.is_dir())
    names = _class_names(directory, found, class_names)
    paths, labels, left_out = [], [], [entry for entry in entries if _is_image(entry)]
    for label, name in enumerate(names):
        entries = _shown(directory / name) if name in found else []
        files = [entry.path for entry in entries if _is_image(entry)]
        others = [entry for entry in entries if not _is_image(entry)]
        if not files and class_names is None:
            others = _listed(directory, others) or "none"
            raise ValueError(
                f"{directory / name}: expected images ({', '.join(ENDINGS)}), found {others}"
            )
        paths += sorted(files)
        labels += [label] * len(files)
        left_out += others
    if not paths:
        raise ValueError(f"{directory}: expected images in the folders of class_names, found none")
    if left_out:
        text = (
            f"{directory}: left out {_listed(directory, left_out)}; only images in the folders of "
            f"the classes are read ({', '.join(ENDINGS)})"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return ImageFiles(paths, size, resize), np.array(labels, np.int32), names


def images_in(directory):
    """The names of the image files right in a directory, sorted; warns of what else is there."""
    entries = _shown(directory)
    left_out = [entry for entry in entries if not _is_image(entry)]
    if left_out:
        text = (
            f"{directory}: left out {_listed(directory, left_out)}; only images right in it are "
            f"read ({', '.join(ENDINGS)})"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return sorted(entry.path for entry in entries if _is_image(entry))


def _class_names(directory, found, class_names):
    """The names of the classes, a tuple; `found` are the names of the folders."""
    names = tuple(found if class_names is None else class_names)
    if isinstance(class_names, str) or len(set(names)) < len(names):
        raise ArgumentError(
            "class_names", f"expected a list of different names, received {class_names}"
        )
    unknown = sorted(set(found) - set(names))
    if unknown:
        expected = f"expected folders with the names of the classes, {checks.some(names)}"
        raise ValueError(f"{directory}: {expected}; found {unknown[0]!r} too")
    if len(names) < 2:
        raise ValueError(
            f"{directory}: expected a folder for each of two or more classes, found {len(names)}"
        )
    return names


def _shown(directory):
    return [entry for entry in os.scandir(directory) if not entry.name.startswith(".")]


def _is_image(entry):
    return entry.name.lower().endswith(ENDINGS) and entry.is_file()


def _listed(directory, entries):
    """Some of these names, and how many there are of each ending, in words; "" of none."""
    names = sorted(os.path.relpath(entry.path, directory) for entry in entries)
    kinds = collections.Counter(
        "folders" if entry.is_dir() else os.path.splitext(entry.name)[1].lower() or "no ending"
        for entry in entries
    )
    if not names:
        return ""
    counts = ", ".join(f"{kind}: {n}" for kind, n in kinds.most_common())
    return f"{checks.some(names, NAMED)} ({counts})"

"""Images in files, decoded while the network trains."""

import collections
import math
import os
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from mln_keras.data import image_decoding, tensorflow_errors
from mln_keras.data.checks import ArgumentError

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp")
NAMED = 3  # files in a message


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
        names = [_file_name(path, index) for index, path in enumerate(paths)]
        self.paths = np.array(names, dtype=object)
        self.size, self.resize = tuple(size), tuple(resize)
        if any(before < after for before, after in zip(self.resize, self.size, strict=True)):
            raise ArgumentError(
                "resize", f"expected at least size={self.size}, received {self.resize}"
            )
        self.shape = (len(self.paths), *self.size, 3)
        self.nbytes = math.prod(self.shape)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Of a number that image, uint8 (H, W, 3), decoded; of a slice, a mask or an array of
        numbers those images, as `ImageFiles`."""
        paths = self.paths[index]
        is_one = isinstance(paths, str)
        images = ImageFiles([paths] if is_one else paths, self.size, self.resize)
        return next(iter(images)) if is_one else images

    def __iter__(self):
        """Decodes one image after the other, uint8 (H, W, 3); ValueError where that fails."""
        with tensorflow_errors.in_one_line():
            for batch in self.dataset().as_numpy_iterator():
                yield from batch

    def __array__(self, dtype=None, copy=None):
        """All images, decoded; ValueError where a file cannot be, or is not there."""
        images = np.empty(self.shape, self.dtype)
        for place, image in zip(images, self, strict=True):
            place[...] = image
        return images.astype(dtype or self.dtype, copy=False)

    def names(self):
        """The file names as `decode` takes them, a string tensor (N,)."""
        return tf.constant([os.fsencode(path) for path in self.paths], tf.string)

    def dataset(self, labels=None, batch_size=32):
        """All images in their order, for `evaluate`, `predict` and `validation_data`.

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
        paths = tf.data.Dataset.from_tensor_slices(self.names())
        images = paths.map(self.decode, num_parallel_calls=tf.data.AUTOTUNE)
        if labels is not None:
            images = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(labels))
        return images.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def decode(self, path):
        """The image of a file, a uint8 tensor (H, W, 3), of its name, a string tensor."""
        return image_decoding.decode(path, self.size, self.resize)

    def find_damaged(self):
        """Decodes every file once; returns the names of those for which that fails, a list.

        They are damaged, of a kind that is not read, or not there.
        """
        paths = tf.data.Dataset.from_tensor_slices(self.names())
        whole = paths.map(
            lambda path: (path, tf.reduce_max(self.decode(path))),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        found = {os.fsdecode(path) for path, _ in whole.ignore_errors().as_numpy_iterator()}
        return [path for path in self.paths if path not in found]


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


def _class_names(directory, found, class_names):
    """The names of the classes, a tuple; `found` are the names of the folders."""
    names = tuple(found if class_names is None else class_names)
    if isinstance(class_names, str) or len(set(names)) < len(names):
        raise ArgumentError(
            "class_names", f"expected a list of different names, received {class_names}"
        )
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(f"{directory}: expected folders of class_names, found {unknown[0]} too")
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
    some = ", ".join(map(repr, names[:NAMED]))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{some}{more} ({', '.join(f'{kind}: {n}' for kind, n in kinds.most_common())})"

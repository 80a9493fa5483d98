"""Images in files, decoded while the network trains."""

import math
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from mln_keras.data import tensorflow_errors
from mln_keras.data.checks import ArgumentError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class ImageFiles:
    """Stands where an array of images does, uint8 (N, H, W, 3), and keeps only their file names.

    An image is resized, its aspect ratio not kept, and its centre taken (Section IV-B.2). Resizing
    is bilinear with antialiasing, as the authors' framework does it. What EXIF says of an image's
    orientation, and transparency, are left out.

    Args:
        paths: N file names: JPEG, PNG, BMP, WebP that neither moves nor is transparent,
            or GIF (its first frame).
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
        self.paths = np.array([os.fsdecode(path) for path in paths], dtype=object)
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
        """Those of a slice, a mask or an array of numbers, as `ImageFiles`."""
        return ImageFiles(self.paths[index], self.size, self.resize)

    def names(self):
        """The file names as `decode` takes them, a string tensor (N,)."""
        return tf.constant([os.fsencode(path) for path in self.paths], tf.string)

    def __array__(self, dtype=None, copy=None):
        """All images, decoded; ValueError where a file cannot be, or is not there."""
        images, end = np.empty(self.shape, self.dtype), 0
        with tensorflow_errors.in_one_line():
            for batch in self.dataset().as_numpy_iterator():
                begin, end = end, end + len(batch)
                images[begin:end] = batch
        return images.astype(dtype or self.dtype, copy=False)

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
        content = tf.io.read_file(path)
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        for before, after in zip(self.resize, self.size, strict=True):
            image = _swap_axes(_resize_rows(image, before, after))
        return tf.cast(tf.round(tf.ensure_shape(image, (*self.size, 3))), tf.uint8)

    def find_damaged(self):
        """Decodes every file once; returns the names of those for which that fails, a list."""
        paths = tf.data.Dataset.from_tensor_slices(self.names())
        whole = paths.map(
            lambda path: (path, tf.reduce_max(self.decode(path))),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        found = {os.fsdecode(path) for path, _ in whole.ignore_errors().as_numpy_iterator()}
        return [path for path in self.paths if path not in found]


def _resize_rows(image, before, after):
    """Resizes (height, width, 3) to `before` rows and takes the middle `after`; float32.

    To TensorFlow the image is one line, whose pixels are rows with all their colours as channels:
    this is how it sums fast, and in the thread that asks. It would share out several lines among
    threads, which then wait for each other, as all of them decode.
    """
    height, width, _ = tf.unstack(tf.shape(image))
    rows = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, 1, height, 3 * width)), size=(1, after),
        scale=tf.stack([1.0, before / tf.cast(height, tf.float32)]),
        translation=(0.0, -float((before - after) // 2)), kernel_type="triangle", antialias=True,
    )  # fmt: skip
    return tf.reshape(rows, (after, width, 3))


def _swap_axes(image):
    """(height, width, 3) to (width, height, 3), as `tf.transpose`, but in the thread that asks."""
    height, width, _ = tf.unstack(tf.shape(image))
    return tf.reshape(tf.batch_to_space(image, [height], [[0, 0]]), (width, height, 3))


def from_directory(directory, size, resize=None, class_names=None):
    """The images of a directory with a folder for each class.

    Args:
        directory: path; its folders are the classes. Only images right in them are taken, and
            nothing whose name begins with a dot.
        size, resize: as `ImageFiles`.
        class_names: folder names in the order of the classes, for instance those of the noisy
            images when it is the checked ones that are read; then a folder may be empty or missing.
            None takes all folders in the order of their names.

    Returns:
        (`ImageFiles` of N images, in the order of their names; int32 labels (N,); class names).

    Raises:
        ValueError: where the directory is missing, or holds fewer than two folders, or one without
            an image or not in `class_names`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: expected a directory with a folder for each class")
    found = sorted(entry.name for entry in _shown(directory) if entry.is_dir())
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
    paths, labels = [], []
    for label, name in enumerate(names):
        entries = _shown(directory / name) if name in found else []
        files = [entry.path for entry in entries if entry.name.lower().endswith(ENDINGS)]
        if not files and class_names is None:
            folder = directory / name
            raise ValueError(f"{folder}: expected images ({', '.join(ENDINGS)}), found none")
        paths += sorted(files)
        labels += [label] * len(files)
    if not paths:
        raise ValueError(f"{directory}: expected images in the folders of class_names, found none")
    return ImageFiles(paths, size, resize), np.array(labels, np.int32), names


def _shown(directory):
    return [entry for entry in os.scandir(directory) if not entry.name.startswith(".")]

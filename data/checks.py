"""Checks of arguments and arrays; each error is one line that names what is wrong and allowed."""

import hashlib
import numbers

import keras
import numpy as np

FEW = 5  # samples of a class
NAMED = 10  # names in a message


class ArgumentError(ValueError):
    """What was given for an argument, or a flag, does not fit.

    Args:
        name: of the argument, without dashes.
        text: one line: what is allowed and what was received.
    """

    def __init__(self, name, text):
        super().__init__(name, text)
        self.name = name
        self.text = text

    def __str__(self):
        return f"{self.name}: {self.text}"


def at_least(name, value, minimum):
    if not value >= minimum:
        raise ArgumentError(name, f"expected at least {minimum}, received {value}")


def some(names, count=NAMED, show=repr):
    """The first so many names of a list in words, each by `show`, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(show, names[:count])) + more


def one_line(error):
    """What an exception says, with spaces for its line breaks."""
    return " ".join(str(error).split())


def content(name, path):
    """The bytes of a file that an argument of this name is; ArgumentError where it is not read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ArgumentError(name, f"{path} cannot be read: {error.strerror}") from None


def identify(name, path):
    """What tells the file of an argument from one with other content: a dict, `file` and `sha256`.

    Raises:
        ArgumentError: where it cannot be read.
    """
    return {"file": path, "sha256": hashlib.sha256(content(name, path)).hexdigest()}


def integer(name, value, minimum):
    if not isinstance(value, numbers.Integral) or value < minimum:
        raise ArgumentError(name, f"expected an integer, at least {minimum}, received {value!r}")


def within(name, value, low, high, what):
    if not low <= value <= high:
        raise ArgumentError(name, f"expected {low} to {high} for {what}, received {value}")


def positive(name, value):
    if not 0 < value < float("inf"):
        raise ArgumentError(name, f"expected a finite number above 0, received {value}")


def one_of(name, value, allowed):
    if value not in allowed:
        raise ArgumentError(name, f"expected one of {', '.join(allowed)}, received {value!r}")


def keras_settings():
    """Refuses settings of Keras, or of its keras.json, that this package does not compute with."""
    for name, allowed in (
        ("floatx", ("float32", "float64")),
        ("image_data_format", ("channels_last",)),
    ):
        value = getattr(keras.config, name)()
        if value not in allowed:
            raise ArgumentError(
                f"keras.config.{name}",
                f"expected {' or '.join(allowed)}, received {value!r}; call "
                f"keras.config.set_{name}({allowed[0]!r}) before you build the classifier",
            )


def image_dtype(received, expected, name="images"):
    """Refuses images whose scale need not be that of the training images.

    Integers have to be of one type: uint16 may reach 65535, and bool 1. Floats are not told apart.

    Args:
        received: dtype of images, TensorFlow's or NumPy's, or its name.
        expected: dtype name of the training images; None before training.
        name: of the argument, for the error.

    Raises:
        ArgumentError: for images of another type, and for those that are not real numbers.
    """
    received = np.dtype(getattr(received, "as_numpy_dtype", received))
    if not is_float(received) and received.kind not in "biu":
        raise ArgumentError(
            name, f"expected images of integers or floats, received {received.name}"
        )
    if expected is None or received.name == expected:
        return
    if not (is_float(received) and is_float(expected)):
        raise ArgumentError(
            name,
            f"expected {expected} images, as in training, received {received.name}; "
            f"pixels of another type may have another scale: convert them",
        )


def is_float(dtype):
    """Whether a NumPy dtype, or that of a name, is of floats, which bfloat16 is too."""
    dtype = np.dtype(dtype)
    return dtype.kind == "f" or dtype.name == "bfloat16"


def finite(name, images):
    """Refuses an array of float images (N, ...) with NaN or infinity in it.

    Raises:
        ArgumentError: saying how many images those are, and the first one's index.
    """
    if not is_float(images.dtype):
        return
    with np.errstate(all="ignore"):
        if np.isfinite(images.sum()):
            return
    wrong = ~np.isfinite(images.reshape(len(images), -1)).all(axis=1)
    if wrong.any():
        raise ArgumentError(
            name,
            f"expected finite pixels, received NaN or infinity in {wrong.sum()} of {len(images)} "
            f"images, the first at index {np.flatnonzero(wrong)[0]}",
        )


def images(name, images, image_shape, dtype=None):
    """Refuses images (or their TensorSpec) of another shape or kind of number than expected.

    Args:
        name: of the argument, for the error.
        images: array, tensor or tf.TensorSpec with `shape` and `dtype`.
        image_shape: (H, W, channels); None for a side of any length.
        dtype: as `image_dtype`.

    Raises:
        ArgumentError: as described.
    """
    shape = getattr(images, "shape", None)
    expected = ("N", *image_shape)
    if getattr(shape, "rank", len(expected)) is None:
        shape = None
    if shape is None or len(shape) != len(expected) or any(
        None not in pair and len(set(pair)) == 2
        for pair in zip(image_shape, shape[1:], strict=True)
    ):
        received = type(images).__name__ if shape is None else ("N", *shape[1:])
        raise ArgumentError(name, f"expected images of shape {expected}, received {received}")
    image_dtype(images.dtype, dtype, name)


def label_range(num_classes, allow_unlabeled):
    """The lowest label that is allowed, and the words for what is."""
    lowest, or_none = (-1, " or -1 (no label)") if allow_unlabeled else (0, "")
    return lowest, f"expected labels in [0, {num_classes}){or_none}"


def label_hint(shape, is_float):
    """How to mend labels that are no vector of integers, at the end of an error; "" if unknown."""
    if len(shape) == 2 and shape[1] == 1:
        return "; of labels in a column pass labels[:, 0]"
    if len(shape) == 2:
        return "; of one-hot labels pass argmax(-1)"
    return "; convert them to int32" if len(shape) == 1 and is_float else ""


def labels(name, labels, count, num_classes, allow_unlabeled=False):
    """Returns labels as an int32 array (count,).

    Raises:
        ArgumentError: for labels that are not integers of shape (count,) in [0, num_classes); with
            `allow_unlabeled`, -1 is allowed too.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ArgumentError(
            name,
            f"expected integer labels of shape ({count},), one an image, received "
            f"{labels.dtype} {labels.shape}{label_hint(labels.shape, labels.dtype.kind == 'f')}",
        )
    lowest, wanted = label_range(num_classes, allow_unlabeled)
    wrong = (labels < lowest) | (labels >= num_classes)
    if wrong.any():
        index = np.flatnonzero(wrong)[0]
        raise ArgumentError(name, f"{wanted}, received {labels[index]} at index {index}")
    return labels.astype(np.int32)


def class_names(names, num_classes):
    """Returns C names as a list of strings; None where there are none.

    Raises:
        ArgumentError: where they are not C different strings of one line that UTF-8 can write.
    """
    if names is None:
        return None
    found = [names] if isinstance(names, str) else [str(name) for name in names]
    plain = [name.encode("utf-8", "replace").decode() for name in found]
    is_one_line = all(len(name.splitlines()) == 1 for name in found)
    if len(found) != num_classes or len(set(found)) < num_classes or not is_one_line:
        raise ArgumentError(
            "class_names",
            f"expected {num_classes} different names of one line each, received {names!r}",
        )
    if plain != found:
        raise ArgumentError("class_names", f"expected names in UTF-8, received {names!r}")
    return found


def rare_classes(labels, names):
    """Says of which classes there are few samples.

    Args:
        labels: integer array (N,) in [0, C).
        names: of the C classes.

    Returns:
        "no sample of class a, b; fewer than 5 samples of class c", or less of it; "" where there
        are enough of all. No more than ten names of a kind.
    """
    counts = np.bincount(labels, minlength=len(names))
    parts = []
    for words, is_so in (
        ("no sample of class", counts == 0),
        (f"fewer than {FEW} samples of class", (0 < counts) & (counts < FEW)),
    ):
        found = [names[i] for i in np.flatnonzero(is_so)]
        if found:
            parts.append(f"{words} {some(found, show=str)}")
    return "; ".join(parts)

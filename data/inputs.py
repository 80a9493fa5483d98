"""What `fit` and `evaluate` are given: checked, and made into the batches of a phase."""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mln_keras.data import checks, tensorflow_errors
from mln_keras.data.batches import (
    HELD_BYTES,
    batches,
    converted,
    hold,
    in_order,
    is_endless,
    mix,
    steps_an_epoch,
    with_meta,
)
from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles

FEW_META_SAMPLES = "meta_data: holds "  # how the warning begins
ONE = range(1)
MOST_BATCHES = 1000  # of clean data that are looked at before training


@dataclasses.dataclass(frozen=True)
class Expected:
    """What images and labels have to be.

    Attributes:
        image_shape: (H, W, channels) that the classifier takes.
        num_classes: C.
        dtype: name of the images' dtype; None where any will do.
    """

    image_shape: tuple
    num_classes: int
    dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Batching:
    """How batches of arrays are made.

    Attributes:
        batch_size: samples a batch.
        seed: integer; with the epoch it decides the order.
        shuffle_meta: whether meta batches are drawn anew in each round.
        holds: whether to `hold` the images of arrays: batches then have row numbers in their place.
        with_rows: whether noisy batches carry the samples' numbers: (images, labels, rows).
    """

    batch_size: int
    seed: int
    shuffle_meta: bool = True
    holds: bool = False
    with_rows: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """One split. `of(epochs=range)` makes its batches; `held` are its images on the GPU, or None.

    Where images are held, batches have their row numbers in the images' place. `whole()` makes the
    batches of every sample once, in order; None where their number is unknown or infinite.
    """

    of: Callable
    whole: Callable | None
    held: tf.Tensor | None = None


class TrainingData:
    """What `fit` was given, as the batches of any of its epochs.

    Args:
        noisy, meta: (images, labels), or tf.data.Dataset of such batches; meta may be None. Images
            are arrays or `ImageFiles`.
        unlabeled: images, or tf.data.Dataset of image batches, or None.
        expected: `Expected`, without a dtype.
        batching: `Batching`.

    Attributes:
        image_dtype: name of the images' dtype.
        labels: int32 (N,) of all training samples where they are arrays, else None.
        has_known_length, is_endless: of x, whether the number of its batches is known, or infinite.

    Raises:
        ArgumentError: for data that do not fit together.

    Warns:
        UserWarning: naming the classes of which a meta set of arrays holds few samples or none.
    """

    def __init__(self, noisy, meta, unlabeled, expected, batching):
        make = _from_dataset if isinstance(noisy, tf.data.Dataset) else _from_arrays
        labeled, everything, self.image_dtype, self.labels = make(
            noisy, unlabeled, expected, batching
        )
        self._noisy, self._meta, self._placed = noisy, meta, {}
        expected = dataclasses.replace(expected, dtype=self.image_dtype)
        stream, beside = _meta_streams(meta, expected, batching)
        self._streams = {"labeled": labeled, "all": everything, "meta": stream, "beside": beside}
        one = everything.of(epochs=ONE)
        self.has_known_length = steps_an_epoch(one, ONE) is not None
        self.is_endless = is_endless(one)

    def check(self, phase):
        """Raises ArgumentError where there are too few samples for a batch of this phase, or where
        it goes over all of a data set whose end is not known."""
        for samples in (*phase.reads, *(["meta"] if phase.samples == "meta" else [])):
            if self._streams[samples].whole is None:
                raise ArgumentError(
                    "meta_data" if samples == "meta" else "x",
                    f"expected a tf.data.Dataset of known length, as {phase.name} goes over all of "
                    f"it; see tf.data.experimental.assert_cardinality",
                )
        self.batches(phase, ONE)

    def look_at_meta(self):
        """Reads a Dataset of clean data once, which checks its labels; one without end in part."""
        if isinstance(self._meta, tf.data.Dataset):
            for _ in self._streams["meta"].of(epochs=ONE).take(MOST_BATCHES):
                pass

    def every(self, samples):
        """Each sample once, in order, "labeled" or "meta" ones.

        Yields:
            (images (n, H, W, channels), int32 labels (n,)), tensors, batch by batch.
        """
        stream = self._streams[samples]
        for images, labels in stream.whole():
            yield images if stream.held is None else tf.gather(stream.held, images), labels

    def first_images(self, count):
        """The first images of x, at most this many, an array.

        None is all of an array, and the first batch of a Dataset.
        """
        if isinstance(self._noisy, tf.data.Dataset):
            return next(iter(self._noisy))[0][:count]
        images = self._noisy[0][:count]
        if isinstance(images, ImageFiles):  # a file that cannot be read is not to stop anything
            return next(iter(images.dataset(batch_size=count))).numpy()
        return np.asarray(images)

    def num_labeled(self):
        """How many labeled samples x has; a Dataset is gone through for it."""
        if self.labels is None:
            return sum(len(labels) for _, labels in self.every("labeled"))
        return int(np.sum(self.labels >= 0))

    def batches(self, phase, epochs):
        """tf.data.Dataset of a phase's batches over a range of epochs.

        A batch is (images, labels), with `Batching.with_rows` (images, labels, rows); in a phase
        with meta batches it is a pair of such a one and of (images, labels).
        """
        dataset = self._streams[phase.samples].of(epochs=epochs)
        if phase.with_meta:
            return with_meta(dataset, self._streams["beside"].of, epochs)
        return dataset

    def held(self, phase, place):
        """The held images of each part of a phase's batch, a tuple of tensors or None.

        `place` puts them where they are used; it is called once for each.
        """
        names = (phase.samples, *(["meta"] if phase.with_meta else []))
        held = [self._streams[name].held for name in names]
        for images in held:
            if id(images) not in self._placed:
                self._placed[id(images)] = place(images)
        return tuple(self._placed[id(images)] for images in held)


def _from_dataset(noisy, unlabeled, expected, batching):
    """The streams of labeled and of all samples of a Dataset, the images' dtype, no labels."""
    if batching.with_rows:
        raise ArgumentError(
            "x",
            "expected arrays or ImageFiles, as this method keeps something for each sample, "
            "received a tf.data.Dataset, which does not number its samples",
        )
    noisy = _checked_dataset("x", noisy, expected)
    dtype = noisy.element_spec[0].dtype.name
    labeled = _dataset_stream(noisy)
    if unlabeled is None:
        return labeled, labeled, dtype, None
    images_of = _unlabeled_batches(unlabeled, expected.image_shape, dtype, batching)

    def everything(epochs):
        return mix(labeled.of(epochs=epochs), images_of(epochs=epochs), epochs)

    return labeled, Stream(everything, None), dtype, None


def _dataset_stream(dataset):
    has_end = int(dataset.cardinality()) > 0
    return Stream(functools.partial(_repeated, dataset), (lambda: dataset) if has_end else None)


def _unlabeled_batches(unlabeled, image_shape, dtype, batching):
    """Function of epochs that makes the batches of images without labels."""
    if isinstance(unlabeled, tf.data.Dataset):
        checks.images("unlabeled_data", unlabeled.element_spec, image_shape, dtype)
        finite = unlabeled.map(
            lambda images: _finite_batch("unlabeled_data", images),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return functools.partial(_repeated, finite)
    checks.images("unlabeled_data", unlabeled, image_shape, dtype)
    _check_finite("unlabeled_data", unlabeled)
    without_labels, images = np.full(len(unlabeled), -1), converted(unlabeled)

    def images_of(epochs):
        both = batches(
            images, without_labels, batching.batch_size, epochs=epochs, seed=batching.seed,
            name="unlabeled_data",
        )  # fmt: skip
        return both.map(lambda images, labels: images)

    return images_of


def _from_arrays(noisy, unlabeled, expected, batching):
    """The streams of labeled and of all samples of arrays, the images' dtype, the labels."""
    images, labels = _checked_arrays("x", noisy, expected, allow_unlabeled=True)
    dtype, held = images.dtype.name, None
    if unlabeled is not None:
        if isinstance(unlabeled, tf.data.Dataset):
            raise ArgumentError(
                "unlabeled_data",
                "expected an array of images, as x is an array, received a tf.data.Dataset",
            )
        checks.images("unlabeled_data", unlabeled, expected.image_shape, dtype)
        _check_finite("unlabeled_data", unlabeled)
        images = _join(images, unlabeled)
        labels = np.concatenate([labels, np.full(len(unlabeled), -1, np.int32)])
    has_label = labels >= 0
    if batching.holds:
        held, images = hold(images)

    def stream(which, name):
        split = converted(images[which]), labels[which], batching.batch_size
        return Stream(
            functools.partial(
                batches, *split, seed=batching.seed, name=name,
                rows=rows[which] if batching.with_rows else None,
            ),
            functools.partial(in_order, *split),
            held,
        )  # fmt: skip

    rows, every = np.arange(len(labels)), slice(None)
    everything = labeled = stream(every, "x")
    if not has_label.all():
        labeled = stream(has_label, "x with labels")
    return labeled, everything, dtype, labels


def _meta_streams(meta, expected, batching):
    """The streams of the clean data, one to go over and one beside another; None without any."""
    if meta is None:
        return None, None
    if isinstance(meta, tf.data.Dataset):
        return (_dataset_stream(_checked_dataset("meta_data", meta, expected)),) * 2
    images, labels = _checked_arrays("meta_data", meta, expected, allow_unlabeled=False)
    _warn_of_rare_classes(labels, expected.num_classes)
    if isinstance(images, ImageFiles) and images.nbytes <= HELD_BYTES:
        images, labels = images.load(labels)  # they come round many times an epoch, always the same
    held = None
    if batching.holds:
        held, images = hold(images)
    split = converted(images), labels, batching.batch_size

    def stream(shuffles):
        # Another seed than that of x, where as many images would come in the same order.
        seed = -1 - batching.seed if shuffles else None
        of = functools.partial(batches, *split, seed=seed, name="meta_data")
        return Stream(of, functools.partial(in_order, *split), held)

    beside = stream(batching.shuffle_meta)
    beside.of(epochs=ONE)  # refuses too few
    return stream(True), beside


def _warn_of_rare_classes(labels, num_classes):
    rare = checks.rare_classes(labels, range(num_classes))
    if rare and len(labels):
        text = f"{FEW_META_SAMPLES}{rare}, so training on the clean data may unlearn them"
        warnings.warn(text, UserWarning, stacklevel=5)  # of the call of `fit`


def paired(x, y):
    """x and y of `fit` or `evaluate` as one.

    Raises:
        ArgumentError: for labels that are given twice.
    """
    if y is None:
        return x
    if isinstance(x, tf.data.Dataset) or isinstance(x, (tuple, list)) and len(x) == 2:
        raise ArgumentError(
            "y",
            f"expected None, as x, a {type(x).__name__}, holds its labels, received "
            f"{type(y).__name__}; meta data are given as meta_data=",
        )
    return x, y


def check_evaluated(name, data, expected):
    """Refuses what `evaluate` cannot measure; labels of a Dataset are refused when they come up.

    Args:
        name: of the argument, for the error.
        data: (images, labels) or a tf.data.Dataset of such batches; what Keras takes besides
            passes.
        expected: `Expected`.

    Returns:
        The data; a Dataset with int32 labels.

    Raises:
        ArgumentError: saying what is wrong and what is allowed.
    """
    if isinstance(data, tf.data.Dataset):
        return _checked_dataset(name, data, expected, allow_unlabeled=True)
    if isinstance(data, (tuple, list)) or hasattr(data, "shape"):
        images, labels = _pair(name, data)
        checks.images(name, images, expected.image_shape, expected.dtype)
        _check_finite(name, images)
        checks.labels(name, labels, len(images), expected.num_classes, allow_unlabeled=True)
    return data


def streamed(data, batch_size):
    """`ImageFiles`, or a pair of them and labels, as a tf.data.Dataset; other data as they are.

    Keras would take them for an array, and decode all of them at once.
    """
    images, labels = data if isinstance(data, (tuple, list)) and len(data) == 2 else (data, None)
    return images.dataset(labels, batch_size or 32) if isinstance(images, ImageFiles) else data


def _repeated(dataset, epochs):
    length = int(dataset.cardinality())
    return dataset.take(length).repeat(len(epochs)) if length > 0 else dataset


def _pair(name, pair):
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ArgumentError(
            name,
            f"expected (images, labels) or a tf.data.Dataset of such batches, received "
            f"{type(pair).__name__}",
        )
    return pair[0] if isinstance(pair[0], ImageFiles) else np.asarray(pair[0]), pair[1]


def _checked_arrays(name, pair, expected, allow_unlabeled):
    images, labels = _pair(name, pair)
    if images.dtype.kind == "f":
        images = images.astype(np.float32, copy=False)
    checks.images(name, images, expected.image_shape, expected.dtype)
    _check_finite(name, images)
    return images, checks.labels(name, labels, len(images), expected.num_classes, allow_unlabeled)


def _check_finite(name, images):
    if not isinstance(images, ImageFiles):
        checks.finite(name, np.asarray(images))


def _finite_batch(name, images):
    """The images of a batch in a tf.data pipeline, which fails where a float is not finite."""
    if not images.dtype.is_floating:
        return images
    is_finite = tf.reduce_all(tf.math.is_finite(images))
    text = "expected finite pixels, received NaN or infinity in a batch"
    with tf.control_dependencies([tensorflow_errors.assert_that(is_finite, name, text)]):
        return tf.identity(images)


def _join(images, more):
    if isinstance(images, ImageFiles) != isinstance(more, ImageFiles):
        raise ArgumentError(
            "unlabeled_data",
            f"expected {type(images).__name__} as x is, received {type(more).__name__}",
        )
    if isinstance(images, ImageFiles):
        return images.joined(more)
    return np.concatenate([images, np.asarray(more, images.dtype)])


def _checked_dataset(name, dataset, expected, allow_unlabeled=False):
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ArgumentError(name, f"expected a data set of (images, labels), received {spec}")
    checks.images(name, spec[0], expected.image_shape, expected.dtype)
    if int(dataset.cardinality()) == 0:
        raise ArgumentError(name, "expected at least one batch, received an empty data set")
    labels = spec[1]
    if labels.shape.rank != 1 or not labels.dtype.is_integer:
        shape = labels.shape.as_list() if labels.shape.rank else ()
        hint = checks.label_hint(shape, labels.dtype.is_floating)
        raise ArgumentError(
            name,
            f"expected integer labels of shape (N,), received "
            f"{labels.dtype.name} {labels.shape}{hint}",
        )
    lowest, wanted = checks.label_range(expected.num_classes, allow_unlabeled)

    def check_labels(images, labels):
        labels = tf.cast(labels, tf.int32)
        is_right = tf.reduce_all((labels >= lowest) & (labels < expected.num_classes))
        with tf.control_dependencies([tensorflow_errors.assert_that(is_right, name, wanted)]):
            return _finite_batch(name, images), tf.identity(labels)

    return dataset.map(check_labels, num_parallel_calls=tf.data.AUTOTUNE)

"""Batches as `tf.data.Dataset`s whose order is a function of seed and epoch."""

import functools
import math
import warnings

import numpy as np
import tensorflow as tf

from data import checks
from data.image_files import ImageFiles

HELD_BYTES = 2**30
MANY = 2**31 - 1  # rounds, as many as an int32 counts
NO_META_SAMPLE = "meta_data: holds no sample of class"


def batches(images, labels, batch_size, *, epochs=range(1), seed=None, name="batch_size"):
    """Full batches of one split, epoch after epoch; the samples left over sit out that epoch.

    An order that depends on nothing but (seed, epoch) is what makes a resumed run equal an
    unbroken one: `tf.data.Dataset.shuffle` would start again from its first order.

    Args:
        images: (N, H, W, C), any dtype, or `ImageFiles`.
        labels: integer (N,), -1 for a sample without a label.
        batch_size: samples a batch, at most N.
        epochs: range of the epochs' numbers.
        seed: integer; None keeps the samples in their given order.
        name: of the argument that the images came in, for the error.

    Returns:
        tf.data.Dataset of (images (batch_size, H, W, C), labels int32 (batch_size,)), with
        N // batch_size batches an epoch.

    Raises:
        ValueError: where the batch is larger than the split.
    """
    checks.integer("batch_size", batch_size, 1)
    count, steps = len(images), len(images) // batch_size
    if not steps:
        raise ValueError(
            f"{name}: expected at least one batch, batch_size={batch_size} samples, "
            f"received {count}"
        )
    in_files = isinstance(images, ImageFiles)
    with tf.device("CPU"):
        rows = images.names() if in_files else tf.convert_to_tensor(images)
        labels = tf.cast(labels, tf.int32)

    def indices(epoch):
        order = tf.range(count)
        if seed is not None:
            of_epoch = (seed, tf.cast(epoch, tf.int32))
            order = tf.random.experimental.stateless_shuffle(order, seed=of_epoch)
        order = tf.reshape(order[: steps * batch_size], (steps, batch_size))
        return tf.data.Dataset.from_tensor_slices(order)

    def gather(index):
        index = tf.ensure_shape(index, [batch_size])
        return tf.gather(rows, index), tf.gather(labels, index)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(indices)
    dataset = dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
    if in_files:
        dataset = dataset.unbatch().map(
            lambda path, label: (images.decode(path), label), num_parallel_calls=tf.data.AUTOTUNE
        )
        dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps * len(epochs)))
    return dataset.prefetch(tf.data.AUTOTUNE)


def mix(noisy, unlabeled, epochs=range(1)):
    """The batches of both data sets, interleaved in proportion to their numbers.

    Args:
        noisy: tf.data.Dataset of (images, int32 labels) batches, of known cardinality.
        unlabeled: tf.data.Dataset of image batches, of known cardinality.
        epochs: range of the epochs whose batches both data sets are.

    Returns:
        tf.data.Dataset of (images, labels) batches, each of both data sets once; the label of an
        unlabeled image is -1.

    Raises:
        ValueError: where a cardinality is unknown or infinite.
    """
    counts = [int(dataset.cardinality()) // len(epochs) for dataset in (noisy, unlabeled)]
    if min(counts) < 0:
        raise ValueError(
            "unlabeled_data: mixing needs data sets of known length; "
            "use tf.data.experimental.assert_cardinality on the noisy and the unlabeled one"
        )
    without_labels = unlabeled.map(
        lambda images: (
            tf.cast(images, noisy.element_spec[0].dtype), -tf.ones(tf.shape(images)[:1], tf.int32)
        )
    )
    total = sum(counts)
    choices = tf.data.Dataset.range(total).map(
        lambda i: (i + 1) * counts[1] // total - i * counts[1] // total
    )
    mixed = tf.data.Dataset.choose_from_datasets(
        [noisy, without_labels], choices.repeat(len(epochs))
    )
    return mixed.apply(tf.data.experimental.assert_cardinality(total * len(epochs)))


def with_meta(noisy, meta_of, epochs=range(1)):
    """Each noisy batch with a meta batch; these come round again and again, on across the epochs.

    Args:
        noisy: tf.data.Dataset of the batches of the epochs.
        meta_of: function of `epochs`, a range of rounds, returns a tf.data.Dataset of their meta
            batches; where their number is unknown or infinite, of one round, and every epoch
            begins with the first. So it does where the length of `noisy` is unknown; where that is
            infinite, every iteration over the result does.
        epochs: range of the epochs' numbers.

    Returns:
        tf.data.Dataset of (noisy batch, meta batch).
    """
    steps, one = steps_an_epoch(noisy, epochs), meta_of(epochs=range(1))
    count = steps_an_epoch(one, range(1))
    if steps is None:
        return tf.data.Dataset.zip(noisy, meta_of(epochs=range(MANY)).repeat())
    if count is None:
        endless = tf.data.Dataset.range(len(epochs)).flat_map(lambda _: one.repeat().take(steps))
    else:
        first_round, skipped = divmod(epochs.start * steps, count)
        endless = meta_of(epochs=range(first_round, MANY)).skip(skipped)
    pairs = tf.data.Dataset.zip(noisy, endless)
    return pairs.apply(tf.data.experimental.assert_cardinality(steps * len(epochs)))


def steps_an_epoch(dataset, epochs):
    """How many of a data set's batches are an epoch; None where their number is unknown."""
    return max(int(dataset.cardinality()), 0) // len(epochs) or None


def stack(images, labels, batch_size):
    """All of a data set as batches of one size.

    Args:
        images: array (N, H, W, channels).
        labels: integer array (N,), N at least 1.
        batch_size: at most how many images are in a batch.

    Returns:
        (images (B, n, H, W, channels), labels int32 (B, n)): B batches of n; labels are -1 for
        images, less than B, that come a second time to fill the last batch.
    """
    labels = np.asarray(labels, np.int32)
    count = math.ceil(len(labels) / batch_size)
    places = np.arange(count * math.ceil(len(labels) / count)).reshape(count, -1)
    rows = places % len(labels)
    return images[rows], np.where(places < len(labels), labels[rows], -1)


def largest_divisor(number, at_most):
    return max(n for n in range(1, at_most + 1) if number % n == 0)


def have_one_shape(dataset):
    """Whether the shapes of a data set's batches are known, so that they can be stacked."""
    specs = tf.nest.flatten(dataset.element_spec)
    return all(spec.shape.is_fully_defined() for spec in specs)


def hold(images):
    """Keeps the images of an array on the GPU, so that batches need not be carried there.

    Returns:
        (tensor of the images, their row numbers int32 (N,)), or (None, images) for `ImageFiles`,
        for more than `HELD_BYTES`, without a GPU and without memory left on it.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if isinstance(images, ImageFiles) or images.nbytes > HELD_BYTES or not gpus:
        return None, images
    try:
        with tf.device(gpus[0].name):
            return tf.convert_to_tensor(images), np.arange(len(images), dtype=np.int32)
    except tf.errors.ResourceExhaustedError:
        return None, images


class TrainingData:
    """What `fit` was given, as the batches of any of its epochs.

    Args:
        noisy, meta: (images, labels), or tf.data.Dataset of such batches; meta may be None. Images
            are arrays or `ImageFiles`.
        unlabeled: images, or tf.data.Dataset of image batches, or None.
        image_shape: (H, W, channels) that the classifier takes.
        num_classes: C.
        batch_size, seed: as `batches`, for arrays.
        shuffle_meta: whether the meta batches of arrays are drawn anew in each round.
        warms_up: whether there will be a warm-up, which needs labels.
        holds: whether to `hold` the images of arrays: their batches are then (row numbers, labels).

    Attributes:
        held: the noisy and the meta images that are held, each a tensor or None.
        image_dtype: name of the images' dtype.
        has_known_length, is_endless: of x, whether the number of its batches is known, or infinite.

    Raises:
        ValueError: one line that names the argument, what is wrong and what is allowed.

    Warns:
        UserWarning: naming the classes of which a meta set of arrays holds no sample.
    """

    def __init__(
        self, noisy, meta, unlabeled, image_shape, num_classes, batch_size, *, seed, shuffle_meta,
        warms_up, holds,
    ):  # fmt: skip
        held = held_meta = None
        if isinstance(noisy, tf.data.Dataset):
            noisy = _checked_dataset("x", noisy, image_shape, num_classes)
            dtype = noisy.element_spec[0].dtype.name
            self._labeled = self._every = functools.partial(_repeated, noisy)
            if unlabeled is not None:
                if isinstance(unlabeled, tf.data.Dataset):
                    checks.images("unlabeled_data", unlabeled.element_spec, image_shape, dtype)
                    images_of = functools.partial(_repeated, unlabeled)
                else:
                    checks.images("unlabeled_data", unlabeled, image_shape, dtype)
                    without, unlabeled = np.full(len(unlabeled), -1), converted(unlabeled)

                    def images_of(epochs):
                        return batches(
                            unlabeled, without, batch_size, epochs=epochs, seed=seed,
                            name="unlabeled_data",
                        ).map(lambda images, labels: images)  # fmt: skip

                self._every = lambda epochs: mix(self._labeled(epochs), images_of(epochs), epochs)
        else:
            images, labels = _checked_arrays("x", noisy, image_shape, num_classes, None, True)
            dtype = images.dtype.name
            if unlabeled is not None:
                if isinstance(unlabeled, tf.data.Dataset):
                    raise ValueError(
                        "unlabeled_data: expected an array of images, as x is an array, received a "
                        "tf.data.Dataset"
                    )
                checks.images("unlabeled_data", unlabeled, image_shape, dtype)
                images = _join(images, unlabeled)
                labels = np.concatenate([labels, np.full(len(unlabeled), -1, np.int32)])
            has_label = labels >= 0
            if holds:
                held, images = hold(images)
            ordered = functools.partial(batches, batch_size=batch_size, seed=seed)
            self._every = functools.partial(ordered, converted(images), labels, name="x")
            self._labeled = self._every
            if not has_label.all():
                images, labels = converted(images[has_label]), labels[has_label]
                self._labeled = functools.partial(ordered, images, labels, name="x with labels")
        one = range(1)
        self.has_known_length = steps_an_epoch(self._every(epochs=one), one) is not None
        self.is_endless = is_endless(self._every(epochs=one))
        if warms_up:
            self._labeled(epochs=one)  # refuses too few
        if isinstance(meta, tf.data.Dataset):
            meta = _checked_dataset("meta_data", meta, image_shape, num_classes, dtype)
            self._meta = functools.partial(_repeated, meta)
        elif meta is not None:
            images, labels = _checked_arrays(
                "meta_data", meta, image_shape, num_classes, dtype, False
            )
            missing = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
            if missing.size and len(labels):
                names = ", ".join(map(str, missing[:10]))
                more = f" and of {len(missing) - 10} more" if len(missing) > 10 else ""
                text = f"{NO_META_SAMPLE} {names}{more}, so phase 2 may unlearn what it is"
                warnings.warn(text, UserWarning, stacklevel=3)  # of the call of `fit`
            if isinstance(images, ImageFiles) and images.nbytes <= HELD_BYTES:
                images = np.asarray(images)  # they come round many times an epoch, always the same
            if holds:
                held_meta, images = hold(images)
            # Another seed than that of x, where as many images would come in the same order.
            meta_seed = -1 - seed if shuffle_meta and seed is not None else None
            self._meta = functools.partial(
                batches, converted(images), labels, batch_size, seed=meta_seed, name="meta_data"
            )
            self._meta(epochs=one)  # refuses too few
        self.held, self.image_dtype = (held, held_meta), dtype

    def warm_up(self, epochs):
        """The batches (images, labels) of a range of epochs, without unlabeled images."""
        return self._labeled(epochs=epochs)

    def phase_2(self, epochs):
        """The batches of a range of epochs, each with a meta batch."""
        return with_meta(self._every(epochs=epochs), self._meta, epochs)


def paired(x, y):
    """What `fit` or `evaluate` was given as x and y, as one; ValueError for labels given twice."""
    if y is None:
        return x
    if isinstance(x, tf.data.Dataset) or isinstance(x, (tuple, list)) and len(x) == 2:
        raise ValueError(
            f"y: expected None, as x, a {type(x).__name__}, holds its labels, received "
            f"{type(y).__name__}; meta data are given as meta_data="
        )
    return x, y


def check_evaluated(name, data, image_shape, num_classes, dtype):
    """Refuses what `evaluate` cannot measure; labels of a Dataset are refused when they come up.

    Args:
        name: of the argument, for the error.
        data: (images, labels) or a tf.data.Dataset of such batches; what Keras takes besides
            passes.
        image_shape, num_classes, dtype: as `TrainingData` has them.

    Returns:
        The data; a Dataset with int32 labels.

    Raises:
        ValueError: one line that names the argument, what is wrong and what is allowed.
    """
    if isinstance(data, tf.data.Dataset):
        return _checked_dataset(name, data, image_shape, num_classes, dtype, True)
    if isinstance(data, (tuple, list)) or hasattr(data, "shape"):
        images, labels = _pair(name, data)
        checks.images(name, images, image_shape, dtype)
        checks.labels(name, labels, len(images), num_classes, allow_unlabeled=True)
    return data


def streamed(data, batch_size):
    """`ImageFiles`, or a pair of them and labels, as a tf.data.Dataset; other data as they are.

    Keras would take them for an array, and decode all of them at once.
    """
    images, labels = data if isinstance(data, (tuple, list)) and len(data) == 2 else (data, None)
    return images.dataset(labels, batch_size or 32) if isinstance(images, ImageFiles) else data


def is_endless(data):
    """Whether this is a tf.data.Dataset known to have no end."""
    is_dataset = isinstance(data, tf.data.Dataset)
    return is_dataset and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY


def _repeated(dataset, epochs):
    length = int(dataset.cardinality())
    return dataset.take(length).repeat(len(epochs)) if length > 0 else dataset


def converted(images):
    """An array as the tensor that `batches` would make of it, so that it is copied but once."""
    with tf.device("CPU"):
        return images if isinstance(images, ImageFiles) else tf.convert_to_tensor(images)


def _pair(name, pair):
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(
            f"{name}: expected (images, labels) or a tf.data.Dataset of such batches, received "
            f"{type(pair).__name__}"
        )
    return pair[0] if isinstance(pair[0], ImageFiles) else np.asarray(pair[0]), pair[1]


def _checked_arrays(name, pair, image_shape, num_classes, dtype, allow_unlabeled):
    images, labels = _pair(name, pair)
    if images.dtype.kind == "f":
        images = images.astype(np.float32, copy=False)
    checks.images(name, images, image_shape, dtype)
    return images, checks.labels(name, labels, len(images), num_classes, allow_unlabeled)


def _join(images, more):
    if isinstance(images, ImageFiles) != isinstance(more, ImageFiles):
        raise ValueError(
            f"unlabeled_data: expected {type(images).__name__} as x is, received "
            f"{type(more).__name__}"
        )
    if isinstance(images, ImageFiles):
        return ImageFiles([*images.paths, *more.paths], images.size, images.resize)
    return np.concatenate([images, np.asarray(more, images.dtype)])


def _checked_dataset(name, dataset, image_shape, num_classes, dtype=None, allow_unlabeled=False):
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(f"{name}: expected a data set of (images, labels), received {spec}")
    checks.images(name, spec[0], image_shape, dtype)
    if int(dataset.cardinality()) == 0:
        raise ValueError(f"{name}: expected at least one batch, received an empty data set")
    if spec[1].shape.rank != 1 or not spec[1].dtype.is_integer:
        raise ValueError(
            f"{name}: expected integer labels of shape (N,), received "
            f"{spec[1].dtype.name} {spec[1].shape}"
        )

    lowest, wanted = checks.label_range(num_classes, allow_unlabeled)

    def check_labels(images, labels):
        labels = tf.cast(labels, tf.int32)
        is_right = tf.reduce_all((labels >= lowest) & (labels < num_classes))
        with tf.control_dependencies([tf.debugging.Assert(is_right, [f"{name}: {wanted}"])]):
            return images, tf.identity(labels)

    return dataset.map(check_labels, num_parallel_calls=tf.data.AUTOTUNE)

"""Batches as `tf.data.Dataset`s whose order is a function of seed and epoch."""

import functools
import math

import numpy as np
import tensorflow as tf

from mln_keras.data import checks, tensorflow_errors, unreadable
from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles
from mln_keras.data.progress import progress

HELD_BYTES = 2**30
CALL_BYTES = 2**28  # of the batches that one call takes, at most
BATCH_SIZE = 128  # the default
INFERENCE_PIXELS = 1000 * 32 * 32  # of a batch, at most
MANY = 2**31 - 1  # rounds, as many as an int32 counts


def batches(
    images, labels, batch_size, *, epochs=range(1), seed=None, name="batch_size", rows=None
):
    """Full batches of one split, epoch after epoch; the samples left over sit out that epoch.

    An order that depends on nothing but (seed, epoch) is what makes a resumed run equal an
    unbroken one: `tf.data.Dataset.shuffle` would start again from its first order.

    In the place of a file that cannot be read comes the next sample once more, so that batches are
    full and an epoch has its length; its name is then in `ImageFiles.unreadable`.

    Args:
        images: (N, H, W, C), any dtype, or `ImageFiles`.
        labels: integer (N,), -1 for a sample without a label.
        batch_size: samples a batch, at most N.
        epochs: range of the epochs' numbers.
        seed: integer; None keeps the samples in their given order.
        name: of the argument that the images came in, for the error.
        rows: integer (N,), the samples' numbers, for batches that carry them; None for none.

    Returns:
        tf.data.Dataset of (images (batch_size, H, W, C), labels int32 (batch_size,)), and rows
        int32 (batch_size,) where they are given, with N // batch_size batches an epoch.

    Raises:
        ValueError: where the batch is larger than the split. The data set raises an error where too
            many files cannot be read; see `unreadable.check`.
    """
    checks.integer("batch_size", batch_size, 1)
    count, steps = len(images), len(images) // batch_size
    if not steps:
        raise ArgumentError(
            name,
            f"expected at least one batch, batch_size={batch_size} samples"
            f"{' (the default)' * (batch_size == BATCH_SIZE)}, received {count}",
        )
    in_files = isinstance(images, ImageFiles)
    with tf.device("CPU"):
        columns = [images.names() if in_files else tf.convert_to_tensor(images)]
        columns += [tf.cast(column, tf.int32) for column in (labels, rows) if column is not None]

    def order(epoch):
        with tf.device("CPU"):
            places = tf.range(count)
            if seed is not None:
                of_epoch = (seed, tf.cast(epoch, tf.int32))
                places = tf.random.experimental.stateless_shuffle(places, seed=of_epoch)
            return places[: steps * batch_size]

    def gather(index):
        return tuple(tf.gather(column, index) for column in columns)

    if in_files:
        dataset = _read(images, gather, order, epochs, steps * batch_size)
        dataset = dataset.batch(batch_size, drop_remainder=True)
    else:
        dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(
            lambda epoch: tf.data.Dataset.from_tensor_slices(
                tf.reshape(order(epoch), (steps, batch_size))
            )
        )
        dataset = dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps * len(epochs)))
    return dataset.prefetch(tf.data.AUTOTUNE)


def _read(images, gather, order, epochs, an_epoch):
    """The samples of `ImageFiles`, epoch after epoch, what cannot be read replaced by the next.

    Args:
        images: `ImageFiles`.
        gather: function of a row number that returns the file's name and what belongs to it.
        order: function of an epoch that returns its row numbers (an_epoch,).
        epochs: range of the epochs' numbers.
        an_epoch: samples an epoch.
    """
    missed, order_of = {}, functools.lru_cache(1)(lambda epoch: order(epoch).numpy())

    def rows_of(start, stop):
        numbers = tf.data.Dataset.range(start, stop)
        return numbers.flat_map(lambda e: tf.data.Dataset.from_tensor_slices(order(e)))

    def read(row):
        path, *others = gather(row)
        return images.decode(path), *others

    def note(first, end):
        for number in range(first, end):
            epoch, place = divmod(number, an_epoch)
            missed[images.paths[order_of(epochs.start + epoch)[place]]] = None
        images.unreadable.update(missed)
        unreadable.check(missed, len(images))

    return unreadable.without_gaps(
        rows_of(epochs.start, epochs.stop), read, an_epoch * len(epochs), note,
        following=rows_of(epochs.stop, epochs.stop + 1),
    )  # fmt: skip


def in_order(images, labels, batch_size):
    """Every sample once, in order; the last batch may be smaller. Files that cannot be read are
    left out.

    Args:
        images: (N, H, W, C), any dtype, or `ImageFiles`.
        labels: integer (N,).
        batch_size: samples a batch.

    Returns:
        tf.data.Dataset of (images (n, H, W, C), labels (n,)).
    """
    if isinstance(images, ImageFiles):
        rows = np.arange(len(images), dtype=np.int32)
        numbered = images.dataset(rows, batch_size)
        labels = tf.constant(labels)

        def readable(images, rows):
            is_there = rows >= 0
            return images[is_there], tf.gather(labels, rows[is_there])

        return numbered.map(readable)
    samples = tf.data.Dataset.from_tensor_slices((images, labels))
    return samples.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def for_inference(images):
    """How many of these images are computed at once where nothing is learned: 32 to 1000."""
    return min(max(INFERENCE_PIXELS // math.prod(images.shape[1:3]), 32), 1000)


def rows_of(images, function, batch_size, what, *columns):
    """What a function returns for all images, some of them at a time.

    Args:
        images: array (N, H, W, channels) or `ImageFiles`.
        function: of images (n, H, W, channels), and the same rows of each column, returns an array
            or tensor (n, C).
        batch_size: at most n.
        what: images done, in words, for `progress`.
        *columns: arrays (N, ...).

    Returns:
        NumPy array (N, C); rows of files that cannot be read are NaN.
    """
    rows, done = [], 0
    for part in progress(spans(images, batch_size), len(images), what):
        of_part = slice(done, done := done + len(part))
        rows.append(np.asarray(function(part, *(column[of_part] for column in columns))))
    rows = np.concatenate(rows)
    if isinstance(images, ImageFiles):
        rows[~images.is_readable()] = np.nan
    return rows


def spans(images, batch_size):
    """Yields every image once, in order, in arrays (n, H, W, channels) of at most this many.

    Args:
        images: array (N, H, W, channels) or `ImageFiles`.
        batch_size: images at a time.
    """
    if isinstance(images, ImageFiles):
        with tensorflow_errors.in_one_line():
            yield from images.dataset(batch_size=batch_size).as_numpy_iterator()
    else:
        for start in range(0, max(1, len(images)), batch_size):
            yield np.asarray(images[start : start + batch_size])


def mix(noisy, unlabeled, epochs):
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
        raise ArgumentError(
            "unlabeled_data",
            "mixing needs data sets of known length; "
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


def with_meta(noisy, meta_of, epochs):
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


def steps_in_memory(dataset, most):
    """How many batches of a data set are together at most `CALL_BYTES`, from 1 to `most`."""
    specs = tf.nest.flatten(dataset.element_spec)
    size = sum(spec.dtype.size * (spec.shape.num_elements() or 0) for spec in specs)
    return max(1, min(most, CALL_BYTES // max(size, 1)))


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


def is_endless(data):
    """Whether this is a tf.data.Dataset known to have no end."""
    is_dataset = isinstance(data, tf.data.Dataset)
    return is_dataset and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY


def converted(images):
    """An array as the tensor that `batches` would make of it, so that it is copied but once."""
    with tf.device("CPU"):
        return images if isinstance(images, ImageFiles) else tf.convert_to_tensor(images)

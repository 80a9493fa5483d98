"""Image files that cannot be read: passed over without a gap, and known by name.

TensorFlow has no operation that tries: a file that cannot be read is missing from a data set whose
errors are ignored. So samples are numbered before they are read, and a jump in the numbers tells.
"""

import numpy as np
import tensorflow as tf

from mln_keras.data import checks

MOST = 0.01  # of a list; with more of them the training ends
IN_A_ROW = 256  # with so many the training ends, or it would look for a file for ever; at most so
# many blank samples are made at a time


def without_gaps(samples, read, count, note, following=None):
    """Reads samples; what cannot be read is replaced, so that there are as many as before.

    Args:
        samples: tf.data.Dataset.
        read: function of a sample, in TensorFlow, that returns a tuple of tensors of known shape.
        count: how many `samples` are.
        note: function of (first, end), integers, called with the places in `samples`, from 0, of
            samples in a row that cannot be read. What it raises the data set raises.
        following: tf.data.Dataset of the samples that would come next. In the place of a sample
            comes the next one that can be read, once more. None puts a blank sample there: an image
            of zeros, and -1 for all else.

    Returns:
        tf.data.Dataset of tuples.
    """
    of_samples = samples.element_spec
    of_samples = of_samples if isinstance(of_samples, tuple) else (of_samples,)
    read = tf.function(read, autograph=False).get_concrete_function(*of_samples)
    spec = read.structured_outputs
    blank = [tf.fill(s.shape, tf.cast(-1 if i else 0, s.dtype)) for i, s in enumerate(spec)]
    # A mark, which can be read, stands before each so many samples. Its place is -1 less theirs.
    numbered = samples.enumerate()
    mark = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), numbered.element_spec[1:])
    marks = tf.data.Dataset.range(0, tf.int64.max, IN_A_ROW).map(lambda n: (-1 - n, *mark))
    turns = tf.data.Dataset.range(IN_A_ROW + 1).map(lambda i: tf.cast(i > 0, tf.int64)).repeat()
    marked = tf.data.Dataset.choose_from_datasets([marks, numbered], turns)

    def read_marked(place, *sample):
        tensors = tf.cond(place < 0, lambda: tuple(blank), lambda: read(*sample))
        return place, *(tf.ensure_shape(t, s.shape) for t, s in zip(tensors, spec))

    found = marked.map(read_marked, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    end = tf.data.Dataset.from_tensors(tuple(blank))
    if following is not None:
        end = following.map(read).ignore_errors().take(1)
    found = found.concatenate(end.map(lambda *tensors: (tf.constant(count, tf.int64), *tensors)))
    fill = _filler(note, blank if following is None else None)
    start = tf.constant(-1, tf.int64), tf.constant(1, tf.int64)
    return found.scan(start, lambda state, sample: fill(state, *sample)).unbatch().take(count)


def _filler(note, blank):
    """What puts samples into gaps, as a function for `tf.data.Dataset.scan`.

    Args:
        note: as `without_gaps`.
        blank: tensors of a blank sample, a list; None takes the sample behind the gap.

    Returns:
        Function of a state (place of the sample before; samples since the last mark) and a place
        with its tensors, that returns the new state and a batch: what fills the gap before the
        place, and the sample, where the place is not a mark's.
    """

    def call(first, end, is_hopeless):
        try:
            note(int(first), int(end))
            if is_hopeless:
                raise ValueError(f"{end - first} image files one after the other cannot be read")
        except ValueError as error:
            raise ValueError(f"<<{error}>>") from None  # so that `tensorflow_errors` finds it
        return np.int64(end - first)

    def fill(state, place, *tensors):
        before, since = state
        is_mark = place < 0
        end = tf.where(is_mark, -1 - place, place)
        is_hopeless = is_mark & (since == 0) & (blank is None)
        has_gap = (end > before + 1) & (~is_mark | (blank is not None) | is_hopeless)

        def filled():
            number = tf.numpy_function(call, [before + 1, end, is_hopeless], tf.int64)
            number = tf.ensure_shape(number, ())
            own = 1 - tf.cast(is_mark, tf.int64)
            return tuple(
                tf.concat([tf.repeat(value[None], number, axis=0), t[None]], axis=0)[: number + own]
                for value, t in zip(blank or tensors, tensors, strict=True)
            )

        copies = tf.case(
            [(has_gap, filled), (is_mark, lambda: tuple(t[None][:0] for t in tensors))],
            default=lambda: tuple(t[None] for t in tensors),
        )
        copies = [tf.ensure_shape(c, (None, *t.shape)) for c, t in zip(copies, tensors)]
        last = tf.where(is_mark, tf.where(has_gap, end - 1, before), place)
        return (last, tf.where(is_mark, tf.zeros_like(since), since + 1)), tuple(copies)

    return fill


def check(paths, count):
    """Refuses too many files that cannot be read.

    Args:
        paths: their names, a collection.
        count: how many files were to be read.

    Raises:
        ValueError: with the first names, where they are more than `MOST` of those.
    """
    if len(paths) > MOST * count:
        raise ValueError(
            f"{len(paths)} of {count} image files cannot be read, more than {MOST:.0%}: "
            f"{in_words(paths)}"
        )


def in_words(paths):
    """The first names of files that cannot be read, and why that is."""
    return checks.some(list(paths), show=lambda path: f"{path!r} ({_reason(path)})")


def _reason(path):
    try:
        with open(path, "rb"):
            return "no picture that TensorFlow decodes"
    except OSError as error:
        return (error.strerror or "not read").lower()

"""The one place that turns what TensorFlow says of the data into one line."""

import contextlib
import re

import tensorflow as tf

from mln_keras.data.checks import ArgumentError

WRONG_DATA = re.compile(r"<<(\w+): (expected .*?)>>")


def assert_that(condition, name, wanted):
    """An operation for a tf.data pipeline that fails, in words that `in_one_line` knows."""
    return tf.debugging.Assert(condition, [f"<<{name}: {wanted}>>"])


@contextlib.contextmanager
def in_one_line():
    """Turns TensorFlow's error about a wrong label, a damaged or a missing file into one line.

    Raises:
        ValueError: naming the argument or the file. Another error stays as it is.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        text = str(error)
        if found := WRONG_DATA.search(text):
            raise ArgumentError(found[1], found[2]) from None
        if "DecodeImage" in text:
            raise ValueError(
                "an image file cannot be decoded; ImageFiles.find_damaged() names it"
            ) from None
        before, missing, _ = text.partition("; No such file or directory")
        if missing:
            path = re.split(r"}} |: |\n", before)[-1]
            raise ValueError(f"{path}: no such file") from None
        raise


@contextlib.contextmanager
def of_lost_workers(strategy):
    """Turns TensorFlow's error about a worker that has ended, or is not reached, into one line.

    Args:
        strategy: tf.distribute.Strategy; one of a single process has no workers to lose.

    Raises:
        ConnectionError: with what TensorFlow says. Another error stays as it is.
    """
    try:
        yield
    except tf.errors.OpError as error:
        has_others = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        is_aborted = "Collective ops is aborted" in str(error)
        if has_others and (is_aborted or isinstance(error, tf.errors.UnavailableError)):
            raise ConnectionError(f"another worker has ended ({short(error)})") from None
        raise


def short(error, width=160):
    """One short line for any exception, without TensorFlow's operation names and Keras' bold."""
    unwanted = r"\{\{.*?\}\}|\[Op:.*|\x1b\[\d+m"
    text = re.sub(unwanted, "", f"{type(error).__name__}: {error}", flags=re.DOTALL)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 4].rsplit(" ", 1)[0] + " ..."

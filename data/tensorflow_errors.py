"""The one place that turns what TensorFlow says of the data into one line."""

import contextlib
import re

import tensorflow as tf

from mln_keras.data.checks import ArgumentError

WIDTH = 160  # of what `short` returns, at most
MISREAD = "TensorFlow misreads this file"
ASSERTED = re.compile(r"<<(\w+): (expected .*?)>>")
OWN = re.compile(r"<<(.*?)>>", re.DOTALL)
NOT_OPENED = re.compile(
    r"(?:with iterator: \S+|\}\}|unavailable>)\s(?!Error in)(.*?); ([A-Z][\w ]+)(?= \[Op|\s+\[\[)",
    re.DOTALL,
)
NO_FILE_SYSTEM = re.compile(
    r"File system scheme '(.*?)' not implemented \(file: '(.*?)'\)(?= \[Op|\s+\[\[)", re.DOTALL
)

# Where in the program an error of a graph comes from; its reason is in the lines after that.
WHERE = re.compile(
    r"Graph execution error:\s|Detected at node.*\n|^ *File \".*\n|\d+ root error\(s\) found\.\n"
    r"|^ *\(\d\) [A-Z_]+:|^\s*\[\[.*\]\]\n?", re.MULTILINE,
)  # fmt: skip


def assert_that(condition, name, text):
    """An operation for a tf.data pipeline that fails, in words that `in_one_line` knows.

    Args:
        condition: bool tensor.
        name: of the argument.
        text: "expected ..." and, after that, what was received.
    """
    return tf.debugging.Assert(condition, [f"<<{name}: {text}>>"])


@contextlib.contextmanager
def in_one_line():
    """Turns TensorFlow's error about wrong data, or a file that it cannot read, into one line.

    Raises:
        ValueError: naming the argument or the file. Another error stays as it is.
        MemoryError: where the device has too little.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(f"a smaller batch_size needs less memory ({short(error)})") from None
    except tf.errors.OpError as error:
        text = str(error)
        if found := ASSERTED.search(text):
            raise ArgumentError(found[1], found[2]) from None
        if found := OWN.search(text):
            raise ValueError(found[1]) from None
        if "DecodeImage" in text or MISREAD in text:
            raise ValueError(
                "an image file cannot be decoded; ImageFiles.find_damaged() names it"
            ) from None
        if "ReadFile" in text:
            raise ValueError(_not_read(error)) from None
        raise


def _not_read(error):
    """What is wrong with a file name, by TensorFlow's error; its `repr` shows what is invisible."""
    if found := NOT_OPENED.search(str(error)):
        return f"{found[1]!r}: {found[2].lower()}"
    if found := NO_FILE_SYSTEM.search(str(error)):
        return f"{found[2]!r}: TensorFlow reads no files from {found[1]}://; expected a local file"
    return f"an image file cannot be read ({short(error)})"


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


def short(error):
    """One short line for any exception, without TensorFlow's operation names and Keras' bold."""
    unwanted = r"\{\{.*?\}\}|\[Op:.*|\x1b\[\d+m"
    text = re.sub(unwanted, "", f"{type(error).__name__}: {error}", flags=re.DOTALL)
    text = " ".join(WHERE.sub("", text).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 4].rsplit(" ", 1)[0] + " ..."

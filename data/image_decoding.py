"""The picture in an image file: decoded by TensorFlow, upright, of the size that is asked for."""

import numpy as np
import tensorflow as tf

from mln_keras.data import image_headers, tensorflow_errors

# Of each orientation of EXIF: whether rows and columns run backwards, and are swapped after that.
TURNS = (
    (0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)
)  # fmt: skip


def decode(path, size, resize):
    """The image of a file, as an operation of a tf.data pipeline.

    Args:
        path: string tensor.
        size, resize: as `ImageFiles`.

    Returns:
        uint8 tensor (H, W, 3).
    """
    content = tf.io.read_file(path)
    # Without `channels` TensorFlow 2.21 crashes at a WebP file that moves.
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    with tf.control_dependencies([image]):  # so what comes now need not fear a damaged file
        orientation = _orientation(content)
    # An image is turned when it is small; until then, of one on its side, rows are columns.
    for side in tf.unstack(tf.gather(_sides(size, resize), orientation - 1)):
        image = _swap_axes(_resize_rows(image, *tf.unstack(side)))
    image = tf.cond(orientation > 1, lambda: _turn(image, orientation), lambda: image)
    return tf.cast(tf.round(tf.ensure_shape(image, (*size, 3))), tf.uint8)


def _orientation(content):
    """`image_headers.orientation` as an operation; most files do not wait for Python.

    It fails for a file that TensorFlow misreads.
    """

    def ask():
        return tf.numpy_function(_orientation_in_python, [content], tf.int32, stateful=False)

    found = tf.ensure_shape(tf.cond(_is_bare(content), lambda: tf.constant(1), ask), ())
    # An exception of Python's would print its traceback.
    with tf.control_dependencies([tf.debugging.Assert(found > 0, [tensorflow_errors.MISREAD])]):
        return tf.identity(found)


@tf.autograph.experimental.do_not_convert  # which takes longer than the function
def _orientation_in_python(content):
    return np.int32(image_headers.orientation(content))


def _is_bare(content):
    """Whether it is easily seen that an image's file holds pixels and nothing else, bool.

    So it is of JPEG whose tables follow its first header, and of PNG whose pixels are one chunk,
    the only one between its header and its end.
    """
    head = tf.strings.join([tf.strings.substr(content, 0, 41), 41 * b"\0"])
    start, chunk = tf.strings.substr(head, 0, 4), tf.strings.substr(head, 37, 4)
    size = tf.io.decode_raw(tf.strings.substr(head, 33, 4), tf.int32, little_endian=False)[0]
    is_jpeg = (start == b"\xff\xd8\xff\xe0") & (tf.strings.substr(head, 20, 2) == b"\xff\xdb")
    is_png = (start == b"\x89PNG") & (chunk == b"IDAT")
    return is_jpeg | is_png & (size == tf.strings.length(content) - 57)


def _sides(size, resize):
    """What `_resize_rows` takes, by orientation and axis of the file: int32 (8, 2, 3)."""
    table = []
    for *flips, is_swapped in TURNS:
        sides = list(zip(resize, size, strict=True))
        sides = zip(sides[::-1] if is_swapped else sides, flips, strict=True)
        table.append([(b, a, (b - a + flip) // 2) for (b, a), flip in sides])
    return tf.constant(table)


def _resize_rows(image, before, after, begin):
    """Resizes (height, width, 3) to `before` rows and takes `after` from `begin` on; float32.

    To TensorFlow the image is one line, whose pixels are rows with all their colours as channels:
    this is how it sums fast, and in the thread that asks. It would share out several lines among
    threads, which then wait for each other, as all of them decode.
    """
    height, width, _ = tf.unstack(tf.shape(image))
    rows = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, 1, height, 3 * width)), size=(1, after),
        scale=(1.0, tf.cast(before / height, tf.float32)),
        translation=(0.0, -tf.cast(begin, tf.float32)), kernel_type="triangle", antialias=True,
    )  # fmt: skip
    return tf.reshape(rows, (after, width, 3))


def _turn(image, orientation):
    """Puts an image upright that lies in its file as EXIF's orientation says."""
    rows, columns, is_swapped = tf.unstack(tf.gather(TURNS, orientation - 1))
    image = tf.raw_ops.Reverse(tensor=image, dims=tf.stack([rows, columns, 0]) > 0)
    return tf.cond(is_swapped > 0, lambda: _swap_axes(image), lambda: image)


def _swap_axes(image):
    """(height, width, 3) to (width, height, 3), as `tf.transpose`, but in the thread that asks."""
    height, width, _ = tf.unstack(tf.shape(image))
    return tf.reshape(tf.batch_to_space(image, [height], [[0, 0]]), (width, height, 3))

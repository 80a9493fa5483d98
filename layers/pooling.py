"""Max pooling that can be differentiated twice in every float type."""

import functools

import keras
from keras import ops


def max_pool(images, pool_size, strides, padding):
    """The maximum of each window, by comparing pixels: `keras.ops.max_pool`, whose gradients are
    elementwise, so that the second one exists in every float type and is right under XLA too.

    XLA has a second derivative of TensorFlow's max pooling in float32 only. There it looks for the
    maximum of numbers rounded to bfloat16: of normally distributed ones a percent is not the one.

    Args:
        images: (N, sides..., channels), the sides known.
        pool_size, strides: integers, one a side.
        padding: "valid" or "same".

    Returns:
        (N, sides..., channels). Of equal maxima one takes all of the gradient.
    """
    for axis, (window, stride) in enumerate(zip(pool_size, strides, strict=True), 1):
        size = images.shape[axis]
        count = (size - window) // stride + 1
        if padding == "same":
            count = -(-size // stride)
            missing = max((count - 1) * stride + window - size, 0)
            margins = [(0, 0)] * len(images.shape)
            margins[axis] = (missing // 2, missing - missing // 2)
            images = ops.pad(images, margins, constant_values=-float("inf"))
        of_axis = [slice(None)] * axis
        parts = (
            images[(*of_axis, slice(i, i + (count - 1) * stride + 1, stride))]
            for i in range(window)
        )
        images = functools.reduce(ops.maximum, parts)
    return images


@keras.saving.register_keras_serializable("mln_keras")
class WindowMaxPooling2D(keras.layers.Layer):
    """Maximum of each 2×2 window, by comparing pixels.

    The same output as `keras.layers.MaxPooling2D(2)`. Its gradients are elementwise, so the second
    one exists in bfloat16 and is cheap; of equal maxima the first in reading order takes all.

    Input shape: (N, H, W, channels); an odd last row or column is left out.
    Output shape: (N, H // 2, W // 2, channels).
    """

    def call(self, images):
        _, height, width, channels = images.shape
        images = images[:, : height // 2 * 2, : width // 2 * 2]
        windows = ops.reshape(images, (-1, height // 2, 2, width // 2, 2, channels))
        rows = ops.maximum(*ops.unstack(windows, axis=4))
        return ops.maximum(*ops.unstack(rows, axis=2))

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] // 2, shape[2] // 2, shape[3])

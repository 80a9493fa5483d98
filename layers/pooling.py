"""Max pooling that can be differentiated twice in every float type."""

import keras
from keras import ops


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

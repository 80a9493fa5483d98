"""A convolution in the forms that a GPU's matrix units take best."""

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable("mln_keras")
class AlignedConv2D(keras.layers.Conv2D):
    """As `keras.layers.Conv2D`, computed on whole 16-byte vectors of channels.

    3 channels, or 196 in bfloat16, cuDNN pads by itself: two more kernels for each operand of each
    convolution. Padding that is part of the program is fused with what computes the operand. On a
    GPU a kernel over few numbers, as the first layer has it, is computed as `patch_convolution`.
    The weights are the same, and so is the result but for rounding. Groups and "channels_first" are
    left to Keras.
    """

    def convolution_op(self, inputs, kernel):
        if self.groups > 1 or self.data_format == "channels_first":
            return super().convolution_op(inputs, kernel)
        multiple = 8 if self.compute_dtype == "bfloat16" else 4
        height, width, channels, filters = kernel.shape
        is_plain = self.padding == "same" and self.strides == self.dilation_rate == (1, 1)
        has_few = is_plain and height * width * channels <= 32 and height % 2 == width % 2 == 1
        if has_few and tf.config.list_physical_devices("GPU"):  # on a CPU it is slower
            return patch_convolution(inputs, kernel, multiple)
        more_channels, more_filters = -channels % multiple, -filters % multiple
        if more_channels:
            inputs = ops.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, more_channels)))
        if more_channels or more_filters:
            kernel = ops.pad(kernel, ((0, 0), (0, 0), (0, more_channels), (0, more_filters)))
        result = super().convolution_op(inputs, kernel)
        return result[..., :filters] if more_filters else result


def patch_convolution(images, kernel, multiple):
    """A convolution of stride 1 with "same" padding, as one product of patches and kernel.

    Args:
        images: float (N, H, W, channels); H and W known.
        kernel: float (h, w, channels, filters), h and w odd.
        multiple: the patches get zeros up to a multiple of this many numbers.

    Returns:
        float (N, H, W, filters).
    """
    h, w, channels, filters = kernel.shape
    _, height, width, _ = images.shape
    numbers = h * w * channels
    more = -numbers % multiple
    padded = ops.pad(images, ((0, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)))
    patches = ops.concatenate(
        [padded[:, i : i + height, j : j + width] for i in range(h) for j in range(w)], axis=-1
    )
    patches = ops.pad(patches, ((0, 0), (0, 0), (0, 0), (0, more)))
    kernel = ops.pad(ops.reshape(kernel, (numbers, filters)), ((0, more), (0, 0)))
    product = ops.matmul(ops.reshape(patches, (-1, numbers + more)), kernel)
    return ops.reshape(product, (-1, height, width, filters))

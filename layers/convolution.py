"""A convolution whose channels come in the multiples that a GPU's matrix units take."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("mln_keras")
class AlignedConv2D(keras.layers.Conv2D):
    """As `keras.layers.Conv2D`, computed with channels of zeros up to whole 16-byte vectors.

    3 channels, or 196 in bfloat16, cuDNN pads by itself: two more kernels for each operand of each
    convolution. Padding that is part of the program is fused with what computes the operand. The
    weights and the result are the same. Groups and "channels_first" are not padded.
    """

    def convolution_op(self, inputs, kernel):
        if self.groups > 1 or self.data_format == "channels_first":
            return super().convolution_op(inputs, kernel)
        multiple = 8 if self.compute_dtype in ("bfloat16", "float16") else 4
        channels, filters = kernel.shape[2:]
        more_channels, more_filters = -channels % multiple, -filters % multiple
        if more_channels:
            inputs = ops.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, more_channels)))
        if more_channels or more_filters:
            kernel = ops.pad(kernel, ((0, 0), (0, 0), (0, more_channels), (0, more_filters)))
        result = super().convolution_op(inputs, kernel)
        return result[..., :filters] if more_filters else result

"""Augmentation as batched tensor code, so that it runs inside the compiled training step."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("mln_keras")
class RandomFlipCrop(keras.layers.Layer):
    """Random flips, then zero padding and a random crop of the original size, for each image.

    A flip and a crop only choose which row and which column of the padded image goes where, so
    both are one gather over rows and one over columns. The identity when `training` is false.

    Args:
        padding: pixels of zeros added on each side before the crop.
        horizontal_flip: whether half of the images are mirrored left to right.
        vertical_flip: whether half of the images are mirrored top to bottom.
        seed: integer seed; None draws one from the global Keras seed.

    Input shape: (N, H, W, C), any dtype.
    Output shape: same shape and dtype.
    Reference: MetaLabelNet, Section IV-B.1.
    """

    def __init__(self, padding=4, horizontal_flip=True, vertical_flip=True, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, images, training=False):
        if not training:
            return images
        height, width = images.shape[1:3]
        draws = keras.random.uniform(
            (4, ops.shape(images)[0], 1), seed=self.seed_generator, dtype="float32"
        )
        rows = self._source_indices(draws[0], draws[1], height, self.vertical_flip)
        columns = self._source_indices(draws[2], draws[3], width, self.horizontal_flip)
        margin = (self.padding, self.padding)
        padded = ops.pad(images, ((0, 0), margin, margin, (0, 0)))
        padded = ops.take_along_axis(padded, rows[:, :, None, None], axis=1)
        return ops.take_along_axis(padded, columns[:, None, :, None], axis=2)

    def _source_indices(self, crop_draw, flip_draw, size, flip):
        """Which of the padded rows (or columns) stands where: int32 (N, size)."""
        forward = ops.arange(size, dtype="int32")[None]
        if flip:
            forward = ops.where(flip_draw < 0.5, size - 1 - forward, forward)
        return forward + ops.cast(ops.floor(crop_draw * (2 * self.padding + 1)), "int32")

    def compute_output_spec(self, images, training=False):
        return keras.KerasTensor(images.shape, images.dtype)

    def get_config(self):
        return super().get_config() | {
            "padding": self.padding,
            "horizontal_flip": self.horizontal_flip,
            "vertical_flip": self.vertical_flip,
            "seed": self.seed,
        }

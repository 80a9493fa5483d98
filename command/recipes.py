"""What each data set is trained with (Section IV-B)."""

import dataclasses
import functools
from collections.abc import Callable

from mln_keras.layers import RandomFlipCrop, cnn8, digits_cnn


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a data set is trained with; the flags of the same names replace it.

    Attributes:
        build_classifier: function without arguments, returns a Keras model from uint8 images in
            0..255 to logits (N, C).
        build_augmentation: function of `vertical_flip`, returns a layer for uint8 images.
        noise: one of `data.corruption.NAMES`.
        noise_ratio: share of wrong labels, in [0, 1]; see `data.corruption.corrupt`.
        meta_size, batch_size: samples.
        epochs: of both phases, the first `warmup_epochs` of them phase 1.
        learning_rate: λ; divided by 10 at each of the epochs (0-based) in `learning_rate_drops`.
        meta_learning_rate, inner_learning_rate: β and α.
        unlabeled_size: training samples that lose their label.
        vertical_flip: whether the augmentation mirrors images top to bottom, too.
    """

    build_classifier: Callable
    build_augmentation: Callable
    noise: str
    noise_ratio: float
    meta_size: int
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_drops: tuple
    meta_learning_rate: float
    inner_learning_rate: float = 1.0
    unlabeled_size: int = 0
    vertical_flip: bool = True

    def learning_rate_at(self, epoch):
        return self.learning_rate * 0.1 ** sum(epoch >= drop for drop in self.learning_rate_drops)

    def with_flags(self, flags):
        """This recipe, with values from flags in place of its own.

        Args:
            flags: dict of name -> value; what is None, and what a recipe does not have, is left.
        """
        names = {field.name for field in dataclasses.fields(self)}
        given = {n: value for n, value in flags.items() if n in names and value is not None}
        return dataclasses.replace(self, **given)


RECIPES = {
    "digits": Recipe(
        build_classifier=digits_cnn,
        build_augmentation=functools.partial(RandomFlipCrop, 1, False),
        noise="class_dependent",
        noise_ratio=0.4,
        meta_size=300,
        epochs=25,
        warmup_epochs=8,
        batch_size=64,
        learning_rate=1e-2,
        learning_rate_drops=(),
        meta_learning_rate=1e-2,
        vertical_flip=False,
    ),
    "cifar10": Recipe(
        build_classifier=cnn8,
        build_augmentation=functools.partial(RandomFlipCrop, 4),
        noise="uniform",
        noise_ratio=0.4,
        meta_size=5000,
        epochs=120,
        warmup_epochs=44,
        batch_size=128,
        learning_rate=1e-2,
        learning_rate_drops=(41, 81),  # the text says 40 and 80; the authors' program ran this
        meta_learning_rate=1e-2,
    ),
}

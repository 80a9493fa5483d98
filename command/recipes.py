"""What each data set is trained with (Section IV-B)."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from mln_keras.data import checks
from mln_keras.layers import RandomFlipCrop, backbone


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a data set is trained with; the flags of the same names replace it.

    Attributes:
        backbone, weights: the network by its name, as `layers.backbone`; "none" for random weights.
        build_augmentation: function of `vertical_flip`, returns a layer for uint8 images.
        noise: one of `data.corruption.NAMES`.
        noise_ratio: share of wrong labels, in [0, 1], or None; see `data.corruption.corrupt`.
        meta_size, batch_size: samples; a meta size of None is all that there are.
        epochs: of both phases, the first `warmup_epochs` of them phase 1.
        learning_rate: λ; divided by 10 at each of the epochs (0-based) in `learning_rate_drops`.
        meta_learning_rate, inner_learning_rate: β and α.
        unlabeled_size: training samples that lose their label.
        vertical_flip: whether the augmentation mirrors images top to bottom, too.
        image_size: side of the square images, in pixels, where they are read from files, else None.
        resize: side to which an image file is scaled before its centre is taken, or None.
        top_k: another number of guesses whose test accuracy is measured, or None.
        as_run, clean_weight, fine_tune_epochs: of the methods whose `flags` have them; None is the
            method's default.
    """

    backbone: str
    build_augmentation: Callable
    noise: str
    noise_ratio: float | None
    meta_size: int | None
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_drops: tuple
    meta_learning_rate: float
    inner_learning_rate: float = 1.0
    unlabeled_size: int = 0
    vertical_flip: bool = True
    weights: str = "none"
    image_size: int | None = None
    resize: int | None = None
    top_k: int | None = None
    as_run: bool | None = None
    clean_weight: float | None = None
    fine_tune_epochs: int | None = None

    def classifier(self, num_classes, input_shape):
        """A new classifier, for so many classes and images (H, W, channels)."""
        weights = None if self.weights == "none" else self.weights
        return backbone(self.backbone, num_classes, input_shape, weights)

    def network(self):
        """A name for the classifier, by its backbone and initial weights, fit for a folder."""
        if self.weights == "none":
            return self.backbone
        weights = pathlib.Path(self.weights)
        if not weights.is_file():
            return f"{self.backbone}-{self.weights}"
        return f"{self.backbone}-{checks.identify('weights', weights)['sha256'][:12]}"

    def loader_options(self):
        """What the loader of image files takes besides the data directory, a dict."""
        if self.image_size is None:
            return {}
        return {"size": (self.image_size,) * 2, "resize": (self.resize,) * 2}

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


# Where Section IV-B and the authors' program differ, REPRODUCE.md says what is taken and why.
_CIFAR10 = Recipe(
    backbone="cnn8",
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
)
_RESNET = {
    "backbone": "ResNet50",
    "weights": "imagenet",
    "build_augmentation": functools.partial(RandomFlipCrop, 0),
    "noise": "own",
    "noise_ratio": None,
    "meta_learning_rate": 1e-3,
    "batch_size": 32,
    "vertical_flip": False,
    "image_size": 224,
    "resize": 256,
}
_CLOTHING1M = Recipe(
    **_RESNET,
    meta_size=None,
    epochs=10,
    warmup_epochs=1,
    learning_rate=1e-3,
    learning_rate_drops=(5,),
)
RECIPES = {
    "digits": Recipe(
        backbone="digits_cnn",
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
    "cifar10": _CIFAR10,
    "cifar100": dataclasses.replace(_CIFAR10, learning_rate=0.1),  # not in the paper
    "clothing1m": _CLOTHING1M,
    "webvision": Recipe(
        **_RESNET
        | {
            "backbone": "InceptionResNetV2",
            "weights": "none",
            "batch_size": 16,
            "image_size": 299,
            "resize": 320,
        },
        meta_size=None,
        epochs=30,
        warmup_epochs=14,
        learning_rate=1e-2,
        learning_rate_drops=(12,),
        top_k=5,
    ),
    "food101n": Recipe(  # not in the paper
        **_RESNET,
        meta_size=10000,
        epochs=20,
        warmup_epochs=6,
        learning_rate=1e-3,
        learning_rate_drops=(5, 10),
    ),
    "folders": _CLOTHING1M,
    "table": _CLOTHING1M,
}

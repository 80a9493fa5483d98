"""What the networks are made of: backbones, batched augmentation, the label head and the losses."""

from layers.augmentation import RandomFlipCrop
from layers.backbones import cnn8, digits_cnn
from layers.convolution import AlignedConv2D
from layers.features import (
    classifier_shapes,
    find_features,
    last_dense,
    set_max_pooling_float32,
)
from layers.label_head import LabelHead
from layers.losses import cross_entropy, entropy, kl_divergence
from layers.pooling import WindowMaxPooling2D

__all__ = [
    "AlignedConv2D",
    "LabelHead",
    "RandomFlipCrop",
    "WindowMaxPooling2D",
    "cnn8",
    "classifier_shapes",
    "cross_entropy",
    "digits_cnn",
    "entropy",
    "find_features",
    "kl_divergence",
    "last_dense",
    "set_max_pooling_float32",
]

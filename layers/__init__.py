"""What the networks are made of: backbones, batched augmentation, the label head and the losses."""

from mln_keras.layers.augmentation import RandomFlipCrop
from mln_keras.layers.backbones import backbone, cnn8, digits_cnn
from mln_keras.layers.convolution import AlignedConv2D
from mln_keras.layers.label_head import LabelHead, mix_in_labels
from mln_keras.layers.losses import (
    cross_entropy,
    entropy,
    forward_cross_entropy,
    forward_cross_entropy_as_run,
    generalized_cross_entropy,
    hard_bootstrap,
    kl_divergence,
    prior_divergence,
    soft_bootstrap,
    soft_cross_entropy,
    symmetric_cross_entropy,
    symmetric_cross_entropy_as_run,
    twice_softmax_cross_entropy,
)
from mln_keras.layers.pooling import WindowMaxPooling2D

__all__ = [
    "AlignedConv2D",
    "LabelHead",
    "RandomFlipCrop",
    "WindowMaxPooling2D",
    "backbone",
    "cnn8",
    "cross_entropy",
    "digits_cnn",
    "entropy",
    "forward_cross_entropy",
    "forward_cross_entropy_as_run",
    "generalized_cross_entropy",
    "hard_bootstrap",
    "kl_divergence",
    "mix_in_labels",
    "soft_bootstrap",
    "symmetric_cross_entropy",
    "symmetric_cross_entropy_as_run",
    "prior_divergence",
    "soft_cross_entropy",
    "twice_softmax_cross_entropy",
]

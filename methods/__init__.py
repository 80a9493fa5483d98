"""The ways to train on noisy labels, one file each, all used as `mln_keras.MetaLabelNet` is."""

from mln_keras import MetaLabelNet
from mln_keras.methods.cross_entropy import CrossEntropy

METHODS = {"metalabelnet": MetaLabelNet, "cross_entropy": CrossEntropy}

__all__ = ["METHODS", "CrossEntropy", "MetaLabelNet"]

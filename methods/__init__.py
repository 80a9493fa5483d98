"""The ways to train on noisy labels, one file each, all used as `mln_keras.MetaLabelNet` is."""

from mln_keras import MetaLabelNet
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.methods.meta_weight_net import MetaWeightNet
from mln_keras.methods.metalabelnet_clean import MetaLabelNetClean
from mln_keras.methods.mlnt import MLNT
from mln_keras.methods.mslg import MSLG

METHODS = {
    "metalabelnet": MetaLabelNet,
    "cross_entropy": CrossEntropy,
    "meta_weight_net": MetaWeightNet,
    "metalabelnet_clean": MetaLabelNetClean,
    "mlnt": MLNT,
    "mslg": MSLG,
}

__all__ = [
    "METHODS",
    "CrossEntropy",
    "MLNT",
    "MSLG",
    "MetaLabelNet",
    "MetaLabelNetClean",
    "MetaWeightNet",
]

"""The ways to train on noisy labels, one file each, all used as `mln_keras.MetaLabelNet` is."""

from mln_keras import MetaLabelNet
from mln_keras.methods.co_teaching import CoTeaching
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.methods.joint_optimization import JointOptimization
from mln_keras.methods.pencil import Pencil

METHODS = {
    "metalabelnet": MetaLabelNet,
    "cross_entropy": CrossEntropy,
    "co_teaching": CoTeaching,
    "joint_optimization": JointOptimization,
    "pencil": Pencil,
}

__all__ = [
    "METHODS",
    "CoTeaching",
    "CrossEntropy",
    "JointOptimization",
    "MetaLabelNet",
    "Pencil",
]

"""The ways to train on noisy labels, one file each, all used as `mln_keras.MetaLabelNet` is."""

from mln_keras import MetaLabelNet
from mln_keras.methods.bootstrap import Bootstrap
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.methods.fine_tune import FineTune
from mln_keras.methods.forward import Forward
from mln_keras.methods.generalized_cross_entropy import GeneralizedCrossEntropy
from mln_keras.methods.gold_loss_correction import GoldLossCorrection
from mln_keras.methods.meta_only import MetaOnly
from mln_keras.methods.symmetric_cross_entropy import SymmetricCrossEntropy
from mln_keras.methods.co_teaching import CoTeaching
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.methods.joint_optimization import JointOptimization
from mln_keras.methods.pencil import Pencil

METHODS = {
    "metalabelnet": MetaLabelNet,
    "cross_entropy": CrossEntropy,
    "bootstrap": Bootstrap,
    "fine_tune": FineTune,
    "forward": Forward,
    "generalized_cross_entropy": GeneralizedCrossEntropy,
    "gold_loss_correction": GoldLossCorrection,
    "meta_only": MetaOnly,
    "symmetric_cross_entropy": SymmetricCrossEntropy,
    "co_teaching": CoTeaching,
    "joint_optimization": JointOptimization,
    "pencil": Pencil,
}

__all__ = [
    "METHODS",
    "Bootstrap",
    "CrossEntropy",
    "FineTune",
    "Forward",
    "GeneralizedCrossEntropy",
    "GoldLossCorrection",
    "MetaLabelNet",
    "MetaOnly",
    "SymmetricCrossEntropy",
    "CoTeaching",
    "CrossEntropy",
    "JointOptimization",
    "MetaLabelNet",
    "Pencil",
]

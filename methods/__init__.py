"""The ways to train on noisy labels, one file each, all used as `mln_keras.MetaLabelNet` is."""

from mln_keras import MetaLabelNet
from mln_keras.methods.bootstrap import Bootstrap
from mln_keras.methods.co_teaching import CoTeaching
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.methods.fine_tune import FineTune
from mln_keras.methods.forward import Forward
from mln_keras.methods.generalized_cross_entropy import GeneralizedCrossEntropy
from mln_keras.methods.gold_loss_correction import GoldLossCorrection
from mln_keras.methods.joint_optimization import JointOptimization
from mln_keras.methods.meta_only import MetaOnly
from mln_keras.methods.meta_weight_net import MetaWeightNet
from mln_keras.methods.metalabelnet_clean import MetaLabelNetClean
from mln_keras.methods.mlnt import MLNT
from mln_keras.methods.mslg import MSLG
from mln_keras.methods.pencil import Pencil
from mln_keras.methods.symmetric_cross_entropy import SymmetricCrossEntropy

METHODS = {
    "metalabelnet": MetaLabelNet,
    "cross_entropy": CrossEntropy,
    "bootstrap": Bootstrap,
    "co_teaching": CoTeaching,
    "fine_tune": FineTune,
    "forward": Forward,
    "generalized_cross_entropy": GeneralizedCrossEntropy,
    "gold_loss_correction": GoldLossCorrection,
    "joint_optimization": JointOptimization,
    "meta_only": MetaOnly,
    "meta_weight_net": MetaWeightNet,
    "metalabelnet_clean": MetaLabelNetClean,
    "mlnt": MLNT,
    "mslg": MSLG,
    "pencil": Pencil,
    "symmetric_cross_entropy": SymmetricCrossEntropy,
}

__all__ = ["METHODS", *(method.__name__ for method in METHODS.values())]

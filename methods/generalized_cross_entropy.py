"""Generalized cross-entropy, row "GCE" of Table I, which was run as it was published."""

import keras

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.methods.cross_entropy import CrossEntropy


@keras.saving.register_keras_serializable("mln_keras")
class GeneralizedCrossEntropy(CrossEntropy):
    """A loss between cross-entropy, which learns fast, and mean absolute error, which is robust.

    The loss is (1 − p_y^q)/q. The paper's truncated form is left out.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        q: in (0, 1]; 1 is half the mean absolute error, and cross-entropy is the limit at 0.

    Raises:
        ArgumentError: for q outside its range.

    Reference: Z. Zhang and M. R. Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural
    Networks with Noisy Labels", NeurIPS 2018.
    """

    config_names = (*CrossEntropy.config_names, "q")

    def __init__(self, classifier, *, q=0.7, **options):
        super().__init__(classifier, **options)
        checks.positive("q", q)
        if q > 1:
            raise ArgumentError("q", f"expected at most 1, received {q}")
        self.q = q

    def sample_losses(self, labels, logits):
        return layers.generalized_cross_entropy(labels, logits, self.q)

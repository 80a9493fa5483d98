"""Symmetric cross-entropy, row "SCE" of Table I."""

import keras

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.methods.cross_entropy import CrossEntropy


@keras.saving.register_keras_serializable("mln_keras")
class SymmetricCrossEntropy(CrossEntropy):
    """Adds the reverse cross-entropy, which a wrong label cannot make large.

    The loss is α·(−log p_y) + β·(−Σ_c p_c log y_c), where log 0 is log 1e-4.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        alpha, beta: the weights of the two terms, α and β; published for CIFAR-10.
        as_run: the loss as the authors of MetaLabelNet ran it for Table I, with one softmax more in
            each term (`layers.symmetric_cross_entropy_as_run`).

    Raises:
        ArgumentError: for a negative weight.

    Reference: Y. Wang, X. Ma, Z. Chen, Y. Luo, J. Yi and J. Bailey, "Symmetric Cross Entropy for
    Robust Learning with Noisy Labels", ICCV 2019.
    """

    flags = ("as_run",)

    config_names = (*CrossEntropy.config_names, "alpha", "beta", "as_run")

    def __init__(self, classifier, *, alpha=0.1, beta=1.0, as_run=False, **options):
        super().__init__(classifier, **options)
        checks.at_least("alpha", alpha, 0)
        checks.at_least("beta", beta, 0)
        self.alpha = alpha
        self.beta = beta
        self.as_run = as_run

    def sample_losses(self, labels, logits):
        if self.as_run:
            return layers.symmetric_cross_entropy_as_run(labels, logits, self.alpha, self.beta)
        return layers.symmetric_cross_entropy(labels, logits, self.alpha, self.beta)

"""Bootstrapping, row "Bootstrap" of Table I, whose soft kind was run as it was published."""

import keras

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.methods.cross_entropy import CrossEntropy

LOSSES = {"hard": layers.hard_bootstrap, "soft": layers.soft_bootstrap}
LABEL_WEIGHTS = {"hard": 0.8, "soft": 0.95}


@keras.saving.register_keras_serializable("mln_keras")
class Bootstrap(CrossEntropy):
    """Mixes what the classifier itself predicts into the labels.

    The loss is −Σ_c t_c log p_c. The target t is β·y + (1 − β)·onehot(argmax p) for the hard kind,
    β·y + (1 − β)·p for the soft one, whose gradient goes through t too.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        kind: "soft" or "hard".
        label_weight: β; None is the published 0.95 of the soft and 0.8 of the hard kind.

    Raises:
        ArgumentError: for another kind, or a weight outside [0, 1].

    Reference: S. Reed, H. Lee, D. Anguelov, C. Szegedy, D. Erhan and A. Rabinovich, "Training Deep
    Neural Networks on Noisy Labels with Bootstrapping", ICLR 2015 workshop.
    """

    config_names = (*CrossEntropy.config_names, "kind", "label_weight")

    def __init__(self, classifier, *, kind="soft", label_weight=None, **options):
        super().__init__(classifier, **options)
        checks.one_of("kind", kind, LOSSES)
        label_weight = LABEL_WEIGHTS[kind] if label_weight is None else label_weight
        checks.within("label_weight", label_weight, 0, 1, "a share")
        self.kind = kind
        self.label_weight = label_weight

    def sample_losses(self, labels, logits):
        return LOSSES[self.kind](labels, logits, self.label_weight)

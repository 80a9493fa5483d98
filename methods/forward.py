"""Forward loss correction, row "Forward" of Table I, and ways to count T."""

import math

import keras
import numpy as np
from keras import ops

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.methods.loss_correction import LossCorrection
from mln_keras.training.phases import Phase


@keras.saving.register_keras_serializable("mln_keras")
class Forward(LossCorrection):
    """Compares the given label with the prediction as the noise would have changed it.

    The loss is −log (p T)_y. A first training, with cross-entropy, estimates T: row i is the
    prediction for the training sample that has the highest probability of class i, outliers left
    out. The second training starts from the same weights.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        warmup_epochs: epochs of the first training; 0 where `transition` is given.
        transition: T, float (C, C), T[i, j] = P(given label j, true one i), where it is known (see
            `count_transitions`): there is one training then. None estimates it.
        percentile: of the probability of class i, that of the sample which gives row i: the
            published 97 for CIFAR-10; 100 is the highest, for many classes.
        as_run: the loss as the authors of MetaLabelNet ran it for Table I, with T on the logits and
            two softmaxes (`layers.forward_cross_entropy_as_run`). Their T is
            `count_transitions_as_run`, as the command line has it.

    Raises:
        ArgumentError: for an argument outside its range, a first training beside a given T, and
            neither of them.

    Reference: G. Patrini, A. Rozza, A. K. Menon, R. Nock and L. Qu, "Making Deep Neural Networks
    Robust to Label Noise: a Loss Correction Approach", CVPR 2017.
    """

    flags = ("warmup_epochs", "as_run")

    config_names = (*LossCorrection.config_names, "percentile", "as_run")

    def __init__(
        self,
        classifier,
        warmup_epochs=0,
        *,
        transition=None,
        percentile=97,
        as_run=False,
        **options,
    ):
        checks.integer("warmup_epochs", warmup_epochs, 0)
        if (transition is None) == (warmup_epochs == 0):
            raise ArgumentError(
                "warmup_epochs",
                f"expected at least 1 to estimate T, or 0 where `transition` is given, received "
                f"{warmup_epochs}",
            )
        super().__init__(classifier, warmup_epochs, **options)
        checks.within("percentile", percentile, 0, 100, "a percentile")
        if transition is not None:
            self.transition.assign(_checked(transition, self.num_classes, rows_sum=not as_run))
        self.percentile = percentile
        self.as_run = as_run
        self.chosen_from = len(self.phases())

    def phases(self):
        if not self.warmup_epochs:
            return (Phase("training"),)
        second = Phase(
            "second training", start=self.warmup_epochs, begin=self.begin_again, reads=("labeled",)
        )
        return (Phase("warm-up"), second)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """As `NoisyLabelModel.from_recipe`; as run, T is counted on the `data.source.Splits`.

        Raises:
            ArgumentError: where nobody knows their true labels.
        """
        if not recipe.as_run:
            return super().from_recipe(recipe)
        options = {"as_run": True}
        if splits is not None:
            if splits.clean_labels is None:
                raise ArgumentError(
                    "as_run",
                    "of forward needs the true labels of the training data, which are not known",
                )
            labeled = splits.given_labels >= 0
            options["transition"] = count_transitions_as_run(
                splits.clean_labels[labeled], splits.given_labels[labeled], len(splits.class_names)
            )
        return options, recipe.epochs, recipe.learning_rate_at

    def learn_transition(self):
        predictions = np.concatenate([p for p, _ in self.predictions("labeled")])
        rank = math.floor(self.percentile / 100 * (len(predictions) - 1))
        self.transition.assign(predictions[np.argpartition(predictions, rank, axis=0)[rank]])

    def sample_losses(self, labels, logits):
        if self.phase_in_training < len(self.phases()):
            return super().sample_losses(labels, logits)
        corrected = (
            layers.forward_cross_entropy_as_run if self.as_run else layers.forward_cross_entropy
        )
        return corrected(labels, logits, self.transition)

    def get_config(self):
        is_given = not self.warmup_epochs
        transition = ops.convert_to_numpy(self.transition).tolist() if is_given else None
        return super().get_config() | {"transition": transition}


def count_transitions(true_labels, given_labels, num_classes):
    """T counted on samples of which both labels are known, for instance because somebody checked.

    Args:
        true_labels, given_labels: integers (N,) in [0, C).
        num_classes: C.

    Returns:
        float64 (C, C), T[i, j] the share of the samples of class i that were given label j; the
        identity's row for a class without a sample.

    Raises:
        ArgumentError: for other labels.
    """
    true, given = _label_pairs(true_labels, given_labels, num_classes)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (true, given), 1)
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.eye(num_classes))


def count_transitions_as_run(true_labels, given_labels, num_classes):
    """T as the authors of MetaLabelNet counted it for Table I, by the true labels of all samples.

    In each 32 samples on end a pair of classes counts once at most, and a count n[i, j] is divided
    by the sum of row j, not of row i. At 40 % uniform noise on CIFAR-10 the diagonal is 0.42.

    Args, Raises: as `count_transitions`.

    Returns:
        float64 (C, C).
    """
    true, given = _label_pairs(true_labels, given_labels, num_classes)
    counts = np.zeros((num_classes, num_classes))
    for start in range(0, len(true), 32):
        counts[true[start : start + 32], given[start : start + 32]] += 1
    return counts / np.maximum(counts.sum(axis=1), 1)


def _label_pairs(true_labels, given_labels, num_classes):
    return (
        checks.labels("true_labels", true_labels, len(given_labels), num_classes),
        checks.labels("given_labels", given_labels, len(given_labels), num_classes),
    )


def _checked(transition, num_classes, rows_sum):
    transition = np.asarray(transition, float)
    if transition.shape != (num_classes, num_classes):
        raise ArgumentError(
            "transition",
            f"expected shape ({num_classes}, {num_classes}), received {transition.shape}",
        )
    if not (np.isfinite(transition).all() and (transition >= 0).all()):
        raise ArgumentError("transition", "expected probabilities, received others")
    if rows_sum and abs(transition.sum(axis=1) - 1).max() > 1e-3:
        row = np.argmax(abs(transition.sum(axis=1) - 1))
        raise ArgumentError(
            "transition",
            f"expected rows that sum to 1, one a true class; row {row} sums to "
            f"{transition[row].sum():.4g}",
        )
    return transition

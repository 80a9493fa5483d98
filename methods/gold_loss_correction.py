"""Gold loss correction, made for many wrong labels and a few right ones; not in Table I."""

import keras
import numpy as np
import tensorflow as tf

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.methods.loss_correction import LossCorrection
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase


class GoldCorrection:
    """A phase that learns from noisy and clean samples, once the clean ones have shown T.

    For a `NoisyLabelModel` with `start_weights`, from which that phase begins, and the variables
    `transition` and `clean_share`, as `GoldLossCorrection` has them.
    """

    begin_again = LossCorrection.begin_again

    def corrected_phase(self, name, start):
        """The `Phase` of this name that begins with this (0-based) epoch."""
        return Phase(
            name, start=start, with_meta=True, step=self.corrected_step, begin=self.begin_again,
            reads=("labeled", "meta"),
        )  # fmt: skip

    def learn_transition(self):
        """Assigns `transition` and `clean_share` by the clean data of the `fit` that runs.

        Row i of the transition is the mean prediction for the clean samples of class i, the
        identity's where there is none.
        """
        sums = np.zeros((self.num_classes, self.num_classes))
        counts = np.zeros((self.num_classes, 1))
        for predictions, labels in self.predictions("meta"):
            np.add.at(sums, labels, predictions)
            np.add.at(counts, labels, 1)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.eye(self.num_classes))
        self.transition.assign(means)
        self.clean_share.assign(counts.sum() / (counts.sum() + self.data_in_fit.num_labeled()))

    def corrected_step(self, noisy_batch, meta_batch):
        """A step on a noisy and a clean batch, by `transition` and `clean_share`."""
        (images, labels), (clean_images, clean_labels) = noisy_batch, meta_batch
        weights = self.classifier.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.logits(self.augment(images), training=True)
            regularization = self.regularization()
            clean_logits = self.logits(self.augment(clean_images), training=True)
            noisy = tf.reduce_mean(layers.forward_cross_entropy(labels, logits, self.transition))
            clean = tf.reduce_mean(layers.cross_entropy(clean_labels, clean_logits))
            loss = (1 - self.clean_share) * noisy + self.clean_share * clean
            objective = loss + regularization
        self.apply_gradients(self.optimizer, gradient(tape, objective, weights), weights)
        self.update_metrics(loss, labels, logits)


@keras.saving.register_keras_serializable("mln_keras")
class GoldLossCorrection(GoldCorrection, LossCorrection):
    """Measures on the clean samples how labels go wrong, then learns from noisy and clean ones.

    A first training, with cross-entropy on the noisy samples, estimates T: row i is the mean
    prediction for the clean samples of class i. The second starts from the same weights. Its loss
    is the mean over all samples of −log (p T)_y for noisy and of −log p_y for clean ones. As every
    noisy batch comes with a clean one, the clean mean is weighted by the share of clean samples.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`. Clean images are augmented too.
        warmup_epochs: epochs of the first training, at least 1.

    Attributes:
        transition: Ĉ of the paper, float variable (C, C). A class without a clean sample has the
            identity's row: its labels are taken as right.
        clean_share: share of the clean samples among all, a float variable.

    Raises:
        ArgumentError: without a first training.

    Reference: D. Hendrycks, M. Mazeika, D. Wilson and K. Gimpel, "Using Trusted Data to Train Deep
    Networks on Labels Corrupted by Severe Noise", NeurIPS 2018.
    """

    needs_meta = True
    chosen_from = 2
    flags = ("warmup_epochs",)

    def __init__(self, classifier, warmup_epochs, **options):
        checks.integer("warmup_epochs", warmup_epochs, 1)
        super().__init__(classifier, warmup_epochs, **options)
        self.clean_share = self.add_weight((), "zeros", trainable=False, name="clean_share")

    def phases(self):
        return Phase("warm-up"), self.corrected_phase("second training", self.warmup_epochs)

"""Gold loss correction, made for many wrong labels and a few right ones; not in Table I."""

import functools

import keras
import numpy as np
import tensorflow as tf

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.methods.loss_correction import LossCorrection
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase


@keras.saving.register_keras_serializable("mln_keras")
class GoldLossCorrection(LossCorrection):
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
        second = Phase(
            "second training", start=self.warmup_epochs, with_meta=True, begin=self.begin_again,
            reads=("labeled", "meta"), step=functools.partial(corrected_step, self),
        )  # fmt: skip
        return (Phase("warm-up"), second)

    def learn_transition(self):
        learn_transition(self)


def learn_transition(model):
    """Assigns `transition` and `clean_share` of a model by the clean data of the `fit` that runs.

    Row i of the transition is the mean prediction for the clean samples of class i, the identity's
    where there is none.
    """
    sums = np.zeros((model.num_classes, model.num_classes))
    counts = np.zeros((model.num_classes, 1))
    for predictions, labels in model.predictions("meta"):
        np.add.at(sums, labels, predictions)
        np.add.at(counts, labels, 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.eye(model.num_classes))
    model.transition.assign(means)
    model.clean_share.assign(counts.sum() / (counts.sum() + model.data_in_fit.num_labeled()))


def corrected_step(model, noisy_batch, meta_batch):
    """A step on a noisy and a clean batch, by `transition` and `clean_share` of the model."""
    (images, labels), (clean_images, clean_labels) = noisy_batch, meta_batch
    weights = model.classifier.trainable_variables
    with tf.GradientTape() as tape:
        logits = model.logits(model.augment(images), training=True)
        regularization = model.regularization()
        clean_logits = model.logits(model.augment(clean_images), training=True)
        noisy = tf.reduce_mean(layers.forward_cross_entropy(labels, logits, model.transition))
        clean = tf.reduce_mean(layers.cross_entropy(clean_labels, clean_logits))
        loss = (1 - model.clean_share) * noisy + model.clean_share * clean
        objective = loss + regularization
    model.apply_gradients(model.optimizer, gradient(tape, objective, weights), weights)
    model.update_metrics(loss, labels, logits)

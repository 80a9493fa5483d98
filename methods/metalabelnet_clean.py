"""MetaLabelNet whose classifier learns from the clean images too, not only its label head."""

import functools

import keras
import tensorflow as tf
from keras import ops

from mln_keras import MetaLabelNet
from mln_keras.data import checks
from mln_keras.layers import cross_entropy
from mln_keras.methods.fine_tune import tuning_rate
from mln_keras.methods.gold_loss_correction import corrected_step, learn_transition
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase

FINE_TUNING_RATE = 1e-2  # λ with which it begins, by `from_recipe`
LEAST = 1e-3  # probability that a given label has in Bayes' rule


@keras.saving.register_keras_serializable("mln_keras")
class MetaLabelNetClean(MetaLabelNet):
    """MetaLabelNet with what the clean images teach the classifier: three additions to the paper.

    Before phase 2 comes a training with gold loss correction, from the weights that the classifier
    had at first. T[i, j] is the mean probability of class j that the classifier had after its
    warm-up for the clean images of class i; the loss is −log (p T)_y of noisy and −log p_y of clean
    images, with the share of each (`GoldLossCorrection`).

    In phase 2 the soft label also sees the given label y, by Bayes' rule:
    ŷ_i ∝ m_φ(v)_i · T[i, y]. An image without a label takes the label head's alone. And the step of
    Eq. 13 takes clean_weight · cross-entropy of the augmented meta batch at θ, one more forward
    pass, which moves the running averages of batch norm if `meta_batch_norm`.

    A last phase fine-tunes: plain cross-entropy training on the augmented meta set.

    Without the first and the last of these, and with a clean_weight of 0, this is MetaLabelNet to
    the bit.

    Args:
        classifier, warmup_epochs: as `MetaLabelNet`; phase 2 begins with the epoch `warmup_epochs`.
        corrected_from: the training with gold loss correction begins with the epoch of this
            (0-based) number, at least 1, before `warmup_epochs`; None for no such phase.
        clean_weight: factor of the meta batch's cross-entropy in the step of θ, at least 0.
        fine_tune_from: the last phase begins with the epoch of this (0-based) number; None for no
            such phase.
        **options: as `MetaLabelNet`.

    Attributes:
        transition: T, float variable (C, C), saved with the model; the identity until it is known.

    Raises:
        ArgumentError: as `MetaLabelNet`, and for an argument outside its range.

    Example:

        model = MetaLabelNetClean(classifier, warmup_epochs=88, corrected_from=44)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), keras.optimizers.Adam(1e-2))
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=164)
    """

    flags = (*MetaLabelNet.flags, "clean_weight", "fine_tune_epochs")

    config_names = (
        *MetaLabelNet.config_names, "corrected_from", "clean_weight", "fine_tune_from",
    )  # fmt: skip

    def __init__(
        self,
        classifier,
        warmup_epochs,
        *,
        corrected_from=None,
        clean_weight=0.1,
        fine_tune_from=None,
        **options,
    ):
        super().__init__(classifier, warmup_epochs, **options)
        checks.at_least("clean_weight", clean_weight, 0)
        if corrected_from is not None:
            checks.integer("corrected_from", corrected_from, 1)
            checks.within("corrected_from", corrected_from, 1, warmup_epochs - 1, "warmup_epochs")
        if fine_tune_from is not None:
            checks.integer("fine_tune_from", fine_tune_from, warmup_epochs)
        self.corrected_from = corrected_from
        self.clean_weight = clean_weight
        self.fine_tune_from = fine_tune_from
        shape = (self.num_classes, self.num_classes)
        self.transition = self.add_weight(shape, "identity", trainable=False, name="transition")
        self.clean_share = self.add_weight((), "zeros", trainable=False, name="clean_share")
        is_corrected = corrected_from is not None
        self.start_weights = self.add_weight_copies("start") if is_corrected else []
        self.phase_2 = self.chosen_from = 3 if is_corrected else 2

    def phases(self):
        warmup, phase_2 = super().phases()
        phases = [warmup, phase_2]
        if self.corrected_from is not None:
            corrected = Phase(
                "corrected training", start=self.corrected_from, with_meta=True,
                step=functools.partial(corrected_step, self), begin=self._begin_corrected,
                reads=("labeled", "meta"),
            )  # fmt: skip
            phases.insert(1, corrected)
        if self.fine_tune_from is not None:
            tuning = Phase(
                "fine-tuning", start=self.fine_tune_from, samples="meta", step=warmup.step
            )
            phases.append(tuning)
        return tuple(phases)

    def _begin_corrected(self):
        learn_transition(self)
        self.restart(self.start_weights)

    @classmethod
    def from_recipe(cls, recipe, fine_tune_epochs=0):
        """How the command line trains this method.

        Args:
            recipe: `command.recipes.Recipe`.
            fine_tune_epochs: of the last phase.

        Returns:
            As `NoisyLabelModel.from_recipe`. The warm-up is the recipe's; the training with loss
            correction has as many epochs, and its learning rates are the recipe's from the first
            epoch on; phase 2 is the recipe's.
        """
        warmup = recipe.warmup_epochs
        options, epochs, recipe_s = super().from_recipe(recipe)
        if warmup:
            options |= {"corrected_from": warmup, "warmup_epochs": 2 * warmup}
        start = epochs + warmup

        def learning_rate_at(epoch):
            if epoch >= start:
                return tuning_rate(epoch - start, fine_tune_epochs, FINE_TUNING_RATE)
            return recipe_s(epoch if epoch < warmup else epoch - warmup)

        if fine_tune_epochs:
            options |= {"fine_tune_from": start}
        return options, start + fine_tune_epochs, learning_rate_at

    def soft_label_logits(self, features, given_labels, training=True):
        logits = super().soft_label_logits(features, given_labels, training)
        if self.corrected_from is None:
            return logits
        of_label = ops.log(ops.maximum(ops.transpose(self.transition), LEAST))  # row y: log T[:, y]
        is_given = ops.cast(given_labels >= 0, logits.dtype)[:, None]
        return logits + is_given * ops.take(of_label, ops.maximum(given_labels, 0), axis=0)

    def classifier_gradient(self, tape, objective, meta_batch):
        gradients = super().classifier_gradient(tape, objective, meta_batch)
        if not self.clean_weight:
            return gradients
        x_meta, y_meta = meta_batch
        θ = self.classifier.trainable_variables
        with tf.GradientTape() as clean_tape:
            logits = self.logits_at(θ, self.augment(x_meta), self.meta_batch_norm)
            loss = self.clean_weight * tf.reduce_mean(cross_entropy(y_meta, logits))
        return [a + b for a, b in zip(gradients, gradient(clean_tape, loss, θ), strict=True)]

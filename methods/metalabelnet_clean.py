"""MetaLabelNet whose classifier learns from the clean images too, not only its label head."""

import keras
import tensorflow as tf

from mln_keras import MetaLabelNet
from mln_keras.data import checks
from mln_keras.layers import cross_entropy
from mln_keras.methods.fine_tune import tuning_rate
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase

FINE_TUNING_RATE = 1e-2  # λ with which it begins, by `from_recipe`


@keras.saving.register_keras_serializable("mln_keras")
class MetaLabelNetClean(MetaLabelNet):
    """MetaLabelNet with two additions, neither of the paper.

    In phase 2 the step of Eq. 13 also takes clean_weight · cross-entropy of the augmented meta
    batch at θ. It is one more forward pass, and moves the running averages of batch norm if
    `meta_batch_norm`. With 0 this is MetaLabelNet to the bit.

    A third phase fine-tunes: plain cross-entropy training on the augmented meta set.

    Args:
        classifier, warmup_epochs: as `MetaLabelNet`.
        clean_weight: factor of the meta batch's cross-entropy in the step of θ, at least 0.
        fine_tune_from: the third phase begins with the epoch of this (0-based) number; None for no
            such phase.
        **options: as `MetaLabelNet`.

    Raises:
        ArgumentError: as `MetaLabelNet`, and for an argument outside its range.

    Example:

        model = MetaLabelNetClean(classifier, warmup_epochs=44, fine_tune_from=120)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), keras.optimizers.Adam(1e-2))
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=180)
    """

    flags = (*MetaLabelNet.flags, "clean_weight", "fine_tune_epochs")

    config_names = (*MetaLabelNet.config_names, "clean_weight", "fine_tune_from")

    def __init__(
        self, classifier, warmup_epochs, *, clean_weight=0.1, fine_tune_from=None, **options
    ):
        super().__init__(classifier, warmup_epochs, **options)
        checks.at_least("clean_weight", clean_weight, 0)
        if fine_tune_from is not None:
            checks.integer("fine_tune_from", fine_tune_from, warmup_epochs)
        self.clean_weight = clean_weight
        self.fine_tune_from = fine_tune_from

    def phases(self):
        fine_tuning = ()
        if self.fine_tune_from is not None:
            fine_tuning = (Phase("fine-tuning", start=self.fine_tune_from, samples="meta"),)
        return (*super().phases(), *fine_tuning)

    @classmethod
    def from_recipe(cls, recipe, fine_tune_epochs=0):
        """As `NoisyLabelModel.from_recipe`, and this many epochs of fine-tuning after it."""
        options, start, learning_rate_at = super().from_recipe(recipe)
        if not fine_tune_epochs:
            return options, start, learning_rate_at

        def with_fine_tuning(epoch):
            if epoch < start:
                return learning_rate_at(epoch)
            return tuning_rate(epoch - start, fine_tune_epochs, FINE_TUNING_RATE)

        return options | {"fine_tune_from": start}, start + fine_tune_epochs, with_fine_tuning

    def train_step(self, batch):
        if self.phase_in_training == 3:
            return self.run_step(self._warmup_step, batch)  # the same, on clean labels
        return super().train_step(batch)

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

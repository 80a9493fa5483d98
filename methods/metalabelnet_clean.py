"""MetaLabelNet whose classifier learns from the clean images too, not only its label head."""

import keras
import tensorflow as tf
from keras import ops

from mln_keras import MetaLabelNet
from mln_keras.data import checks
from mln_keras.layers import cross_entropy
from mln_keras.methods.fine_tune import tuning_rate
from mln_keras.methods.gold_loss_correction import GoldCorrection
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase

FINE_TUNING_RATE = 1e-2  # with which fine-tuning begins, by `from_recipe`
LEAST = 1e-3  # what Bayes' rule takes for a smaller entry of T


@keras.saving.register_keras_serializable("mln_keras")
class MetaLabelNetClean(GoldCorrection, MetaLabelNet):
    """MetaLabelNet, with a classifier that learns from the clean images directly as well.

    It is our own, not the paper's, in which the clean images only judge the soft labels. A training
    has up to four phases. Each begins with the epoch that an argument names, and the second and the
    fourth can be left out:

        0               warm-up             cross-entropy on the noisy labels
        corrected_from  corrected training  gold loss correction
        warmup_epochs   phase 2             MetaLabelNet's, with two additions
        fine_tune_from  fine-tuning         cross-entropy on the clean images alone, augmented

    Corrected training begins by measuring how labels go wrong: T[i, j] is the mean probability of
    class j that the warmed-up classifier gives the clean images of class i. Then the classifier
    goes back to its first weights. It learns from noisy images by −log (p T)_y and from clean ones
    by −log p_y, each weighted by their share of all images (`GoldLossCorrection`).

    Phase 2 adds to MetaLabelNet:

    - The soft label combines what the label head says of the image with what T says of its given
      label y, by Bayes' rule: ŷ_i ∝ m_φ(v)_i · max(T[i, y], 0.001). It is the head's alone for an
      image without a label, and where no corrected training has measured T.
    - The step of θ (Eq. 13) also follows clean_weight · the cross-entropy of the meta batch,
      augmented, at θ. That takes one more forward pass, which moves the running averages of batch
      norm if `meta_batch_norm`.

    With neither of the two phases and a clean_weight of 0, this is MetaLabelNet to the bit.

    Args:
        classifier, **options: as `MetaLabelNet`.
        warmup_epochs: phase 2 begins with the epoch of this (0-based) number.
        corrected_from: corrected training begins with the epoch of this number, at least 1 and
            below `warmup_epochs`; None for no such phase.
        clean_weight: weight of the meta batch's cross-entropy in phase 2, at least 0.
        fine_tune_from: fine-tuning begins with the epoch of this number, at least `warmup_epochs`;
            None for no such phase.

    Attributes:
        transition: T, float variable (C, C), saved with the model; the identity until it is known.
        clean_share: share of the clean images among all, a float variable; 0 until T is known.

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
        self.phase_2 = self.chosen_from = 2 if corrected_from is None else 3
        self.start_weights = [] if corrected_from is None else self.add_weight_copies("start")

    def phases(self):
        warmup, phase_2 = super().phases()
        phases = [warmup, phase_2]
        if self.corrected_from is not None:
            phases.insert(1, self.corrected_phase("corrected training", self.corrected_from))
        if self.fine_tune_from is not None:
            tuning = Phase("fine-tuning", self.fine_tune_from, warmup.step, samples="meta")
            phases.append(tuning)
        return tuple(phases)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """Warm-up and phase 2 are the recipe's, and its epochs of fine-tuning come last.

        Between warm-up and phase 2 corrected training has as many epochs as the warm-up; it begins
        with the recipe's first learning rate again. Fine-tuning has `tuning_rate`.
        """
        warmup, fine_tune_epochs = recipe.warmup_epochs, recipe.fine_tune_epochs or 0
        options, epochs, recipe_rate_at = super().from_recipe(recipe)
        if warmup:
            options |= {"corrected_from": warmup, "warmup_epochs": 2 * warmup}
        fine_tune_from = epochs + warmup
        if fine_tune_epochs:
            options |= {"fine_tune_from": fine_tune_from}

        def learning_rate_at(epoch):
            if epoch >= fine_tune_from:
                return tuning_rate(epoch - fine_tune_from, fine_tune_epochs, FINE_TUNING_RATE)
            return recipe_rate_at(epoch if epoch < warmup else epoch - warmup)

        return options, fine_tune_from + fine_tune_epochs, learning_rate_at

    def soft_label_logits(self, features, given_labels, training=True):
        """As `MetaLabelNet.soft_label_logits`, with Bayes' rule where T is known."""
        logits = super().soft_label_logits(features, given_labels, training)
        if self.corrected_from is None:
            return logits
        log_likelihood = ops.log(ops.maximum(ops.transpose(self.transition), LEAST))
        of_label = ops.take(log_likelihood, ops.maximum(given_labels, 0), axis=0)  # log T[:, y]
        is_given = ops.cast(given_labels >= 0, logits.dtype)[:, None]
        return logits + is_given * of_label

    def classifier_gradient(self, tape, objective, meta_batch):
        """As `MetaLabelNet.classifier_gradient`, with that of the meta batch's cross-entropy."""
        gradients = super().classifier_gradient(tape, objective, meta_batch)
        if not self.clean_weight:
            return gradients
        x_meta, y_meta = meta_batch
        θ = self.classifier.trainable_variables
        with tf.GradientTape() as clean_tape:
            logits = self.logits_at(θ, self.augment(x_meta), self.meta_batch_norm)
            loss = self.clean_weight * tf.reduce_mean(cross_entropy(y_meta, logits))
        return [a + b for a, b in zip(gradients, gradient(clean_tape, loss, θ), strict=True)]

"""MSLG: each training sample has a soft label of its own, learned by a meta-gradient."""

import keras
import tensorflow as tf
from keras import ops

from mln_keras import meta_gradient
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.layers import entropy, kl_divergence
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.methods.learned_labels import LearnsLabels
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase
from mln_keras.training.samples import rows_of


@keras.saving.register_keras_serializable("mln_keras")
class MSLG(LearnsLabels, CrossEntropy):
    """Cross-entropy first, then soft labels on which a step does best on the clean images.

    The soft label of a sample is softmax(s), where s is at first 10·onehot(given label); it stays
    from epoch to epoch. With p the prediction, and means over batch and classes, phase 2 does batch
    by batch:

    1. θ̂ = θ − α ∇_θ mean KL(p ‖ softmax(s))
    2. s ← s − β ∂/∂s of the cross-entropy of the meta batch at θ̂
    3. θ takes its step on mean KL(p ‖ softmax(s)) + entropy_weight · mean entropy(p), with the
       new s.

    The meta batch moves the running averages of batch norm, as in the authors' program.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        warmup_epochs: epochs of phase 1, cross-entropy; phase 2 begins with the epoch of this
            (0-based) number. Samples without a label take part in neither.
        inner_learning_rate: α.
        label_learning_rate: β.
        label_scale: what s is at the given label when phase 2 begins.
        entropy_weight: factor of the entropy loss.
        num_samples: as `training.samples.KeepsSamples`.

    Attributes:
        soft_label_logits: as `methods.learned_labels.LearnsLabels`, begun by phase 2.

    Raises:
        ArgumentError: as `training.model.NoisyLabelModel`, and for an argument outside its range.

    Example:

        model = MSLG(classifier, warmup_epochs=44)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9))
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=120)
        model.sample_soft_labels()  # (N, C), what the labels have become

    Reference: G. Algan and I. Ulusoy, "Meta Soft Label Generation for Noisy Labels", ICPR 2020.
    """

    second_order = needs_meta = True
    chosen_from = 2
    flags = ("warmup_epochs",)

    config_names = (
        *LearnsLabels.config_names, "warmup_epochs", "inner_learning_rate", "label_learning_rate",
        "label_scale", "entropy_weight",
    )  # fmt: skip

    def __init__(
        self,
        classifier,
        warmup_epochs,
        *,
        inner_learning_rate=0.5,
        label_learning_rate=4000.0,
        label_scale=10.0,
        entropy_weight=1.0,
        num_samples=None,
        **options,
    ):
        super().__init__(classifier, **options)
        checks.integer("warmup_epochs", warmup_epochs, 0)
        checks.positive("inner_learning_rate", inner_learning_rate)
        checks.positive("label_learning_rate", label_learning_rate)
        checks.positive("label_scale", label_scale)
        checks.at_least("entropy_weight", entropy_weight, 0)
        self.warmup_epochs = warmup_epochs
        self.inner_learning_rate = inner_learning_rate
        self.label_learning_rate = label_learning_rate
        self.label_scale = label_scale
        self.entropy_weight = entropy_weight
        self.meta_loss = keras.metrics.Mean("meta_loss")
        self.keep(num_samples)

    def phases(self):
        return (
            Phase("warm-up"),
            Phase(
                "phase 2", start=self.warmup_epochs, step=self._phase_2_step, with_meta=True,
                metrics=("meta_loss",), begin=self.begin_labels,
            ),
        )  # fmt: skip

    def _phase_2_step(self, noisy_batch, meta_batch):
        images, given_labels, rows = noisy_batch
        θ = self.classifier.trainable_variables
        s = rows_of(self.soft_label_logits, rows)
        with tf.GradientTape() as meta_tape:
            meta_tape.watch(s)
            with tf.GradientTape(persistent=True) as tape:
                logits = self.logits(self.augment(images), training=True)
                regularization = self.regularization()
                loss = self._mean(kl_divergence(logits, s))
            g = gradient(tape, loss, θ)
        meta_loss, (gradient_s,) = meta_gradient(
            self, meta_tape, g, [s], self.inner_learning_rate, meta_batch
        )
        s = self.step_labels(rows, s, gradient_s, self.label_learning_rate)
        with tape:  # entered again, it records on: f(x) stays the forward pass of above
            loss = self._mean(kl_divergence(logits, s))
            loss += self.entropy_weight * self._mean(entropy(logits))
            objective = loss + regularization
        self.apply_gradients(self.optimizer, gradient(tape, objective, θ), θ)

        self.meta_loss.update_state(meta_loss)
        self.update_metrics(loss, given_labels, logits)

    def sample_soft_labels(self):
        """What the labels have become, float32 array (N, C); rows sum to 1.

        Raises:
            ArgumentError: before phase 2 has begun.
        """
        if self._phase_now() == 1:
            raise ArgumentError("sample_soft_labels", "they begin in phase 2, not yet begun")
        return ops.convert_to_numpy(ops.softmax(self.soft_label_logits))

    def _mean(self, losses):
        """Over batch and classes, of losses (N,) that are sums over the classes."""
        return tf.reduce_mean(losses) / self.num_classes

"""PENCIL: each sample's label is a variable, trained with the network. Row "PENCIL" of Table I."""

import keras
import tensorflow as tf
from keras import ops

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.methods.learned_labels import LearnsLabels
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase
from mln_keras.training.samples import rows_of

PUBLISHED = {
    "stage_2_epoch": 70, "stage_3_epoch": 200, "compatibility_weight": 0.4, "entropy_weight": 0.1,
    "label_learning_rate": 600.0,
}  # fmt: skip
AS_RUN = {
    "stage_2_epoch": 21, "stage_3_epoch": 80, "compatibility_weight": 0.1, "entropy_weight": 0.8,
    "label_learning_rate": 400.0,
}  # fmt: skip
PUBLISHED_EPOCHS, AS_RUN_EPOCHS = 320, 120


@keras.saving.register_keras_serializable("mln_keras")
class Pencil(LearnsLabels):
    """Trains on the given labels, then classifier and labels together, then on the labels found.

    A sample's soft label is q = softmax(s), where s is at first 10 for its given class y, else 0.
    With the classifier's logits z and p = softmax(z), the losses are, as means over the batch:

        stage 1    CE(z, y)
        stage 2    KL(p ‖ q)/C + compatibility_weight · CE(q, y) + entropy_weight · H(p)/C
        stage 3    KL(p ‖ q)/C

    CE(q, y) takes q for logits, as the published program does; the paper writes −log q_y. In
    stage 2 the labels take a step too: s ← s − label_learning_rate · ∂L/∂s for the batch's samples.

    Where the classifier is sure of another class, KL/C and CE(q, y) hold q_y at about
    1 − 1/(C · compatibility_weight): no label of 10 classes changes its largest class with 0.4, and
    all can with 0.1.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        stage_2_epoch, stage_3_epoch: the (0-based) epochs with which the stages begin. None is 70
            and 200, as published for 320 epochs; as run it is 21 and 80, for 120.
        compatibility_weight, entropy_weight: α and β of the paper; None is 0.4 and 0.1, as run
            0.1 and 0.8.
        label_learning_rate: λ of the paper; None is 600, as run 400.
        as_run: whether None is what the MetaLabelNet authors ran. The losses are the same.
        num_samples: as `training.samples.KeepsSamples`.

    Raises:
        ArgumentError: for an argument outside its range. `fit` raises it for a tf.data.Dataset and
            for another number of samples than before.

    Example:

        model = Pencil(classifier)
        model.compile(keras.optimizers.SGD(0.06, momentum=0.9))
        model.fit((images, noisy_labels), epochs=320)
        model.sample_soft_labels()  # (N, C), what the labels have become

    Reference: K. Yi and J. Wu, "Probabilistic End-to-end Noise Correction for Learning with Noisy
    Labels", CVPR 2019.
    """

    flags = ("as_run",)

    config_names = (*LearnsLabels.config_names, *PUBLISHED, "as_run")

    def __init__(
        self,
        classifier,
        *,
        stage_2_epoch=None,
        stage_3_epoch=None,
        compatibility_weight=None,
        entropy_weight=None,
        label_learning_rate=None,
        as_run=False,
        num_samples=None,
        **options,
    ):
        super().__init__(classifier, **options)
        given = {
            "stage_2_epoch": stage_2_epoch, "stage_3_epoch": stage_3_epoch,
            "compatibility_weight": compatibility_weight, "entropy_weight": entropy_weight,
            "label_learning_rate": label_learning_rate,
        }  # fmt: skip
        for name, default in (AS_RUN if as_run else PUBLISHED).items():
            setattr(self, name, default if given[name] is None else given[name])
        checks.integer("stage_2_epoch", self.stage_2_epoch, 0)
        checks.integer("stage_3_epoch", self.stage_3_epoch, 0)
        if self.stage_3_epoch < self.stage_2_epoch:
            raise ArgumentError(
                "stage_3_epoch",
                f"expected at least stage_2_epoch={self.stage_2_epoch}, received "
                f"{self.stage_3_epoch}",
            )
        checks.at_least("compatibility_weight", self.compatibility_weight, 0)
        checks.at_least("entropy_weight", self.entropy_weight, 0)
        checks.positive("label_learning_rate", self.label_learning_rate)
        self.as_run = as_run
        self.keep(num_samples)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """The stages in proportion to the recipe's epochs; λ is the recipe's."""
        options, of = (AS_RUN, AS_RUN_EPOCHS) if recipe.as_run else (PUBLISHED, PUBLISHED_EPOCHS)
        stages = {
            name: round(options[name] * recipe.epochs / of)
            for name in ("stage_2_epoch", "stage_3_epoch")
        }
        return super().from_recipe(recipe)[0] | stages, recipe.epochs, recipe.learning_rate_at

    def phases(self):
        return (
            Phase("stage 1"),
            Phase("stage 2", start=self.stage_2_epoch, begin=self.begin_labels),
            Phase("stage 3", start=self.stage_3_epoch),
        )

    def sample_soft_labels(self):
        """What the labels have become, float32 array (num_samples, C); rows sum to 1.

        A sample without a label has 1/C for each class.

        Raises:
            ArgumentError: before `fit`.
        """
        if self._phase_now() > 1:
            return ops.convert_to_numpy(ops.softmax(self.soft_label_logits))
        if self.given_labels is None:
            raise ArgumentError("sample_soft_labels", "the labels change in fit, not yet called")
        return ops.convert_to_numpy(ops.softmax(self.first_label_logits()))

    def step(self, batch):
        images, labels, rows = batch
        θ, s = self.classifier.trainable_variables, rows_of(self.soft_label_logits, rows)
        with tf.GradientTape() as tape:
            tape.watch(s)
            logits = self.logits(self.augment(images), training=True)
            loss = tf.reduce_mean(self._sample_losses(labels, logits, s))
            objective = loss + self.regularization()
        *by_θ, by_s = gradient(tape, objective, [*θ, s])
        self.apply_gradients(self.optimizer, by_θ, θ)
        if self.phase_in_training == 2:
            self.step_labels(rows, s, by_s, self.label_learning_rate)
        self.update_metrics(loss, labels, logits)

    def _sample_losses(self, labels, logits, s):
        """The loss of the stage in training, float32 (N,)."""
        if self.phase_in_training == 1:
            return layers.cross_entropy(labels, logits)
        divergence = layers.kl_divergence(logits, s) / self.num_classes
        if self.phase_in_training == 3:
            return divergence
        compatibility = layers.twice_softmax_cross_entropy(labels, s)
        entropy = layers.entropy(logits) / self.num_classes
        return (
            divergence + self.compatibility_weight * compatibility + self.entropy_weight * entropy
        )

"""Joint Optimization: the labels become what the network has said lately, and it starts again.

Row "Joint Opt." of Table I.
"""

import math

import keras
import tensorflow as tf
from keras import ops

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.training import replicas
from mln_keras.training.model import gradient
from mln_keras.training.phases import Phase
from mln_keras.training.samples import KeepsSamples, rows_of, write_rows

PUBLISHED_EPOCHS = 320  # of both trainings


@keras.saving.register_keras_serializable("mln_keras")
class JointOptimization(KeepsSamples):
    """Trains on labels that follow the classifier's predictions, then anew on the labels it found.

    With logits z and p = softmax(z), the loss of the first training is

        mean_N CE(z, t) + prior_weight · KL(uniform ‖ mean_N p) + entropy_weight · mean_N H(p).

    The label t is at first the given one, y. From `label_epoch` on it is the mean of the p that the
    sample had in the training steps of its last `averaged_epochs` epochs. An epoch that it sat out
    does not count, and while it has no p at all, t stays y. The second training starts from the
    weights that the classifier had when it was passed. Its loss is mean_N CE(z, t) alone; t stays
    as the first one left it.

    These p are a variable of num_samples · averaged_epochs · C floats, on the GPU if there is one:
    20 MB for 50,000 samples, 10 epochs and 10 classes. It is saved with the weights.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        label_epoch: the (0-based) epoch from which on the labels change.
        first_epochs: how many epochs the first training has; those after them are the second.
        averaged_epochs: of how many epochs t is the mean.
        prior_weight, entropy_weight: factors of the loss, published for 70 % uniform noise. For
            40 % class-dependent noise they are 0.8 and 0.4.
        as_run: the loss of the MetaLabelNet authors' program, with which labels never change and
            there is one training: mean_N CE(z, y) − prior_weight · mean_C log mean_N p −
            entropy_weight · mean_N Σ_c p_c log softmax(p)_c.
        num_samples: as `training.samples.KeepsSamples`.

    Raises:
        ArgumentError: for an argument outside its range. `fit` raises it for a tf.data.Dataset,
            unless `as_run`, and for another number of samples than before.

    Example:

        model = JointOptimization(classifier)
        model.compile(keras.optimizers.SGD(0.08, momentum=0.9))
        model.fit((images, noisy_labels), epochs=320)
        model.sample_soft_labels()  # (N, C), what the labels have become

    Reference: D. Tanaka, D. Ikami, T. Yamasaki, and K. Aizawa, "Joint Optimization Framework for
    Learning with Noisy Labels", CVPR 2018.
    """

    flags = ("as_run",)

    config_names = (
        *KeepsSamples.config_names, "label_epoch", "first_epochs", "averaged_epochs",
        "prior_weight", "entropy_weight", "as_run",
    )  # fmt: skip

    def __init__(
        self,
        classifier,
        *,
        label_epoch=70,
        first_epochs=200,
        averaged_epochs=10,
        prior_weight=1.2,
        entropy_weight=0.8,
        as_run=False,
        num_samples=None,
        **options,
    ):
        super().__init__(classifier, **options)
        checks.integer("label_epoch", label_epoch, 0)
        checks.integer("first_epochs", first_epochs, 1)
        if first_epochs < label_epoch:
            raise ArgumentError(
                "first_epochs",
                f"expected at least label_epoch={label_epoch}, received {first_epochs}",
            )
        checks.integer("averaged_epochs", averaged_epochs, 1)
        checks.at_least("prior_weight", prior_weight, 0)
        checks.at_least("entropy_weight", entropy_weight, 0)
        self.label_epoch = label_epoch
        self.first_epochs = first_epochs
        self.averaged_epochs = averaged_epochs
        self.prior_weight = prior_weight
        self.entropy_weight = entropy_weight
        self.as_run = as_run
        self.keeps_samples = not as_run
        if not as_run:
            self.initial_weights = self.add_weight_copies("initial")
            self.keep(num_samples)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """Both trainings together take the recipe's epochs, in the published proportion.

        λ stays at its first value in the first training, as published; the second has the
        recipe's λ, whose drops come sooner as it is shorter.
        """
        if recipe.as_run:
            return super().from_recipe(recipe)
        share = recipe.epochs / PUBLISHED_EPOCHS
        first_epochs = max(1, round(200 * share))

        def learning_rate_at(epoch):
            into_second, second_epochs = epoch - first_epochs, recipe.epochs - first_epochs
            if into_second < 0:
                return recipe.learning_rate
            return recipe.learning_rate_at(into_second * recipe.epochs // second_epochs)

        options = {"label_epoch": round(70 * share), "first_epochs": first_epochs}
        return options, recipe.epochs, learning_rate_at

    def phases(self):
        if self.as_run:
            return (Phase("training"),)
        return (
            Phase("given labels"),
            Phase("own labels", start=self.label_epoch),
            Phase(
                "second training", start=self.first_epochs,
                begin=lambda: self.restart(self.initial_weights),
            ),
        )  # fmt: skip

    def add_sample_weights(self, num_samples):
        # A row's first entry is the sample's last p. Entries not yet filled are zeros.
        shape = (num_samples, self.averaged_epochs, self.num_classes)
        self.last_predictions = self.add_sample_weight(shape, "last_predictions")

    def sample_soft_labels(self):
        """What the labels have become, float32 array (num_samples, C); rows sum to 1.

        A sample that has been in no batch, as one without a label, has 1/C for each class.

        Raises:
            ArgumentError: before `fit`, and where labels never change.
        """
        if self.as_run:
            raise ArgumentError("sample_soft_labels", "as_run=True leaves the labels as they are")
        if self.num_samples is None:
            raise ArgumentError("sample_soft_labels", "the labels change in fit, not yet called")
        uniform = ops.full((self.num_samples, self.num_classes), 1 / self.num_classes)
        return ops.convert_to_numpy(_means(self.last_predictions, otherwise=uniform))

    def step(self, batch):
        images, labels, *rows = batch  # as run there are no rows, and the phase is always 1
        is_first = self.phase_in_training < 3
        weights = self.classifier.trainable_variables
        targets = ops.one_hot(labels, self.num_classes, dtype=keras.config.floatx())
        if rows:
            predictions = rows_of(self.last_predictions, *rows)
        if self.phase_in_training > 1:
            targets = _means(predictions, otherwise=targets)
        with tf.GradientTape() as tape:
            logits = self.logits(self.augment(images), training=True)
            loss = tf.reduce_mean(layers.soft_cross_entropy(targets, logits))
            if is_first:
                loss += self._penalty(logits)
            objective = loss + self.regularization()
        self.apply_gradients(self.optimizer, gradient(tape, objective, weights), weights)
        if rows and is_first:
            newest = ops.softmax(logits)[:, None]
            predictions = ops.concatenate([newest, predictions[:, :-1]], axis=1)
            write_rows(self.last_predictions, *rows, predictions)
        self.update_metrics(loss, labels, logits)

    def _penalty(self, logits):
        """What the loss has besides the cross-entropy."""
        prior = layers.prior_divergence(logits, _of_all_replicas)
        entropy = layers.entropy(logits)
        if self.as_run:
            p = ops.softmax(logits)
            prior += math.log(self.num_classes)
            entropy = layers.soft_cross_entropy(p, p)
        return self.prior_weight * prior + self.entropy_weight * tf.reduce_mean(entropy)


def _of_all_replicas(log_means):
    """log mean p (C,) of the replicas' batch, of log mean p of this one's share.

    The gradient is such that its mean over the replicas is that of one loss of the whole batch.
    """
    if replicas.count() == 1:
        return log_means
    own = tf.stop_gradient(log_means)
    every, _ = replicas.gather_over_replicas(own[None])
    of_all = ops.logsumexp(every, axis=0) - math.log(replicas.count())
    return of_all + ops.exp(own - of_all) * (log_means - own)


def _means(predictions, otherwise):
    """The mean of the distributions (N, epochs, C) over the epochs that are not zeros; (N, C)."""
    total = ops.sum(predictions, axis=1)
    count = ops.sum(total, axis=-1, keepdims=True)  # each distribution sums to 1
    return ops.where(count > 0, total / ops.where(count > 0, count, 1), otherwise)

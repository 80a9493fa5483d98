"""MLNT: meta-learning based noise-tolerant training, which needs no clean images."""

import keras
import tensorflow as tf
from keras import ops

from mln_keras.data import checks
from mln_keras.layers import cross_entropy
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.training import keras_private
from mln_keras.training.classifier import find_features
from mln_keras.training.model import assign_all, gradient
from mln_keras.training.phases import Phase

CHANGED_SHARE = 0.5  # of the labels in a synthetic set
RAMP_UP_DECAY = 0.99  # of the running mean, while the consistency loss ramps up


@keras.saving.register_keras_serializable("mln_keras")
class MLNT(CrossEntropy):
    """A student whose predictions are to stay the same after a step on other, plausible labels.

    Three networks train. First a mentor, by cross-entropy. Then the student, from the weights that
    the classifier had when it was passed. After `delay_epochs` epochs of cross-entropy it has a
    teacher, and its loss on a batch x with labels y is

        CE(f_θ(x), y) + w/M Σ_m mean_NC t (log t − log f_θ_m(x)),   θ_m = θ − η ∇_θ CE(f_θ(x), y_m),

    with the gradient through θ_m, and the mean over batch and classes.

    - y_m is y in which half of the samples, drawn anew for each m, have the label of one of their
      nearest neighbours in the mentor's features within the batch.
    - t is the teacher's prediction. Its weights are the running mean of θ; it has running averages
      of batch norm of its own. Once there is a teacher, it predicts, is evaluated and exported.
    - Over the first `ramp_up_steps` steps, u from 0 to 1, w = exp(−5(1 − u)²) and the mean decays
      by 0.99 a step; then w = 1 and the decay is `decay`.

    A step costs about thirty times one of cross-entropy. The forward passes at θ_m move no running
    averages of batch norm; in the authors' program they do. With tf.distribute each replica takes
    the steps to θ_m on its own share.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`. `classifier` is the student.
        mentor_epochs: the student begins with the epoch of this (0-based) number.
        inner_learning_rate: η; None is 0.02, with `as_run` 0.2.
        label_sets: M.
        neighbors: how many samples are nearest.
        decay: of the running mean, in [0, 1].
        delay_epochs: as above.
        ramp_up_steps: as above, 0 for none; not used with `as_run`.
        feature_extractor: as `mln_keras.MetaLabelNet`.
        as_run: as the authors of MetaLabelNet ran it: no ramp-up, and the student is evaluated.

    Raises:
        ArgumentError: as `training.model.NoisyLabelModel`, for a classifier without findable
            features, and for an argument outside its range.

    Example:

        model = MLNT(classifier, mentor_epochs=120)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9))
        model.fit((images, noisy_labels), epochs=240)

    Reference: J. Li, Y. Wong, Q. Zhao and M. Kankanhalli, "Learning to Learn from Noisy Labeled
    Data", CVPR 2019, and their program.
    """

    second_order = True
    chosen_from = 2
    flags = ("as_run",)

    config_names = (
        *CrossEntropy.config_names, "mentor_epochs", "inner_learning_rate", "label_sets",
        "neighbors", "decay", "delay_epochs", "ramp_up_steps", "feature_extractor", "as_run",
    )  # fmt: skip

    def __init__(
        self,
        classifier,
        mentor_epochs,
        *,
        inner_learning_rate=None,
        label_sets=10,
        neighbors=10,
        decay=0.999,
        delay_epochs=2,
        ramp_up_steps=1500,
        feature_extractor=None,
        as_run=False,
        **options,
    ):
        super().__init__(classifier, **options)
        if inner_learning_rate is None:
            inner_learning_rate = 0.2 if as_run else 0.02
        checks.positive("inner_learning_rate", inner_learning_rate)
        checks.within("decay", decay, 0, 1, "a running mean")
        checks.integer("mentor_epochs", mentor_epochs, 0)
        checks.integer("delay_epochs", delay_epochs, 0)
        checks.integer("ramp_up_steps", ramp_up_steps, 0)
        checks.integer("label_sets", label_sets, 1)
        checks.integer("neighbors", neighbors, 1)
        self.mentor_epochs = mentor_epochs
        self.inner_learning_rate = inner_learning_rate
        self.label_sets = label_sets
        self.neighbors = neighbors
        self.decay = decay
        self.delay_epochs = delay_epochs
        self.ramp_up_steps = ramp_up_steps
        self.feature_extractor = feature_extractor
        self.as_run = as_run
        self._features, _ = find_features(classifier, feature_extractor, self.image_shape)
        self.mentor = self.add_weight_copies("mentor")
        # Until there is a teacher, these are the weights from which the student starts.
        self.teacher = self.add_weight_copies("teacher")
        self.teacher_steps = self.add_weight((), "zeros", trainable=False, name="teacher_steps")
        self.consistency_loss = keras.metrics.Mean("consistency_loss")

    def phases(self):
        return (
            Phase("mentor"),
            Phase("student", start=self.mentor_epochs, begin=self._begin_student),
            Phase(
                "student with teacher", start=self.mentor_epochs + self.delay_epochs,
                step=self._consistent_step, metrics=("consistency_loss",),
                begin=lambda: assign_all(self.teacher, self.classifier.weights),
            ),
        )  # fmt: skip

    def _begin_student(self):
        assign_all(self.mentor, self.classifier.weights)
        self.restart(self.teacher)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """The recipe's epochs and learning rates twice: for the mentor and for the student."""
        options = super().from_recipe(recipe)[0] | {"mentor_epochs": recipe.epochs}
        return options, 2 * recipe.epochs, lambda e: recipe.learning_rate_at(e % recipe.epochs)

    def _consistent_step(self, batch):
        images, labels = batch
        θ = self.classifier.trainable_variables
        x = self.augment(images)
        weight = self._move_teacher()
        log_t = ops.log_softmax(self._teacher_logits(x))
        label_sets = self.synthetic_labels(labels, self.features_at(self.mentor, x))
        consistency_loss, *by_consistency = self._consistency(x, log_t, label_sets)
        with tf.GradientTape() as tape:
            logits = self.logits(x, training=True)
            loss = tf.reduce_mean(cross_entropy(labels, logits))
            objective = loss + self.regularization()
        by_labels = gradient(tape, objective, θ)
        gradients = [a + weight * b for a, b in zip(by_labels, by_consistency, strict=True)]
        self.apply_gradients(self.optimizer, gradients, θ)
        self.consistency_loss.update_state(consistency_loss)
        self.update_metrics(loss, labels, logits)

    def _consistency(self, x, log_t, label_sets):
        """The mean over the label sets, int32 (M, N), of what `_distance` returns."""

        def add(sums, labels):
            return [a + b for a, b in zip(sums, self._distance(x, log_t, labels), strict=True)]

        θ = self.classifier.trainable_variables
        zeros = [tf.zeros((), log_t.dtype), *map(tf.zeros_like, θ)]
        sums = tf.foldl(add, label_sets, zeros, parallel_iterations=1)
        return [total / self.label_sets for total in sums]

    def _distance(self, x, log_t, labels):
        """mean_NC t (log t − log f_θ_m(x)), θ_m by these labels, and its gradient by θ; a list.

        By the chain rule the gradient through θ_m is v − η (∂/∂θ ∇_θ CE)ᵀ v, v that by θ_m.
        """
        θ, η = self.classifier.trainable_variables, self.inner_learning_rate
        with tf.GradientTape() as outer_tape:
            with tf.GradientTape() as tape:
                with keras_private.twice_differentiable_batch_norm(self.classifier):
                    logits = self.logits_at(θ, x, moves_batch_norm=False)
                loss = tf.reduce_mean(cross_entropy(labels, logits))
            g = gradient(tape, loss, θ)
        θ_m = [w - η * d for w, d in zip(θ, g, strict=True)]
        with tf.GradientTape() as tape_at_θ_m:
            tape_at_θ_m.watch(θ_m)
            log_p = ops.log_softmax(self.logits_at(θ_m, x, moves_batch_norm=False))
            distance = tf.reduce_mean(ops.exp(log_t) * (log_t - log_p))
        v = gradient(tape_at_θ_m, distance, θ_m)
        through_g = gradient(outer_tape, g, θ, output_gradients=[-η * d for d in v])
        return [distance, *map(tf.add, v, through_g)]

    def synthetic_labels(self, labels, features):
        """The sets of labels for the steps to θ_m, by draws that seed and step decide.

        Args:
            labels: int32 (N,).
            features: float32 (N, F), in which neighbours are near each other.

        Returns:
            int32 (M, N): each row is labels in which half of the samples have the label of one of
            their nearest other samples.
        """
        differences = features[:, None] - features[None]
        distances = ops.sum(ops.square(differences), axis=-1)
        count = ops.shape(labels)[0]
        distances = tf.linalg.set_diag(distances, -tf.ones(count, distances.dtype))
        nearest = tf.math.top_k(-distances, tf.minimum(self.neighbors + 1, count)).indices
        others = tf.shape(nearest)[1] - 1  # but the first, which is the sample itself

        step = tf.cast(self.optimizer.iterations, tf.int32)
        draws = tf.random.stateless_uniform((2, self.label_sets, count), seed=(self.seed, step))
        column = 1 + tf.cast(draws[0] * tf.cast(others, tf.float32), tf.int32)
        column = tf.minimum(column, others)  # of a batch of one it is the sample itself
        neighbor = tf.transpose(tf.gather(nearest, tf.transpose(column), batch_dims=1))
        rank = tf.argsort(tf.argsort(draws[1]))
        is_changed = rank < tf.cast(CHANGED_SHARE * tf.cast(count, tf.float32), tf.int32)
        return tf.where(is_changed, tf.gather(labels, neighbor), labels)

    def _move_teacher(self):
        """Takes θ into the running mean; returns w, the weight of the consistency loss."""
        ramp_up_steps = 0 if self.as_run else self.ramp_up_steps
        self.teacher_steps.assign_add(1)
        step = ops.convert_to_tensor(self.teacher_steps)
        ramps_up = step <= ramp_up_steps
        decay = ops.where(ramps_up, min(RAMP_UP_DECAY, self.decay), self.decay)
        for weight, mean in zip(self.classifier.weights, self.teacher, strict=True):
            if weight.trainable:
                share = ops.cast(decay, weight.dtype)
                mean.assign(share * mean + (1 - share) * weight)
        u = ops.minimum(step / max(ramp_up_steps, 1), 1.0)
        return ops.exp(-5 * (1 - u) ** 2)

    def _teacher_logits(self, x):
        """In training mode; moves the teacher's running averages of batch norm, not θ's."""
        means = dict(zip(map(id, self.classifier.weights), self.teacher, strict=True))
        with self.weights_as(self.teacher) as scope:
            logits = self.logits(x, training=True)
        for state in self.classifier.non_trainable_variables:
            new = scope.get_current_value(state)
            if new is not None:
                means.get(id(state), state).assign(new)
        return logits

    def logits(self, images, training):
        if training or self.as_run:
            return super().logits(images, training)
        has_teacher = ops.convert_to_tensor(self.teacher_steps) > 0
        both = zip(self.classifier.weights, self.teacher, strict=True)
        with self.weights_as([ops.where(has_teacher, mean, weight) for weight, mean in both]):
            return super().logits(images, training)

    def replica_states(self):
        both = zip(self.classifier.weights, self.teacher, strict=True)
        of_teacher = [mean for weight, mean in both if not weight.trainable]
        return [*super().replica_states(), *of_teacher]

    def inference_variables(self):
        return [] if self.as_run else [*self.teacher, self.teacher_steps]

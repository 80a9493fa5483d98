"""Co-teaching: two networks, each picks the samples that the other one learns from.

Row "Co-Teaching" of Table I.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mln_keras import layers
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.training.classifier import classifier_shapes
from mln_keras.training.model import NoisyLabelModel, gradient
from mln_keras.training.phases import Phase
from mln_keras.training.replicas import gather_over_replicas, mean_over_replicas


@keras.saving.register_keras_serializable("mln_keras")
class CoTeaching(NoisyLabelModel):
    """Trains two classifiers, each on the samples of a batch on which the other's loss is small.

    Of a batch of B each network picks the ⌊(1 − f)·B⌋ samples (at least one) with its smallest
    cross-entropy, and the other takes a step on the mean of its own cross-entropy over them. Both
    see the same augmented images. The forgotten share f rises linearly from 0 to the noise rate in
    the first `ramp_epochs` epochs. One optimizer trains both networks, each weight with a state of
    its own.

    The first network, `classifier`, predicts, is evaluated and exported, and its loss and metrics
    are reported. To choose the better of two takes labels to choose by; both are attributes.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        noise_rate: the share of wrong labels, in [0, 1], estimated where it is not known.
        ramp_epochs: in how many epochs f rises.
        second_classifier: the other network, a Keras model like `classifier`; None is a clone of it
            with weights drawn anew, which takes a functional or Sequential one.
        as_run: as the MetaLabelNet authors ran it: f rises to 0.725, then is 0.2, whatever the
            noise rate; the picks are by −log softmax(p)_y, with p the softmax of the logits in
            inference mode.

    Raises:
        ArgumentError: for an argument outside its range, and for a second network that is the
            first, that cannot be cloned, or that would start from the same weights.

    Example:

        model = CoTeaching(classifier, noise_rate=0.4)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit((images, noisy_labels), epochs=200)
        model.predict(images), model.second_classifier  # of the first network; the other one

    Reference: B. Han, Q. Yao, X. Yu, G. Niu, M. Xu, W. Hu, I. Tsang, and M. Sugiyama, "Co-teaching:
    Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018, Algorithm 1.
    """

    flags = ("as_run",)

    config_names = (*NoisyLabelModel.config_names, "noise_rate", "ramp_epochs", "as_run")

    def __init__(
        self,
        classifier,
        noise_rate,
        *,
        ramp_epochs=10,
        second_classifier=None,
        as_run=False,
        **options,
    ):
        super().__init__(classifier, **options)
        checks.within("noise_rate", noise_rate, 0, 1, "the share of wrong labels")
        checks.integer("ramp_epochs", ramp_epochs, 1)
        self.noise_rate = noise_rate
        self.ramp_epochs = ramp_epochs
        self.as_run = as_run
        if second_classifier is None:
            second_classifier = _clone(classifier)
        _check_second(second_classifier, classifier)
        self.second_classifier = second_classifier
        # In float64, in which (1 − f)·B is what the published program makes of it.
        self.forgotten = self.add_weight(
            (), "zeros", dtype="float64", trainable=False, autocast=False, name="forgotten"
        )

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """f rises in a twelfth of the epochs, in 10 of 120, to the share that the splits have.

        Raises:
            ArgumentError: where nobody knows that share; as run it is not needed.
        """
        options, epochs, learning_rate_at = super().from_recipe(recipe)
        options["ramp_epochs"] = max(1, recipe.epochs // 12)
        is_unknown = recipe.noise == "own" if splits is None else splits.noise_ratio is None
        if is_unknown and not recipe.as_run:
            raise ArgumentError(
                "method",
                "co_teaching needs the share of wrong labels, which nobody knows here; from Python "
                "give CoTeaching an estimate, noise_rate",
            )
        if splits is not None:
            options["noise_rate"] = splits.noise_ratio or 0.0
        return options, epochs, learning_rate_at

    def get_config(self):
        second = keras.saving.serialize_keras_object(self.second_classifier)
        return super().get_config() | {"second_classifier": second}

    def phases(self):
        return (Phase("training"),)

    def optimized_weights(self):
        return self.classifier.trainable_variables + self.second_classifier.trainable_variables

    def other_layers(self):
        return [self.second_classifier]

    def begin_epoch(self, epoch):
        self.forgotten.assign(self.forgotten_at(epoch))

    def forgotten_at(self, epoch):
        """f in the (0-based) epoch."""
        rises_to, then = (0.725, 0.2) if self.as_run else (self.noise_rate, self.noise_rate)
        if epoch < self.ramp_epochs:
            return np.linspace(0, rises_to, self.ramp_epochs)[epoch]
        return then

    def step(self, batch):
        images, labels = batch
        images = self.augment(images)
        weights = self.optimized_weights()
        if self.as_run:
            in_inference = self._logits_of_both(images, training=False)
            ranked = [layers.twice_softmax_cross_entropy(labels, z) for z in in_inference]
        with tf.GradientTape() as tape:
            logits = self._logits_of_both(images, training=True)
            losses = [layers.cross_entropy(labels, z) for z in logits]
            by_first, by_second = map(self._smallest, ranked if self.as_run else losses)
            sizes = mean_over_replicas([ops.sum(by_second), ops.sum(by_first)])
            first = ops.sum(by_second * losses[0]) / sizes[0]
            second = ops.sum(by_first * losses[1]) / sizes[1]
            objective = first + second + self.regularization()
        self.apply_gradients(self.optimizer, gradient(tape, objective, weights), weights)
        self.update_metrics(first, labels, logits[0])

    def _logits_of_both(self, images, training):
        images = ops.cast(images, keras.config.floatx())
        second = self.second_classifier(images, training=training)
        return self.logits(images, training), ops.cast(second, keras.config.floatx())

    def regularization(self):
        second = (ops.cast(loss, keras.config.floatx()) for loss in self.second_classifier.losses)
        return super().regularization() + sum(second)

    def _smallest(self, losses):
        """1 for each of the ⌊(1 − f)·B⌋ smallest losses (B,), 0 for the others; float32 (B,).

        On a replica these are its share of the batch's.
        """
        every, start = gather_over_replicas(tf.stop_gradient(losses))
        size = ops.cast(ops.shape(every)[0], "float64")
        count = ops.maximum(ops.floor((1 - self.forgotten) * size), 1)
        ranks = ops.argsort(ops.argsort(every))[start : start + ops.shape(losses)[0]]
        return ops.cast(ops.cast(ranks, "float64") < count, keras.config.floatx())


def _clone(classifier):
    """The same network with weights drawn anew."""
    try:
        second = keras.models.clone_model(classifier)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ArgumentError(
            "second_classifier", "needed, as a subclassed classifier cannot be cloned"
        ) from error
    both = zip(classifier.trainable_variables, second.trainable_variables, strict=True)
    if all(np.array_equal(a, b) for a, b in both):
        raise ArgumentError(
            "second_classifier",
            "needed, as a clone of the classifier starts from the same weights: its initializers "
            "have seeds, so both networks would stay the same",
        )
    return second


def _check_second(second, classifier):
    if second is classifier:
        raise ArgumentError("second_classifier", "expected another network than the classifier")
    try:
        shapes, expected = classifier_shapes(second), classifier_shapes(classifier)
    except ArgumentError as error:
        raise ArgumentError("second_classifier", error.text) from error
    if shapes != expected:
        raise ArgumentError(
            "second_classifier",
            f"expected images {expected[0]} and {expected[1]} classes, as the classifier has, "
            f"received {shapes[0]} and {shapes[1]}",
        )

"""Meta-Weight-Net: a small network learns from clean images how much each loss counts."""

import functools

import keras
import tensorflow as tf
from keras import ops

from mln_keras import meta_gradient
from mln_keras.data import checks
from mln_keras.layers import cross_entropy
from mln_keras.layers.label_head import uniform_initializers
from mln_keras.training.model import NoisyLabelModel, gradient
from mln_keras.training.phases import Phase


@keras.saving.register_keras_serializable("mln_keras")
class MetaWeightNet(NoisyLabelModel):
    """Weights the cross-entropy of each sample by a function of that cross-entropy.

    With l_i the cross-entropy of sample i with its given label, the weight is w_i = σ(V(l_i)), V a
    perceptron with one hidden layer of ReLUs, to which l_i is a number without a gradient. Batch by
    batch:

    1. θ̂ = θ − λ ∇_θ mean_i(w_i l_i), λ the classifier's learning rate of the moment.
    2. The cross-entropy of the meta batch at θ̂ gives, through θ̂, the gradient for a step of V.
    3. With the weights of the new V θ takes its step on mean_i(w_i l_i).

    There is no warm-up. The meta batch is not augmented, and does not move the running averages of
    batch norm, as θ̂ and its averages are thrown away.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        hidden_units: of V, at least 1.

    Raises:
        ArgumentError: as `training.model.NoisyLabelModel`, and for no hidden unit.

    Example:

        model = MetaWeightNet(classifier)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9))  # and Adam, 1e-3, for V
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=120)

    Reference: J. Shu, Q. Xie, L. Yi, Q. Zhao, S. Zhou, Z. Xu and D. Meng, "Meta-Weight-Net:
    Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019, Algorithm 1.
    """

    second_order = needs_meta = True

    config_names = (*NoisyLabelModel.config_names, "hidden_units")

    def __init__(self, classifier, *, hidden_units=100, **options):
        super().__init__(classifier, **options)
        checks.integer("hidden_units", hidden_units, 1)
        self.hidden_units = hidden_units
        dtype = keras.config.floatx()  # whatever the precision policy
        dense = functools.partial(keras.layers.Dense, dtype=dtype)
        hidden = dense(hidden_units, activation="relu", **uniform_initializers(1))
        weight = dense(1, activation="sigmoid", **uniform_initializers(hidden_units))
        self.weight_net = keras.Sequential([keras.Input((1,), dtype=dtype), hidden, weight])
        self.meta_loss = keras.metrics.Mean("meta_loss")

    def phases(self):
        return (Phase("training", with_meta=True, metrics=("meta_loss",)),)

    def meta_weights(self):
        return self.weight_net.trainable_variables

    def other_layers(self):
        return [self.weight_net]

    def default_meta_optimizer(self):
        return keras.optimizers.Adam(1e-3, epsilon=1e-8)

    def sample_weights(self, losses):
        """w, float32 (N,), in 0..1, of the samples' losses, float32 (N,)."""
        return self.weight_net(tf.stop_gradient(losses)[:, None])[:, 0]

    def step(self, noisy_batch, meta_batch):
        images, labels = noisy_batch
        θ, weight_net = self.classifier.trainable_variables, self.meta_weights()
        λ = ops.cast(self.optimizer.learning_rate, keras.config.floatx())
        with tf.GradientTape() as meta_tape:
            with tf.GradientTape(persistent=True) as tape:
                logits = self.logits(self.augment(images), training=True)
                regularization = self.regularization()
                losses = cross_entropy(labels, logits)
                loss = tf.reduce_mean(self.sample_weights(losses) * losses)
            g = gradient(tape, loss, θ)
        meta_loss, gradients = meta_gradient(
            self, meta_tape, g, weight_net, λ, meta_batch, moves_batch_norm=False
        )
        self.apply_gradients(self.meta_optimizer, gradients, weight_net)

        weights = tf.stop_gradient(self.sample_weights(losses))
        with tape:  # entered again, it records on: the losses stay those of above
            loss = tf.reduce_mean(weights * losses)
            objective = loss + regularization
        self.apply_gradients(self.optimizer, gradient(tape, objective, θ), θ)

        self.meta_loss.update_state(meta_loss)
        self.update_metrics(loss, labels, logits)

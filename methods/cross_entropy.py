"""Cross-entropy with the given labels, row "Cross Entropy" of Table I: what to try first."""

import keras
import tensorflow as tf

from mln_keras.layers import cross_entropy
from mln_keras.training.model import NoisyLabelModel, gradient
from mln_keras.training.phases import Phase


@keras.saving.register_keras_serializable("mln_keras")
class CrossEntropy(NoisyLabelModel):
    """Trains a classifier on the labels as they are. Another loss is a subclass's `sample_losses`.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.

    Example:

        model = CrossEntropy(classifier)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9))
        model.fit((images, noisy_labels), epochs=120)
    """

    def phases(self):
        return (Phase("training"),)

    def sample_losses(self, labels, logits):
        """float32 (N,), of int32 labels (N,) and logits float32 (N, C)."""
        return cross_entropy(labels, logits)

    def step(self, batch):
        images, labels, *_ = batch  # and row numbers, in a method that keeps something a sample
        weights = self.classifier.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.logits(self.augment(images), training=True)
            loss = tf.reduce_mean(self.sample_losses(labels, logits))
            objective = loss + self.regularization()
        self.apply_gradients(self.optimizer, gradient(tape, objective, weights), weights)
        self.update_metrics(loss, labels, logits)

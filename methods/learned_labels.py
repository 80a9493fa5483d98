"""A soft label that each training sample keeps and that learns: what two methods share."""

from keras import ops

from mln_keras.training import replicas
from mln_keras.training.samples import KeepsSamples, write_rows


class LearnsLabels(KeepsSamples):
    """Keeps the logits s of a soft label softmax(s) for each training sample.

    A phase begins with `begin_labels`, and its steps end in `step_labels`.

    Attributes:
        label_scale: what s is at first at the sample's given label; it is 0 at the other classes.
        soft_label_logits: s, float variable (num_samples, C), saved with the weights; zeros before
            `begin_labels`; made by the first `fit`, unless the constructor had `num_samples`.
    """

    label_scale = 10.0

    def add_sample_weights(self, num_samples):
        shape = (num_samples, self.num_classes)
        self.soft_label_logits = self.add_sample_weight(shape, "soft_label_logits")

    def first_label_logits(self):
        """s by the given labels alone, float (num_samples, C); zeros without a label."""
        dtype = self.soft_label_logits.dtype
        return self.label_scale * ops.one_hot(self.given_labels, self.num_classes, dtype=dtype)

    def begin_labels(self):
        self.soft_label_logits.assign(self.first_label_logits())

    def step_labels(self, rows, s, gradient, learning_rate):
        """s of these rows, float (B, C), less learning_rate · gradient; writes and returns it."""
        # The gradient is that of the mean over a replica's share of the batch.
        s = s - learning_rate / replicas.count() * gradient
        write_rows(self.soft_label_logits, rows, s)
        return s

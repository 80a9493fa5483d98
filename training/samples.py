"""What a method keeps for each training sample: rows of variables, by the samples' numbers."""

import tensorflow as tf

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.training.model import NoisyLabelModel
from mln_keras.training.replicas import gather_over_replicas


class KeepsSamples(NoisyLabelModel):
    """A model that keeps something for each training sample, and saves it with its weights.

    A subclass makes its variables in `add_sample_weights`, and its constructor ends with
    `keep(num_samples)`. A sample is known by its place in the data that `fit` is given, so every
    `fit` of one training takes the same data.

    Attributes:
        num_samples: how many there are; None before the first `fit`, unless the constructor was
            told. To load weights into a new model, construct it with their number.
        given_labels: int32 array (num_samples,), as `see_samples` takes them; None before `fit`.
    """

    config_names = (*NoisyLabelModel.config_names, "num_samples")
    keeps_samples = True
    num_samples = None
    given_labels = None
    sample_variables = ()

    def add_sample_weights(self, num_samples):
        """Makes the variables, with `add_sample_weight`; called once."""
        raise NotImplementedError

    def sample_soft_labels(self):
        """The soft label of each training sample, float32 array (num_samples, C)."""
        raise NotImplementedError

    def keep(self, num_samples):
        """Makes room for this many samples; None leaves it to the first `fit`."""
        if num_samples is not None:
            checks.integer("num_samples", num_samples, 1)
            with self.distribute_strategy.scope():
                self.add_sample_weights(num_samples)
        self.num_samples = num_samples

    def add_sample_weight(self, shape, name):
        """A variable of zeros of the float type, whose rows `rows_of` and `write_rows` take."""
        variable = self.add_weight(shape, "zeros", trainable=False, autocast=False, name=name)
        self.sample_variables = [*self.sample_variables, variable]
        return variable

    def start_over(self):
        super().start_over()
        for variable in self.sample_variables:
            variable.assign(tf.zeros_like(variable))

    def see_samples(self, labels):
        if self.num_samples is None:
            self.keep(len(labels))
        if len(labels) != self.num_samples:
            raise ArgumentError(
                "x",
                f"expected the {self.num_samples} samples of the training so far, received "
                f"{len(labels)}",
            )
        self.given_labels = labels


def rows_of(variable, rows):
    """Rows of a variable (N, ...), by numbers int32 (B,): a tensor (B, ...)."""
    return tf.gather(variable.value, rows)


def write_rows(variable, rows, values):
    """Writes values (B, ...) to the rows of these numbers, int32 (B,), those of all replicas."""
    rows, _ = gather_over_replicas(rows)
    values, _ = gather_over_replicas(values)
    variable.value.scatter_update(tf.IndexedSlices(values, rows))

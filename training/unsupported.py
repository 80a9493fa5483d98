"""What `keras.Model` has and a training on noisy labels cannot do, each refused in one line."""

import os

from mln_keras.data.checks import ArgumentError

INSTEAD = {
    "class_weight": "this training weighs no classes; leave it out",
    "sample_weight": "samples are not weighed; give a sample to leave out the label -1",
    "validation_split": "pass the images and labels to hold out as validation_data",
    "shuffle": "arrays are always shuffled, and a tf.data.Dataset keeps its order; leave it out",
    "workers": "tf.data decides that itself; leave it out",
}


def refuse(arguments):
    """Raises ArgumentError for the first of these keyword arguments, a dict; None passes."""
    for name, value in arguments.items():
        if value is not None:
            raise ArgumentError(name, INSTEAD.get(name, "fit has no such argument"))


class RefusesUnsupported:
    """For a `keras.Model`: says what to use instead of methods that do not fit."""

    def train_on_batch(self, *args, **kwargs):
        raise ArgumentError("train_on_batch", "use fit, which knows the phases and the clean data")

    def test_on_batch(self, *args, **kwargs):
        raise ArgumentError("test_on_batch", "use evaluate, with batch_size=len(x)")

    def save(self, filepath, *args, **kwargs):
        """As `keras.Model.save`, of a path that ends in .keras."""
        if not os.fspath(filepath).endswith(".keras"):
            raise ArgumentError("filepath", f"expected one ending in .keras, received {filepath}")
        super().save(filepath, *args, **kwargs)

"""What a trained classifier says: `evaluate`, `predict` and `export`."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mln_keras.data import batches, checks, inputs, tensorflow_errors
from mln_keras.layers import cross_entropy
from mln_keras.training.unsupported import refuse


class Evaluates:
    """For a `NoisyLabelModel`: its classifier on clean images, in Keras and as a SavedModel."""

    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        """As `keras.Model.evaluate`, without sample weights; `x` may be a pair (images, labels).

        Of `ImageFiles` no more than some batches are in memory at a time.

        Raises:
            ArgumentError: for data that do not fit the model (for labels in a Dataset when they
                come up).
        """
        if not self.evaluates_in_fit(kwargs):
            refuse({"sample_weight": kwargs.pop("sample_weight", None)})
            expected = self._expected(self.image_dtype)
            data = inputs.check_evaluated("x", inputs.paired(x, y), expected)
            data = inputs.streamed(data, batch_size)
            x, y = data if isinstance(data, (tuple, list)) else (data, None)
        with tensorflow_errors.in_one_line():
            return super().evaluate(x, y, batch_size, *args, **kwargs)

    def predict(self, x, batch_size=None, *args, **kwargs):
        """As `keras.Model.predict`; of `ImageFiles` only some batches are in memory at a time."""
        with tensorflow_errors.in_one_line():
            return super().predict(inputs.streamed(x, batch_size), batch_size, *args, **kwargs)

    def test_step(self, batch):
        images, labels = batch
        checks.image_dtype(images.dtype, self.image_dtype)
        logits = self.logits(images, training=False)
        losses = cross_entropy(ops.maximum(labels, 0), logits)
        self.update_metrics(losses, labels, logits)
        return self._results(in_training=False)

    def evaluation(self, images, labels, batch_size):
        """What `evaluate` says of arrays, but for the compiled metrics, as one call on one device.

        It is for measuring the same images again and again: they stay on the GPU.

        Args:
            images: array (N, H, W, channels).
            labels: integer array (N,), -1 for a sample that is left out, at least one other.
            batch_size: at most how many images are computed at once.

        Returns:
            A function without arguments that returns mean cross-entropy and accuracy, two floats.

        Raises:
            ArgumentError: for arrays that do not fit the model.
        """
        inputs.check_evaluated("x", (images, labels), self._expected(self.image_dtype))
        count = np.sum(np.asarray(labels) >= 0)
        images, labels = batches.stack(images, labels, batch_size)
        held, _ = batches.hold(images)
        images = batches.converted(images) if held is None else held

        def measure():  # without a division in the graph, where one by a constant is a product
            return tuple(float(total / count) for total in self._sum_up(images, labels))

        return measure

    def _losses_and_hits(self, images, labels):
        """Sums over stacked batches, as `batches.stack` makes them."""

        def add(sums, batch):
            (loss, hits), (images, labels) = sums, batch
            logits = self.logits(images, training=False)
            losses = cross_entropy(ops.maximum(labels, 0), logits)
            is_labeled = ops.cast(labels >= 0, losses.dtype)
            are_hits = ops.cast(ops.argmax(logits, -1) == labels, losses.dtype)
            return loss + ops.sum(losses * is_labeled), hits + ops.sum(are_hits)

        start = ops.zeros(()), ops.zeros(())
        return tf.foldl(add, (images, labels), start, parallel_iterations=1)

    def export(self, filepath, format="tf_saved_model", verbose=False):
        """Writes a SavedModel that plain TensorFlow loads; there is no other format.

        Its `serve`, also the signature `serving_default`, takes `images`, (N, H, W, channels) of
        the dtype that the model was trained on (uint8 in 0..255 unless it was given float images),
        and returns a dict with `probabilities`, float32 (N, C).
        """
        checks.one_of("format", format, ("tf_saved_model",))
        dtype = self.image_dtype or "uint8"
        images = tf.TensorSpec([None, *self.image_shape], dtype, name="images")
        archive = keras.export.ExportArchive()
        archive.track(self.classifier)
        if self.inference_variables():
            archive.add_variable_collection("others", self.inference_variables())
        archive.add_endpoint(
            "serve",
            lambda images: {"probabilities": self(images, training=False)},
            input_signature=[images],
        )
        archive.write_out(filepath, verbose=bool(verbose))

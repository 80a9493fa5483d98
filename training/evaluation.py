"""What a trained classifier says: `evaluate`, `predict` and `export`."""

import pathlib
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mln_keras.data import batches, checks, inputs, tensorflow_errors, unreadable
from mln_keras.data.image_files import ImageFiles
from mln_keras.data.progress import progress
from mln_keras.layers import cross_entropy
from mln_keras.training import keras_private
from mln_keras.training.unsupported import refuse


class Evaluates:
    """For a `NoisyLabelModel`: its classifier on clean images, in Keras and as a SavedModel."""

    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        """As `keras.Model.evaluate`, without sample weights; `x` may be a pair (images, labels).

        Of `ImageFiles` no more than some batches are in memory at a time, and those that cannot be
        read are left out.

        Raises:
            ArgumentError: for data that do not fit the model (for labels in a Dataset when they
                come up).

        Warns:
            UserWarning: of files that cannot be read.
        """
        files = None
        if not self.evaluates_in_fit(kwargs):
            refuse({"sample_weight": kwargs.pop("sample_weight", None)})
            expected = self._expected(self.image_dtype)
            data = inputs.check_evaluated("x", inputs.paired(x, y), expected)
            files = data[0] if isinstance(data, (tuple, list)) else None
            data = inputs.streamed(data, batch_size)
            x, y = data if isinstance(data, (tuple, list)) else (data, None)
        with tensorflow_errors.in_one_line():
            result = super().evaluate(x, y, batch_size, *args, **kwargs)
        if isinstance(files, ImageFiles) and not files.is_readable().all():
            missing = files.paths[~files.is_readable()]
            text = f"x: {len(missing)} of {len(files)} image files cannot be read and are left out"
            text += f": {unreadable.in_words(missing)}"
            warnings.warn(text, UserWarning, stacklevel=2)
        return result

    def predict(self, x, batch_size=None, *args, **kwargs):
        """As `keras.Model.predict`.

        Of `ImageFiles` only some batches are in memory at a time, and rows of those that cannot be
        read are NaN. They take no other arguments: how far it is is written to standard error.
        """
        if isinstance(x, ImageFiles):
            function = self.predict_on_batch
            if self._is_distributed():  # that would predict a batch once on each replica
                function = tf.function(lambda x: self(x, training=False), reduce_retracing=True)
            return batches.rows_of(x, function, batch_size or 32, "images predicted")
        with tensorflow_errors.in_one_line():
            return super().predict(x, batch_size, *args, **kwargs)

    def test_step(self, batch):
        images, labels = batch
        checks.image_dtype(images.dtype, self.image_dtype)
        logits = self.logits(images, training=False)
        losses = cross_entropy(ops.maximum(labels, 0), logits)
        self.update_metrics(losses, labels, logits)
        return self._results(in_training=False)

    def evaluation(self, images, labels, batch_size, top_k=None):
        """What `evaluate` says of the same images again and again, but for the compiled metrics.

        Arrays are measured in one call on one device, and stay on the GPU; `ImageFiles` are decoded
        anew each time.

        Args:
            images: array (N, H, W, channels) or `ImageFiles`.
            labels: integer array (N,), -1 for a sample that is left out, at least one other.
            batch_size: at most how many images are computed at once.
            top_k: another number of guesses, for a second accuracy; None for none.

        Returns:
            A function without arguments that returns mean cross-entropy, accuracy and, with
            `top_k`, how often the label is among so many most probable classes; floats.

        Raises:
            ArgumentError: for arrays that do not fit the model. What it returns raises ValueError
                where too many files cannot be read; see `unreadable.check`.
        """
        inputs.check_evaluated("x", (images, labels), self._expected(self.image_dtype))
        whole, files = len(labels), images if isinstance(images, ImageFiles) else None
        if files is not None:
            parts = images.dataset(np.asarray(labels, np.int32), batch_size)
            parts = parts.map(lambda *batch: tuple(part[None] for part in batch))
        else:
            images, labels = batches.stack(images, labels, batch_size)
            held, _ = batches.hold(images)
            parts = [(batches.converted(images) if held is None else held, labels)]

        def measure():  # without a division in the graph, where one by a constant is a product
            sums, count = [], 0
            with tensorflow_errors.in_one_line():
                for images, labels in progress(parts, whole, "images measured", _number):
                    sums.append(self._sum_up(images, labels, top_k))
                    count += np.sum(np.asarray(labels) >= 0)  # a file may be found unreadable
                if files is not None:
                    unreadable.check(files.paths[~files.is_readable()], len(files))
            return tuple(float(tf.add_n(totals) / count) for totals in zip(*sums))

        return measure

    def _losses_and_hits(self, images, labels, top_k):
        """Sums over stacked batches, as `batches.stack` makes them."""

        def add(sums, batch):
            images, labels = batch
            logits = self.logits(images, training=False)
            losses = cross_entropy(ops.maximum(labels, 0), logits)
            is_labeled = ops.cast(labels >= 0, losses.dtype)
            hits = [ops.argmax(logits, -1) == labels]
            if top_k is not None:
                hits.append(ops.in_top_k(ops.maximum(labels, 0), logits, top_k) & (labels >= 0))
            of_batch = losses * is_labeled, *(ops.cast(hit, losses.dtype) for hit in hits)
            return tuple(total + ops.sum(part) for total, part in zip(sums, of_batch, strict=True))

        start = tuple(ops.zeros(()) for _ in range(2 if top_k is None else 3))
        return tf.foldl(add, (images, labels), start, parallel_iterations=1)

    def export(self, filepath, format="tf_saved_model", verbose=False):
        """Writes a SavedModel that plain TensorFlow loads; there is no other format.

        Its `serve`, also the signature `serving_default`, takes `images`, (N, H, W, channels) of
        the dtype that the model was trained on (uint8 in 0..255 unless it was given float images),
        and returns a dict with `probabilities`, float32 (N, C). The `class_names`, where the model
        has them, are the file assets/class_names.txt in it, a line each, in UTF-8; its path is
        `class_names.asset_path` of what `tf.saved_model.load` returns.
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
        with tempfile.TemporaryDirectory() as directory:
            if self.class_names is not None:
                path = pathlib.Path(directory) / "class_names.txt"
                path.write_text("".join(f"{name}\n" for name in self.class_names), "utf-8")
                keras_private.add_asset(archive, "class_names", path)
            archive.write_out(filepath, verbose=bool(verbose))


def _number(batch):
    """How many images are in an (images, labels) batch, stacked or not."""
    return int(np.size(batch[1]))

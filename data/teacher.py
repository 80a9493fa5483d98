"""Class probabilities of a teacher trained on clean labels, for feature-dependent noise.

Section IV-A: "a pre-trained network is used to map instances to the feature domain".
"""

import io
import math
import os
import zlib
from pathlib import Path

import keras
import numpy as np

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.data.noise import check_probabilities
from mln_keras.data.progress import Progress


def teacher_probabilities(
    source, build_classifier, cache_dir, seed=0, epochs=10, temperature=4.0, say=print
):
    """Trains a teacher on the clean training labels, once, and returns what it says of each image.

    The result is cached in `cache_dir` under a name made of the data set's name and pixels, seed,
    epochs and temperature. The classifier is not part of it: give each classifier its own folder.

    Args:
        source: the `Source`.
        build_classifier: called without arguments, returns a Keras model from uint8 images
            (B, H, W, channels) to logits (B, C).
        cache_dir: folder for the cache, made where it is missing.
        seed: Keras' global seed is set to it.
        epochs: at least 1, with Adam at its defaults and batches of 128.
        temperature: above 0. The logits are divided by it, so that the probabilities of second
            classes, by which the noise is ordered, do not underflow to 0.
        say: function that is told, in a line, what is done.

    Returns:
        float32 (N, C).

    Raises:
        ArgumentError: where `epochs` or `temperature` is outside what is said above.
        ValueError: where the folder cannot be written, and where the cached file is damaged; the
            message names it.
    """
    checks.at_least("epochs", epochs, 1)
    checks.positive("temperature", temperature)
    path = Path(cache_dir) / (
        f"teacher-{source.name}-{zlib.crc32(np.ascontiguousarray(source.train_images)):08x}"
        f"-seed{seed}-epochs{epochs}-temperature{temperature:g}.npy"
    )
    if path.exists():
        say(f"teacher: its probabilities are those of {path}")
    else:
        _make_writable(path.parent)
        say(f"teacher: {epochs} epochs on the clean labels; {path} will keep its probabilities")
        keras.utils.set_random_seed(seed)
        classifier = build_classifier()
        classifier.compile(
            optimizer=keras.optimizers.Adam(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

        def tell(epoch, logs):
            say(f"teacher: epoch {epoch + 1}, loss {logs['loss']:.4f}")

        count = len(source.train_labels)
        bar = Progress(epochs * math.ceil(count / 128), "steps of the teacher")
        watch = keras.callbacks.LambdaCallback(
            on_epoch_end=tell, on_train_batch_end=lambda batch, logs: bar.add(1)
        )
        classifier.fit(
            source.train_images, source.train_labels, batch_size=128, epochs=epochs,
            callbacks=[watch], verbose=0,
        )  # fmt: skip
        bar.end()
        logits = classifier.predict(source.train_images, batch_size=512, verbose=0)
        softened = keras.ops.softmax(logits.astype(np.float32) / temperature)
        _save_whole(path, keras.ops.convert_to_numpy(softened))
    try:
        return load_probabilities(path, source)
    except ArgumentError as error:
        raise ValueError(f"{error.text}; delete it, and the teacher is trained again") from error


def load_probabilities(path, source):
    """Reads class probabilities for the training samples of a data set from a `.npy` file.

    Args:
        path: a file written by `numpy.save`: floating (N, C), row i for training sample i.
        source: the `Source`.

    Returns:
        float32 (N, C).

    Raises:
        ArgumentError: naming the flag --noise_probs and the file, where it cannot be read as
            `.npy`, needs pickle, or does not hold probabilities (`check_probabilities`) of the
            shape (N, C).
    """
    flag = "noise_probs"
    content = io.BytesIO(checks.content(flag, path))
    try:
        probabilities = np.lib.format.read_array(content, allow_pickle=False)
    except Exception as error:  # of a damaged header NumPy raises more than ValueError
        raise ArgumentError(
            flag, f"{path} is not a whole .npy file of numbers: {checks.one_line(error)}"
        ) from error
    try:
        check_probabilities(probabilities, len(source.train_labels), source.num_classes)
    except ArgumentError as error:
        raise ArgumentError(flag, f"{path}: {error.text}") from error
    return probabilities.astype(np.float32)


def _make_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(folder, os.W_OK):
            return
        reason = "no permission"
    raise _cannot_be_kept(folder, reason)


def _save_whole(path, array):
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.save(file, array)
        os.replace(part, path)
    except OSError as error:
        raise _cannot_be_kept(path.parent, error.strerror or error) from error
    finally:
        part.unlink(missing_ok=True)


def _cannot_be_kept(folder, reason):
    return ValueError(
        f"{folder}: the teacher's probabilities cannot be kept there ({reason}); set KERAS_HOME to "
        f"a folder that can be written"
    )

"""From the name of a noise to noisy labels."""

import functools
import os

from mln_keras.data import checks, label_files, noise, teacher
from mln_keras.data.checks import ArgumentError
from mln_keras.data.keras_home import keras_home

MADE = ("none", "uniform", "class_dependent", "feature_dependent", "human")
NAMES = (*MADE, "own", "file")  # "own": the data set's wrong labels; "file": those of a file


def in_words(name, ratio):
    """What a noise is called in the titles of a run."""
    if name in ("own", "file"):
        return "its own labels" if name == "own" else "labels of a file"
    return f"{name} noise, ratio {ratio:g}"


def corrupt(
    source, name, ratio, seed, *, data_dir=None, labels_file=None, probabilities_file=None,
    build_teacher, network="other", say=print,
):  # fmt: skip
    """The training labels of a data set, corrupted.

    Args:
        source: the `Source`.
        name: one of `NAMES`.
        ratio: share of wrong labels; for "class_dependent" of the classes that flip, on CIFAR-10
            five of the ten; for "human" it says which of CIFAR-10N's label sets; None for "own" and
            "file".
        seed: non-negative integer.
        data_dir: TensorFlow Datasets directory, for "human".
        labels_file: as `label_files.read`, for "file".
        probabilities_file: .npy for "feature_dependent"; None trains a teacher, whose
            probabilities are cached in $KERAS_HOME (~/.keras), in mln_keras_teachers.
        build_teacher: function of the number of classes and the images' shape (H, W, channels)
            that returns a classifier for that teacher.
        network: what that classifier is called, which its cache is named after.
        say: function that is told, in a line, what becomes of the teacher.

    Returns:
        int32 (N,).

    Raises:
        ValueError: one line, where the noise does not fit the data set or a file cannot be used.
    """
    checks.one_of("noise", name, NAMES)
    labels, num_classes = source.train_labels, source.num_classes
    if name == "file":
        return label_files.read(labels_file, source)
    if source.has_right_labels and name == "own":
        raise ArgumentError("noise", f"{source.name} has right labels; expected {', '.join(MADE)}")
    if not source.has_right_labels and name != "own":
        raise ArgumentError(
            "noise", f"{source.name} has wrong labels already; expected own, received {name}"
        )
    if name in ("none", "own"):
        return labels.copy()
    if name == "uniform":
        return noise.uniform(labels, ratio, num_classes, seed)
    if name == "class_dependent":
        if not source.flips:
            raise ArgumentError("noise", f"{source.name} has no class-dependent one")
        transition = noise.transition_matrix(source.flips, ratio, num_classes)
        return noise.class_dependent(labels, transition, seed)
    if name == "feature_dependent":
        if probabilities_file is not None:
            probabilities = teacher.load_probabilities(probabilities_file, source)
        else:
            cache = os.path.join(keras_home(), "mln_keras_teachers", network)
            shape = source.train_images.shape[1:]
            build = functools.partial(build_teacher, num_classes, shape)
            probabilities = teacher.teacher_probabilities(source, build, cache, seed, say=say)
        return noise.feature_dependent(labels, ratio, probabilities, seed)
    if not source.human_labels:
        raise ArgumentError("noise", f"{source.name} has no human labels")
    if ratio not in source.human_labels:
        known = ", ".join(map(str, source.human_labels))
        raise ArgumentError("noise_ratio", f"human labels exist for {known}, received {ratio}")
    found = source.human_labels[ratio](data_dir)
    return checks.labels("human labels", found, len(labels), num_classes)

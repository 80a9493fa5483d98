"""From the name of a noise to noisy labels."""

import os

from mln_keras.data import checks, cifar10, noise, teacher
from mln_keras.data.checks import ArgumentError

NAMES = ("none", "uniform", "class_dependent", "feature_dependent", "human")
# CIFAR-10N's label sets by the share of wrong labels that their authors give.
HUMAN_LABELS_BY_RATIO = {0.09: "aggre_label", 0.17: "random_label1", 0.4: "worse_label"}


def corrupt(
    source, name, ratio, seed, *, data_dir=None, probabilities_file=None, build_teacher, say=print
):
    """The training labels of a data set, corrupted.

    Args:
        source: the `Source`.
        name: one of `NAMES`.
        ratio: share of wrong labels; for "class_dependent" of the classes that flip, on CIFAR-10
            five of the ten; for "human" it says which of CIFAR-10N's label sets.
        seed: non-negative integer.
        data_dir: TensorFlow Datasets directory, for "human".
        probabilities_file: .npy for "feature_dependent"; None trains a teacher, whose
            probabilities are cached in $KERAS_HOME (~/.keras), in mln_keras_teachers.
        build_teacher: function without arguments that returns a classifier for that teacher; one
            of another name has another cache.
        say: function that is told, in a line, what becomes of the teacher.

    Returns:
        int32 (N,).

    Raises:
        ValueError: one line, where the noise does not fit the data set or a file cannot be used.
    """
    checks.one_of("noise", name, NAMES)
    labels, num_classes = source.train_labels, source.num_classes
    if name == "none":
        return labels.copy()
    if name == "uniform":
        return noise.uniform(labels, ratio, num_classes, seed)
    if name == "class_dependent":
        if not source.flips:
            raise ArgumentError(
                "noise", f"{source.name} has no class-dependent one (flips is empty)"
            )
        transition = noise.transition_matrix(source.flips, ratio, num_classes)
        return noise.class_dependent(labels, transition, seed)
    if name == "feature_dependent":
        if probabilities_file is not None:
            probabilities = teacher.load_probabilities(probabilities_file, source)
        else:
            network = getattr(build_teacher, "__name__", "other")
            cache = os.path.join(keras_home(), "mln_keras_teachers", network)
            probabilities = teacher.teacher_probabilities(
                source, build_teacher, cache, seed, say=say
            )
        return noise.feature_dependent(labels, ratio, probabilities, seed)
    if source.name != "cifar10":
        raise ArgumentError("noise", f"human labels exist for cifar10 only, received {source.name}")
    if ratio not in HUMAN_LABELS_BY_RATIO:
        known = ", ".join(map(str, HUMAN_LABELS_BY_RATIO))
        raise ArgumentError("noise_ratio", f"human labels exist for {known}, received {ratio}")
    found = cifar10.human_labels(data_dir, HUMAN_LABELS_BY_RATIO[ratio])
    return checks.labels("human labels", found, len(labels), num_classes)


def keras_home():
    """Where Keras and what is built on it keep files between runs: $KERAS_HOME, or ~/.keras."""
    return os.environ.get("KERAS_HOME", os.path.join(os.path.expanduser("~"), ".keras"))

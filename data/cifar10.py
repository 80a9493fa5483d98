"""CIFAR-10 (Section IV-A) and its human labels (CIFAR-10N), read through TensorFlow Datasets."""

import functools

from mln_keras.data import tfds
from mln_keras.data.source import Source

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FLIPS = {
    "truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat",
}  # fmt: skip
# CIFAR-10N's label sets (Wei et al., 2022) by the share of wrong labels that their authors give.
HUMAN_LABELS = {0.09: "aggre_label", 0.17: "random_label1", 0.4: "worse_label"}


def load(data_dir=None):
    """Returns CIFAR-10 as a `Source`; the test images are held out, and half of them are test.

    The customary flips are those of Patrini et al. (2017): truck to automobile, bird to airplane,
    deer to horse, cat to dog and dog to cat.

    Args:
        data_dir: as `tfds.load`, which says which sample row i is; the download has 162 MiB.

    Returns:
        `Source` with images uint8 (N, 32, 32, 3). A directory that was prepared with fewer images
        gives fewer.

    Raises:
        ValueError: as `tfds.load`.
    """
    (train_images, train_labels), (test_images, test_labels) = tfds.load("cifar10", data_dir)
    return Source(
        name="cifar10",
        train_images=train_images,
        train_labels=train_labels,
        held_out_images=test_images,
        held_out_labels=test_labels,
        test_size=len(test_labels) // 2,
        class_names=CLASS_NAMES,
        flips={CLASS_NAMES.index(a): CLASS_NAMES.index(b) for a, b in FLIPS.items()},
        human_labels={
            ratio: functools.partial(tfds.human_labels, "cifar10_n", feature)
            for ratio, feature in HUMAN_LABELS.items()
        },
    )

"""CIFAR-10 (Section IV-A) and its human labels (CIFAR-10N), read through TensorFlow Datasets."""

from mln_keras.data import tfds

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
    return tfds.source("cifar10", data_dir, CLASS_NAMES, FLIPS, HUMAN_LABELS)

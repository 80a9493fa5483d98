"""A data set as arrays, and the train, meta and test sets that an experiment draws from it."""

import dataclasses
import warnings

import numpy as np

from mln_keras.data import checks, corrections


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A clean data set.

    Attributes:
        name: short, fit for a file name.
        train_images: uint8 (N, H, W, channels).
        train_labels: int32 (N,), clean.
        held_out_images: uint8 (M, H, W, channels); the test and meta sets are drawn from these.
        held_out_labels: int32 (M,), clean.
        test_size: how many of the M samples are the test set.
        class_names: one a class, in label order.
        flips: class -> class, the class-dependent noise customary for this data set.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    test_size: int
    class_names: tuple[str, ...]
    flips: dict[int, int]

    @property
    def num_classes(self):
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def largest_meta_size(self):
        """What the test set leaves of the held-out samples."""
        return len(self.held_out_labels) - self.test_size


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """What one experiment trains, meta-trains and tests on.

    Attributes:
        train_images: uint8 (N, H, W, channels).
        given_labels: int32 (N,); -1 where the sample is unlabeled.
        clean_labels: int32 (N,); for measuring only.
        meta_images, meta_labels: uint8 (K, H, W, channels) and int32 (K,), clean.
        test_images, test_labels: uint8 (T, H, W, channels) and int32 (T,), clean.
        class_names: one a class, in label order.
    """

    train_images: np.ndarray
    given_labels: np.ndarray
    clean_labels: np.ndarray
    meta_images: np.ndarray
    meta_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def noise_ratio(self):
        """Share of the labeled training samples whose given label is wrong, in [0, 1]."""
        labeled = self.given_labels >= 0
        return float(np.mean(self.given_labels[labeled] != self.clean_labels[labeled]))

    def with_labels(self, labels):
        """The same splits with other labels, integers (N,), for the samples that are labeled."""
        given = np.where(self.given_labels < 0, -1, labels).astype(np.int32)
        return dataclasses.replace(self, given_labels=given)

    def with_corrections(self, path):
        """The same splits after a file of corrections; see `corrections.apply`."""
        given = corrections.apply(path, self.given_labels, self.class_names)
        return dataclasses.replace(self, given_labels=given)


def make_splits(source, *, meta_size, unlabeled_size, seed):
    """Draws the meta and test sets from the held-out samples, and removes some training labels.

    The held-out samples are shuffled by the seed. The first `source.test_size` are the test set, so
    it is the same for every meta size; the next `meta_size` are the meta set (Section IV-A).

    Args:
        source: the `Source`.
        meta_size: samples in the meta set, from 1 to what the test set leaves.
        unlabeled_size: training samples that lose their label for good, from 0 to N - 1 (Section
            V-E).
        seed: non-negative integer.

    Returns:
        `Splits`; the given labels are the clean ones still.

    Raises:
        ValueError: where an argument is outside what is said above.

    Warns:
        UserWarning: naming the classes of which the meta set holds few samples or none.
    """
    num_train = len(source.train_labels)
    checks.within("meta_size", meta_size, 1, source.largest_meta_size, source.name)
    checks.within("unlabeled_size", unlabeled_size, 0, num_train - 1, source.name)

    rng = np.random.default_rng(seed)
    held_out = rng.permutation(len(source.held_out_labels))
    test = held_out[: source.test_size]
    meta = held_out[source.test_size : source.test_size + meta_size]
    given_labels = source.train_labels.copy()
    given_labels[rng.permutation(num_train)[:unlabeled_size]] = -1

    meta_labels = source.held_out_labels[meta]
    if rare := checks.rare_classes(meta_labels, source.class_names):
        warnings.warn(f"the meta set holds {rare}", UserWarning, stacklevel=2)
    return Splits(
        train_images=source.train_images,
        given_labels=given_labels,
        clean_labels=source.train_labels,
        meta_images=source.held_out_images[meta],
        meta_labels=meta_labels,
        test_images=source.held_out_images[test],
        test_labels=source.held_out_labels[test],
        class_names=source.class_names,
    )

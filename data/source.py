"""A data set, and the train, meta and test sets that an experiment draws from it."""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np

from mln_keras.data import checks, corrections
from mln_keras.data.image_files import ImageFiles


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set. Images are uint8 arrays (N, H, W, channels) or `ImageFiles`; labels are int32.

    Attributes:
        name: short, fit for a file name.
        train_images, train_labels: N samples; a label is -1 where there is none.
        held_out_images, held_out_labels: M samples with right labels, of which the meta set is
            drawn, and the test set too where `test` is None.
        class_names: one a class, in label order.
        test_size: how many of the M samples are the test set; 0 where `test` is given.
        test: (images, right labels) of a test set that the data set comes with, or None.
        has_right_labels: whether the training labels are right, so that noise can be made of them.
            False where some of them are wrong and nobody knows which.
        flips: class -> class, the class-dependent noise customary for this data set.
        human_labels: share of wrong labels -> function of a TensorFlow Datasets directory, that
            returns labels (N,) which people gave.
    """

    name: str
    train_images: np.ndarray | ImageFiles
    train_labels: np.ndarray
    held_out_images: np.ndarray | ImageFiles
    held_out_labels: np.ndarray
    class_names: tuple[str, ...]
    test_size: int = 0
    test: tuple | None = None
    has_right_labels: bool = True
    flips: dict[int, int] = dataclasses.field(default_factory=dict)
    human_labels: dict[float, Callable] = dataclasses.field(default_factory=dict)

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
    """What one experiment trains, meta-trains and tests on. Images and labels as in `Source`.

    Attributes:
        train_images: N samples.
        given_labels: (N,); -1 where the sample is unlabeled.
        clean_labels: (N,); for measuring only. None where nobody knows them.
        meta_images, meta_labels: K samples, right.
        test_images, test_labels: T samples, right.
        class_names: one a class, in label order.
        rows: (N,), which of the source's training samples these are.
    """

    train_images: np.ndarray | ImageFiles
    given_labels: np.ndarray
    clean_labels: np.ndarray | None
    meta_images: np.ndarray | ImageFiles
    meta_labels: np.ndarray
    test_images: np.ndarray | ImageFiles
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    rows: np.ndarray

    @property
    def noise_ratio(self):
        """Share of the labeled training samples whose given label is wrong, in [0, 1], or None."""
        if self.clean_labels is None:
            return None
        labeled = self.given_labels >= 0
        return float(np.mean(self.given_labels[labeled] != self.clean_labels[labeled]))

    def sizes(self):
        """How many samples there are of each kind, a dict."""
        return {
            "train": len(self.given_labels),
            "labeled": int(np.sum(self.given_labels >= 0)),
            "meta": len(self.meta_labels),
            "test": len(self.test_labels),
        }

    def with_labels(self, labels):
        """The same splits with other labels, one for each training sample of the source; a sample
        that is unlabeled stays so."""
        given = np.where(self.given_labels < 0, -1, labels[self.rows]).astype(np.int32)
        return dataclasses.replace(self, given_labels=given)

    def with_corrections(self, path):
        """The same splits after a file of corrections; see `corrections.apply`."""
        files = getattr(self.train_images, "paths", None)
        given = corrections.apply(path, self.given_labels, self.class_names, files)
        return dataclasses.replace(self, given_labels=given)


def make_splits(source, *, meta_size, unlabeled_size, seed):
    """Draws the meta set, and the test set where there is none, and removes some training labels.

    The held-out samples are shuffled by the seed. The first `source.test_size` are the test set, so
    it is the same for every meta size; the next `meta_size` are the meta set (Section IV-A). An
    image file of the meta or test set that is in the training list too is not trained on.

    Args:
        source: the `Source`.
        meta_size: samples in the meta set, from 1 to what the test set leaves; None is all of it.
        unlabeled_size: training samples that lose their label for good, from 0 to one less than
            have one (Section V-E).
        seed: non-negative integer.

    Returns:
        `Splits`; the given labels are the source's still.

    Raises:
        ValueError: where an argument is outside what is said above.

    Warns:
        UserWarning: naming the classes of which the meta set holds few samples or none, and how
            many training images are left out.
    """
    if meta_size is None:
        meta_size = source.largest_meta_size
    checks.within("meta_size", meta_size, 1, source.largest_meta_size, source.name)
    rng = np.random.default_rng(seed)
    held_out = rng.permutation(len(source.held_out_labels))
    chosen = held_out[: source.test_size]
    test = source.test or (source.held_out_images[chosen], source.held_out_labels[chosen])
    meta = held_out[source.test_size : source.test_size + meta_size]
    meta = source.held_out_images[meta], source.held_out_labels[meta]

    rows, train_images = _without(source.train_images, meta[0], test[0])
    given_labels = source.train_labels[rows]
    labeled = np.flatnonzero(given_labels >= 0)
    checks.within("unlabeled_size", unlabeled_size, 0, len(labeled) - 1, source.name)
    given_labels[rng.permutation(labeled)[:unlabeled_size]] = -1

    if rare := checks.rare_classes(meta[1], source.class_names):
        warnings.warn(f"the meta set holds {rare}", UserWarning, stacklevel=2)
    if left_out := len(source.train_labels) - len(rows):
        text = f"{left_out} images of the meta or test set are training images too: not trained on"
        warnings.warn(text, UserWarning, stacklevel=2)
    return Splits(
        train_images=train_images,
        given_labels=given_labels,
        clean_labels=source.train_labels[rows] if source.has_right_labels else None,
        meta_images=meta[0],
        meta_labels=meta[1],
        test_images=test[0],
        test_labels=test[1],
        class_names=source.class_names,
        rows=rows,
    )


def _without(images, *others):
    """(rows, images[rows]) of the images whose files are none of the others'; of arrays all."""
    rows = np.arange(len(images))
    if not isinstance(images, ImageFiles):
        return rows, images
    taken = {path for other in others for path in other.paths}
    is_left = np.fromiter((path not in taken for path in images.paths), bool, len(images))
    return (rows, images) if is_left.all() else (rows[is_left], images[is_left])

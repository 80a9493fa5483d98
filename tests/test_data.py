"""Data sets and the splits that are drawn from them."""

import warnings

import numpy as np
import pytest

from mln_keras.data import digits
from mln_keras.data.checks import ArgumentError
from mln_keras.data.source import Source, make_splits


def small_source():
    """60 training samples and 200 held out, of 4 classes; each image is its own index."""
    numbers = np.arange(200, dtype=np.uint8)
    return Source(
        name="small",
        train_images=numbers[:60].reshape(-1, 1, 1, 1),
        train_labels=np.arange(60, dtype=np.int32) % 4,
        held_out_images=numbers.reshape(-1, 1, 1, 1),
        held_out_labels=np.arange(200, dtype=np.int32) % 4,
        test_size=100,
        class_names=tuple("abcd"),
        flips={0: 1},
    )


# --- splits


def test_test_and_meta_sets_are_disjoint_and_labels_stay_with_their_images():
    source = small_source()
    splits = make_splits(source, meta_size=40, unlabeled_size=0, seed=3)
    test, meta = splits.test_images.ravel(), splits.meta_images.ravel()
    assert len(set(test)) == 100 and len(set(meta)) == 40 and not set(test) & set(meta)
    np.testing.assert_array_equal(splits.test_labels, test % 4)
    np.testing.assert_array_equal(splits.meta_labels, meta % 4)
    assert splits.test_labels.dtype == splits.meta_labels.dtype == np.int32
    assert (np.diff(test.astype(int)) < 0).any()


def test_the_test_set_is_the_same_for_any_meta_and_unlabeled_size_and_depends_on_the_seed():
    source = small_source()

    def splits(seed, meta_size, unlabeled_size=0):
        return make_splits(source, meta_size=meta_size, unlabeled_size=unlabeled_size, seed=seed)

    few, many, other = splits(0, 10), splits(0, 100, 30), splits(1, 100)
    np.testing.assert_array_equal(few.test_images, many.test_images)
    np.testing.assert_array_equal(few.meta_images, many.meta_images[:10])
    assert (many.test_images != other.test_images).any()


def test_unlabeled_samples_lose_their_label_and_only_they_do():
    source = small_source()
    given = np.roll(source.train_labels, 1)
    clean, before = source.train_labels.copy(), given.copy()
    splits = make_splits(source, meta_size=40, unlabeled_size=17, seed=3)
    noisy = splits.with_labels(given)
    hidden = splits.given_labels == -1
    assert hidden.sum() == 17 and not hidden[:17].all()
    for labels, expected in ((splits.given_labels, clean), (noisy.given_labels, given)):
        np.testing.assert_array_equal(labels, np.where(hidden, -1, expected))
        assert labels.dtype == np.int32
    np.testing.assert_array_equal(given, before)
    for labels in (source.train_labels, splits.clean_labels, noisy.clean_labels):
        np.testing.assert_array_equal(labels, clean)
    for name in ("train_images", "meta_images", "meta_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(splits, name))


def test_which_samples_lose_their_label_depends_on_the_seed():
    def hidden(seed):
        splits = make_splits(small_source(), meta_size=40, unlabeled_size=17, seed=seed)
        return splits.given_labels == -1

    np.testing.assert_array_equal(hidden(3), hidden(3))
    assert (hidden(3) != hidden(4)).any()


def test_noise_ratio_counts_labeled_samples_only():
    source = small_source()
    given = source.train_labels.copy()
    given[:15] = (given[:15] + 1) % 4
    splits = make_splits(source, meta_size=40, unlabeled_size=0, seed=3)
    assert splits.noise_ratio == 0 and splits.with_labels(given).noise_ratio == 0.25
    splits = make_splits(source, meta_size=40, unlabeled_size=20, seed=3).with_labels(given)
    wrong = np.count_nonzero(splits.given_labels[:15] >= 0)
    assert 0 < wrong < 15 and splits.noise_ratio == wrong / 40


def test_a_meta_set_without_a_class_is_warned_of_by_name():
    source = small_source()
    with pytest.warns(UserWarning, match="no sample of") as caught:
        splits = make_splits(source, meta_size=2, unlabeled_size=0, seed=3)
    missing = [name for i, name in enumerate("abcd") if i not in splits.meta_labels]
    begin = f"the meta set holds no sample of class {', '.join(missing)}; fewer than 5 samples of"
    assert str(caught[0].message).startswith(begin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_splits(source, meta_size=100, unlabeled_size=0, seed=3)


@pytest.mark.parametrize(
    ("name", "size", "allowed"),
    [("meta_size", 0, "1 to 100"), ("meta_size", 101, "1 to 100"),
     ("unlabeled_size", -1, "0 to 59"), ("unlabeled_size", 60, "0 to 59")],
)  # fmt: skip
def test_bad_splits_get_one_line(name, size, allowed):
    arguments = {"meta_size": 40, "unlabeled_size": 0, "seed": 0, name: size}
    with pytest.raises(ArgumentError) as error:
        make_splits(small_source(), **arguments)
    assert str(error.value) == f"{name}: expected {allowed} for small, received {size}"


# --- digits


def test_digits_are_the_whole_data_set_at_full_range():
    from sklearn.datasets import load_digits

    source = digits.load()
    original = load_digits()
    images = np.concatenate([source.train_images, source.held_out_images])
    labels = np.concatenate([source.train_labels, source.held_out_labels])
    assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1) and images.max() == 255
    np.testing.assert_array_equal(np.round(images[..., 0] * (16 / 255)), original.images)
    np.testing.assert_array_equal(labels, original.target)
    assert labels.dtype == np.int32
    sizes = len(source.train_labels), len(source.held_out_labels), source.test_size
    assert sizes == (1197, 600, 300)
    assert source.num_classes == 10 and source.flips[3] == 4 and source.flips[9] == 0


def test_digits_are_balanced_in_each_part():
    source = digits.load()
    for labels in (source.train_labels, source.held_out_labels):
        shares = np.bincount(labels) / len(labels)
        assert (abs(shares - 0.1) < 0.01).all()


def test_digits_are_rounded_to_the_nearest_pixel():
    source = digits.load()
    assert set(np.unique(source.train_images)) == {round(i * 255 / 16) for i in range(17)}

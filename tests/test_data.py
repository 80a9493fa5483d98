"""Data sets, splits, batches, CIFAR-10 directories in all broken states, and the teacher."""

import dataclasses
import functools
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mln_keras import data
from mln_keras.data import cifar10, digits, pipeline, teacher
from mln_keras.data.source import Source, make_splits

ROOT = Path(__file__).parents[1]
NUM_TRAIN, NUM_TEST = 24, 10
VERSION_DIR = Path("cifar10", "3.0.2")


def small_source(held_out=200, test_size=100, num_classes=4):
    """A source in which each image is filled with its own index, so that it can be recognised."""
    train = np.arange(60) % num_classes
    held = np.arange(held_out) % num_classes
    return Source(
        name="small",
        train_images=np.arange(60, dtype=np.uint8)[:, None, None, None]
        * np.ones((2, 2, 1), np.uint8),
        train_labels=train.astype(np.int32),
        held_out_images=np.arange(held_out, dtype=np.uint8).reshape(-1, 1, 1, 1),
        held_out_labels=held.astype(np.int32),
        test_size=test_size,
        class_names=tuple("abcd")[:num_classes],
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
    assert str(caught[0].message).endswith(": " + ", ".join(missing))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_splits(source, meta_size=100, unlabeled_size=0, seed=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta_size": 0}, "^meta_size: expected 1 to 100 .* received 0$"),
        ({"meta_size": 101}, "^meta_size: expected 1 to 100 .* received 101$"),
        ({"unlabeled_size": -1}, "^unlabeled_size: expected 0 to 59 .* received -1$"),
        ({"unlabeled_size": 60}, "^unlabeled_size: expected 0 to 59 .* received 60$"),
    ],
)
def test_bad_splits_get_one_line(change, message):
    arguments = dict(meta_size=40, unlabeled_size=0, seed=0)
    with pytest.raises(ValueError, match=message) as error:
        make_splits(small_source(), **(arguments | change))
    assert "\n" not in str(error.value)


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
    assert (len(source.train_labels), len(source.held_out_labels), source.test_size) == (
        1197,
        600,
        300,
    )
    assert source.num_classes == 10 and source.flips[3] == 4 and source.flips[9] == 0


def test_digits_are_balanced_in_each_part():
    source = digits.load()
    for labels in (source.train_labels, source.held_out_labels):
        shares = np.bincount(labels) / len(labels)
        assert (abs(shares - 0.1) < 0.01).all()


def test_importing_data_imports_nothing_heavy():
    code = (
        "import sys, data; print([m for m in "
        "('tensorflow', 'keras', 'sklearn', 'tensorflow_datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
    assert set(data.LOADERS) == {"digits", "cifar10"}


# --- batches


def numbered(count, first=0):
    """Images (count, 1, 1, 1) and labels, in which each sample is its own number."""
    numbers = np.arange(first, first + count, dtype=np.int32)
    return numbers.reshape(-1, 1, 1, 1), numbers


def batch_numbers(dataset):
    """The sample numbers of each batch, of images that carry their own label."""
    found = []
    for images, labels in dataset.as_numpy_iterator():
        np.testing.assert_array_equal(images.ravel(), labels)
        found.append(labels.tolist())
    return found


@pytest.mark.parametrize(("seed", "count"), [(None, 20), (None, 23), (7, 20), (7, 23)])
def test_an_epoch_has_full_batches_and_no_sample_twice(seed, count):
    dataset = pipeline.batches(*numbered(count), 5, seed=seed, epochs=range(2, 4))
    found = batch_numbers(dataset)
    assert [len(batch) for batch in found] == [5] * 8 == [5] * int(dataset.cardinality())
    for epoch in (sum(found[:4], []), sum(found[4:], [])):
        assert len(set(epoch)) == 20 and set(epoch) <= set(range(count))
    assert dataset.element_spec[0].shape == (5, 1, 1, 1)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, start, stop):
        return batch_numbers(
            pipeline.batches(*numbered(40), 8, seed=seed, epochs=range(start, stop))
        )

    epochs = [order(3, epoch, epoch + 1) for epoch in range(3)]
    assert order(3, 0, 3) == sum(epochs, []) and order(3, 1, 3) == sum(epochs[1:], [])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for epoch, found in enumerate(epochs):
        in_order = order(None, epoch, epoch + 1)
        assert order(4, epoch, epoch + 1) != found != in_order
        assert sorted(map(sorted, found)) != sorted(map(sorted, in_order))


def test_without_a_seed_the_samples_keep_their_order():
    dataset = pipeline.batches(*numbered(11), 5, epochs=range(2))
    assert batch_numbers(dataset) == 2 * [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(("noisy", "unlabeled"), [(10, 5), (3, 8), (9, 2), (3, 0)])
def test_mix_interleaves_every_batch_once_an_epoch_in_proportion(noisy, unlabeled):
    epochs = range(4, 6)
    first = pipeline.batches(*numbered(2 * noisy), 2, epochs=epochs)
    images = numbered(3 * unlabeled, first=100)[0]
    others = tf.data.Dataset.from_tensor_slices(images).batch(3).repeat(len(epochs))
    total = noisy + unlabeled
    mixed = pipeline.mix(first, others, epochs)
    assert int(mixed.cardinality()) == 2 * total
    batches = list(mixed.as_numpy_iterator())
    for epoch in (batches[:total], batches[total:]):
        kinds, numbers = [], []
        for images, labels in epoch:
            kinds.append(len(images) == 3)
            numbers += images.ravel().tolist()
            np.testing.assert_array_equal(labels, [-1] * 3 if kinds[-1] else images.ravel())
            assert labels.dtype == np.int32
            assert abs(sum(kinds) - len(kinds) * unlabeled / total) < 1
        assert sorted(numbers) == [*range(2 * noisy), *range(100, 100 + 3 * unlabeled)]


@pytest.mark.parametrize(("steps", "count"), [(3, 5), (5, 3), (4, 2), (1, 3)])
def test_meta_batches_come_round_and_go_on_in_the_next_epoch(steps, count):
    def meta_numbers(epochs):
        noisy = pipeline.batches(*numbered(2 * steps), 2, epochs=epochs)
        meta_of = functools.partial(pipeline.batches, *numbered(2 * count, first=100), 2)
        pairs = pipeline.with_meta(noisy, meta_of, epochs)
        assert int(pairs.cardinality()) == steps * len(epochs)
        pairs = [(n[1][0] // 2, m[1][0] // 2 - 50) for n, m in pairs.as_numpy_iterator()]
        assert [noisy for noisy, _ in pairs] == [*range(steps)] * len(epochs)
        return [int(meta) for _, meta in pairs]

    found = meta_numbers(range(count + 1))
    assert found == [i % count for i in range((count + 1) * steps)]
    for epoch in range(count + 1):  # of a run continued here
        assert meta_numbers(range(epoch, count + 1)) == found[epoch * steps :]


def test_shuffled_meta_batches_are_drawn_anew_each_round_and_leave_no_sample_out_for_ever():
    def meta_numbers(epochs, seed=7):
        noisy = pipeline.batches(*numbered(4), 2, epochs=epochs)
        meta_of = functools.partial(pipeline.batches, *numbered(17), 5, seed=seed)
        pairs = pipeline.with_meta(noisy, meta_of, epochs)
        return [m[1].tolist() for _, m in pairs.as_numpy_iterator()]

    found = meta_numbers(range(30))
    rounds = [sum(found[i : i + 3], []) for i in range(0, 60, 3)]
    assert all(len(set(numbers)) == 15 for numbers in rounds)
    assert len(set(map(tuple, rounds))) == 20 and set(sum(rounds, [])) == set(range(17))
    for epoch in (1, 2, 3, 17):  # of a run continued here
        assert meta_numbers(range(epoch, 30)) == found[2 * epoch :]
    assert meta_numbers(range(30), seed=8) != found


def test_the_order_of_meta_data_is_the_seeds_and_not_that_of_as_many_training_data():
    numbers = np.arange(20, dtype=np.uint8).reshape(-1, 1, 1, 1), np.zeros(20, int)

    def pairs(seed):
        training_data = pipeline.TrainingData(
            numbers, numbers, None, (1, 1, 1), 1, 5,
            seed=seed, shuffle_meta=True, warms_up=False, holds=False,
        )  # fmt: skip
        found = training_data.phase_2(range(3)).as_numpy_iterator()
        return [(x.ravel().tolist(), x_meta.ravel().tolist()) for (x, _), (x_meta, _) in found]

    assert all(set(x) != set(x_meta) for x, x_meta in pairs(7))
    assert [meta for _, meta in pairs(7)] != [meta for _, meta in pairs(8)]


def test_a_meta_set_of_unknown_length_begins_anew_each_epoch():
    epochs = range(1, 3)
    noisy = pipeline.batches(*numbered(10), 2, epochs=epochs)
    meta = pipeline.batches(*numbered(6, first=100), 2).filter(lambda *_: True)
    pairs = pipeline.with_meta(noisy, lambda epochs: meta, epochs)
    assert pipeline.steps_an_epoch(pairs, epochs) == 5
    assert [int(m[1][0]) for _, m in pairs.as_numpy_iterator()] == 2 * [100, 102, 104, 100, 102]


def test_data_of_unknown_length_get_meta_batches_too():
    noisy = pipeline.batches(*numbered(10), 2).filter(lambda *_: True)
    meta_of = functools.partial(pipeline.batches, *numbered(4, first=100), 2)
    pairs = pipeline.with_meta(noisy, meta_of, range(1, 2))
    assert [int(m[1][0]) for _, m in pairs.as_numpy_iterator()] == [100, 102, 100, 102, 100]


def test_steps_an_epoch_are_known_of_data_of_known_length():
    dataset = pipeline.batches(*numbered(12), 1, epochs=range(5, 8))
    assert pipeline.steps_an_epoch(dataset, range(5, 8)) == 12
    for other in (dataset.repeat(), dataset.filter(lambda *_: True), dataset.take(0)):
        assert pipeline.steps_an_epoch(other, range(5, 8)) is None


def test_the_largest_divisor():
    found = {
        (number, at_most): pipeline.largest_divisor(number, at_most)
        for number, at_most in [(18, 1), (18, 5), (18, 7), (18, 18), (18, 30), (17, 16), (351, 30)]
    }
    assert list(found.values()) == [1, 3, 6, 18, 18, 1, 27]


def test_batches_have_one_shape_where_it_is_known():
    dataset = pipeline.batches(*numbered(12), 1)
    assert pipeline.have_one_shape(dataset)
    assert not pipeline.have_one_shape(dataset.unbatch().batch(2))


# --- CIFAR-10 in a TFDS directory


def png(pixels):
    return io.BytesIO(tf.io.encode_png(pixels).numpy())


def cifar_arrays():
    """Returns images uint8 (34, 32, 32, 3) and labels (34,), the training samples first."""
    rng = np.random.default_rng(0)
    total = NUM_TRAIN + NUM_TEST
    return rng.integers(0, 256, (total, 32, 32, 3), np.uint8), rng.integers(0, 10, total)


def cifar_generators(ids=None):
    """Stands in for the builder's `_split_generators`, which would download the images."""
    images, labels = cifar_arrays()

    def examples(split, start, count):
        for i in range(count):
            name = ids[i] if ids and split == "train" else f"{split}_{i:05d}"
            row = start + i
            yield i, {"id": name, "image": png(images[row]), "label": int(labels[row])}

    def split_generators(self, dl_manager):
        del dl_manager
        self.info.features["label"].names = list(cifar10.CLASS_NAMES)
        return {
            "train": examples("train", 0, NUM_TRAIN),
            "test": examples("test", NUM_TRAIN, NUM_TEST),
        }

    return split_generators


def prepare(data_dir, generators, name="cifar10"):
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    builder._split_generators = generators.__get__(builder)
    builder.download_and_prepare()
    return data_dir


@pytest.fixture
def cifar_dir(tmp_path):
    return prepare(tmp_path / "tfds", cifar_generators())


@pytest.fixture
def no_network(monkeypatch):
    import requests

    def unreachable(url, **_):
        raise requests.ConnectionError(f"no route to {url}\nand a second line")

    monkeypatch.setattr(requests, "head", unreachable)


@pytest.fixture
def network(monkeypatch):
    """A network on which the archive's host answers; the archive itself comes from the test."""
    import requests

    answer = requests.Response()
    answer.status_code = 200
    monkeypatch.setattr(requests, "head", lambda url, **_: answer)


def assert_is_whole(source):
    images, labels = cifar_arrays()
    np.testing.assert_array_equal(source.train_images, images[:NUM_TRAIN])
    np.testing.assert_array_equal(source.train_labels, labels[:NUM_TRAIN])
    np.testing.assert_array_equal(source.held_out_images, images[NUM_TRAIN:])
    np.testing.assert_array_equal(source.held_out_labels, labels[NUM_TRAIN:])


def error_of_load(data_dir):
    with pytest.raises(ValueError) as error:
        cifar10.load(data_dir)
    message = str(error.value)
    assert "\n" not in message and str(data_dir) in message and "to mend it, " in message
    return message


def test_cifar10_rows_follow_the_ids_and_not_the_reading_order(cifar_dir):
    import tensorflow_datasets as tfds

    read = tfds.as_numpy(tfds.load("cifar10", data_dir=cifar_dir, split="train", batch_size=-1))
    assert read["id"].tolist() != sorted(read["id"])
    source = cifar10.load(cifar_dir)
    assert_is_whole(source)
    assert source.train_images.dtype == np.uint8
    assert source.train_labels.dtype == source.held_out_labels.dtype == np.int32
    assert source.test_size == NUM_TEST // 2 and source.num_classes == 10
    names = {source.class_names[a]: source.class_names[b] for a, b in source.flips.items()}
    assert names == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }


def test_cifar10_loads_without_a_word(cifar_dir, capfd, caplog):
    caplog.clear()
    cifar10.load(str(cifar_dir))
    out, err = capfd.readouterr()
    assert out == "" and "it/s" not in err and caplog.records == []


def truncate(folder):
    (file,) = folder.glob("cifar10-train*")
    os.truncate(file, file.stat().st_size * 2 // 3)


def truncate_between_records(folder):
    (file,) = folder.glob("cifar10-test*")
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records[:-1]:
            writer.write(record)


def flip_a_bit(folder):
    (file,) = folder.glob("cifar10-train*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BROKEN = {
    "a file cut short": (truncate, "train cannot be read"),
    "a file without its last record": (truncate_between_records, "test cannot be read"),
    "a flipped bit": (flip_a_bit, "train cannot be read"),
    "a file deleted": (lambda d: next(d.glob("*-test*")).unlink(), "test cannot be read"),
    "no info": (lambda d: (d / "dataset_info.json").unlink(), "holds no prepared data"),
    "info cut short": (lambda d: os.truncate(d / "dataset_info.json", 50), "cannot be read"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_cifar10_directory_gets_one_line(cifar_dir, no_network, damage):
    break_it, message = BROKEN[damage]
    break_it(cifar_dir / VERSION_DIR)
    assert message in error_of_load(cifar_dir)


@pytest.mark.parametrize("ids", ["twice", "missing"])
def test_ids_that_do_not_name_each_row_once_are_refused(tmp_path, ids):
    names = [f"train_{i:05d}" for i in range(NUM_TRAIN)]
    names[5] = {"twice": names[6], "missing": f"train_{NUM_TRAIN:05d}"}[ids]
    prepare(tmp_path, cifar_generators(names))
    assert "each id from 0 to 23 once" in error_of_load(tmp_path)


@pytest.mark.parametrize("folder", ["", "missing/below"])
def test_without_data_and_network_the_loader_says_so_and_leaves_nothing(
    tmp_path, no_network, caplog, folder
):
    message = error_of_load(tmp_path / folder)
    assert "not prepared" in message and "ConnectionError" in message
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_a_data_dir_that_is_a_file_is_refused(tmp_path, network):
    file = tmp_path / "file"
    file.write_text("kept")
    assert "not a folder" in error_of_load(file)
    assert file.read_text() == "kept"


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, network, monkeypatch):
    from tensorflow_datasets.image_classification import Cifar10

    generators = cifar_generators()

    def split_generators(self, dl_manager):
        def broken(examples):
            for _ in range(3):
                yield next(examples)
            raise OSError("connection lost\nand a second line")

        splits = generators(self, dl_manager)
        return {"train": splits["train"], "test": broken(splits["test"])}

    monkeypatch.setattr(Cifar10, "_split_generators", split_generators)
    assert "connection lost" in error_of_load(tmp_path / "missing" / "below")
    assert list(tmp_path.iterdir()) == []


def test_a_download_leaves_the_prepared_data_and_only_that(tmp_path, network, monkeypatch, capfd):
    from tensorflow_datasets.image_classification import Cifar10

    with monkeypatch.context() as patch:
        patch.setattr(Cifar10, "_split_generators", cifar_generators())
        assert_is_whole(cifar10.load(tmp_path / "new" / "tfds"))
    assert capfd.readouterr().out == ""
    assert [p.relative_to(tmp_path / "new" / "tfds") for p in (tmp_path / "new").glob("*/*/*")] == [
        VERSION_DIR
    ]
    assert len(list(tmp_path.rglob("*cifar10*train*"))) == 1
    assert_is_whole(cifar10.load(tmp_path / "new" / "tfds"))


def test_human_labels_come_in_the_row_order_of_the_images(tmp_path):
    rng = np.random.default_rng(1)
    human = {name: rng.integers(0, 10, NUM_TRAIN) for name in cifar10.HUMAN_LABELS}
    generators = cifar_generators()

    def with_human_labels(self, dl_manager):
        def examples(split, rows):
            for i, row in rows:
                workers = {f"worker{k}_{what}": -1 for k in (1, 2, 3) for what in ("id", "time")}
                labels = {n: int(v[i]) if split == "train" else -1 for n, v in human.items()}
                yield i, row | workers | labels

        splits = generators(self, dl_manager)
        return {split: examples(split, rows) for split, rows in splits.items()}

    prepare(tmp_path, with_human_labels, "cifar10_n")
    for name, expected in human.items():
        labels = cifar10.human_labels(tmp_path, name)
        np.testing.assert_array_equal(labels, expected)
        assert labels.dtype == np.int32


def test_human_labels_that_are_not_there_get_one_line(cifar_dir):
    with pytest.raises(ValueError, match="cifar10_n is not prepared") as error:
        cifar10.human_labels(cifar_dir, "worse_label")
    assert "\n" not in str(error.value) and str(cifar_dir) in str(error.value)
    with pytest.raises(ValueError, match="expected one of aggre_label, .* received 'clean'"):
        cifar10.human_labels(cifar_dir, "clean")


# --- teacher probabilities


def quick_classifier(calls=None):
    import keras

    if calls is not None:
        calls.append(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype="uint8"),
            keras.layers.Rescaling(1 / 64),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def test_teacher_learns_the_clean_labels_is_reproducible_and_is_trained_once(tmp_path):
    source, calls = digits.load(), []

    def teach(folder, **options):
        return teacher.teacher_probabilities(
            source, lambda: quick_classifier(calls), tmp_path / folder, epochs=20, **options
        )

    first = teach("a/b")
    assert first.shape == (1197, 10) and first.dtype == np.float32
    np.testing.assert_allclose(first.sum(axis=1), 1, atol=1e-5)
    assert (first.argmax(axis=1) == source.train_labels).mean() > 0.85
    np.testing.assert_array_equal(teach("a/b"), first)
    assert len(calls) == 1
    np.testing.assert_array_equal(teach("c"), first)
    assert len(calls) == 2
    assert (teach("a/b", seed=1) != first).any()
    cold = teach("a/b", temperature=1.0)
    # Division of the logits by 4 raises each probability to 1/4, up to the row's sum.
    np.testing.assert_allclose(cold**0.25 / (cold**0.25).sum(1, keepdims=True), first, atol=1e-4)
    assert len(calls) == 4
    assert len(list((tmp_path / "a" / "b").iterdir())) == 3


def test_a_teacher_that_fails_leaves_no_cache(tmp_path, monkeypatch):
    def half(file, array):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(teacher.np, "save", half)
    with pytest.raises(ValueError, match=r"cannot be kept there \(disk full\); set KERAS_HOME"):
        teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [{"epochs": 0}, {"temperature": 0.0}])
def test_bad_teacher_options_are_refused_by_name(tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=name):
        teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, **option)


def no_classifier():
    raise AssertionError("a teacher was trained")


def test_other_pixels_are_another_cache_file(tmp_path, capsys):
    source = digits.load()
    images = source.train_images.copy()
    images[-1, -1, -1, 0] ^= 1
    other = dataclasses.replace(source, train_images=images)
    written = []
    for one in (source, other):
        teacher.teacher_probabilities(one, quick_classifier, tmp_path, epochs=1)
        (new,) = set(tmp_path.iterdir()) - set(written)
        written.append(new)
        assert f"teacher: 1 epochs on the clean labels; {new} will" in capsys.readouterr().out
    for one, path in zip((source, other), written):
        found = teacher.teacher_probabilities(one, no_classifier, tmp_path, epochs=1)
        np.testing.assert_array_equal(found, np.load(path))
        assert capsys.readouterr().out == f"teacher: its probabilities are those of {path}\n"
    same = dataclasses.replace(source, train_images=np.asfortranarray(source.train_images))
    teacher.teacher_probabilities(same, no_classifier, tmp_path, epochs=1)


def test_a_damaged_cache_file_is_to_be_deleted(tmp_path):
    teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)
    (path,) = tmp_path.iterdir()
    os.truncate(path, 900)
    with pytest.raises(ValueError, match="not a whole .npy.*; delete it, ") as error:
        teacher.teacher_probabilities(digits.load(), no_classifier, tmp_path, epochs=1)
    assert str(error.value).startswith(f"{path} ") and "\n" not in str(error.value)
    path.unlink()
    teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)


@pytest.mark.parametrize("folder", ["file", "file/below", "locked"])
def test_a_cache_that_cannot_be_written_is_refused_before_the_teacher_is_trained(
    tmp_path, monkeypatch, folder
):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(teacher.os, "access", lambda path, mode: Path(path).name != "locked")
    with pytest.raises(ValueError, match="cannot be kept there .*KERAS_HOME") as error:
        teacher.teacher_probabilities(digits.load(), no_classifier, tmp_path / folder, epochs=1)
    assert str(error.value).startswith(f"{tmp_path / folder}: ") and "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def write_npy(array, **options):
    return lambda path: np.save(path, array, **options)


GOOD = np.full((60, 4), 0.25, np.float64)


def test_probabilities_are_read_from_a_file(tmp_path):
    expected = np.random.default_rng(0).dirichlet(np.ones(4), 60)
    np.save(tmp_path / "p.npy", expected)
    probabilities = teacher.load_probabilities(tmp_path / "p.npy", small_source())
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_text("a,b\n1,2\n"), "not a whole .npy"),
        (lambda path: path.write_bytes(b""), "not a whole .npy"),
        (lambda path: np.savez(path.open("wb"), GOOD), "not a whole .npy"),
        (write_npy(GOOD.astype(object), allow_pickle=True), "not a whole .npy"),
        (lambda path: (np.save(path, GOOD), os.truncate(path, 700)), "not a whole .npy"),
        (write_npy(GOOD[:59]), r"shape \(60, 4\), received \(59, 4\)"),
        (write_npy(GOOD[:, :3]), r"shape \(60, 4\), received \(60, 3\)"),
        (write_npy(GOOD.ravel()), r"shape \(60, 4\), received \(240,\)"),
        (write_npy(np.ones((60, 4), int)), "floats, received int64"),
        (write_npy(GOOD * np.nan), "finite"),
        (write_npy(GOOD + [0.5, -0.5, 0, 0]), "below 0"),
        (write_npy(GOOD * 2), "sum to 1"),
    ],
)
def test_files_without_probabilities_get_one_line_that_names_them(tmp_path, write, message):
    path = tmp_path / "p.npy"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        teacher.load_probabilities(path, small_source())
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_another_sample_is_left_over_in_another_epoch():
    found = batch_numbers(pipeline.batches(*numbered(23), 5, seed=7, epochs=range(20)))
    assert set(sum(found, [])) == set(range(23))


def test_unlabeled_images_beside_a_data_set_come_in_another_order_each_epoch():
    noisy = tf.data.Dataset.from_tensor_slices(numbered(10)).batch(5)
    training_data = pipeline.TrainingData(
        noisy, None, numbered(23)[0], (1, 1, 1), 10, 5,
        seed=7, shuffle_meta=True, warms_up=False, holds=False,
    )  # fmt: skip
    epochs = range(2)
    numbers = [
        images.ravel().tolist() for images, labels in
        training_data._every(epochs=epochs).as_numpy_iterator() if labels[0] == -1
    ]
    assert len(numbers) == 8
    assert sorted(map(sorted, numbers[:4])) != sorted(map(sorted, numbers[4:]))


def test_another_number_of_epochs_is_another_teacher(tmp_path):
    source = digits.load()
    first, second = (
        teacher.teacher_probabilities(source, quick_classifier, tmp_path, epochs=epochs)
        for epochs in (1, 2)
    )
    assert (first != second).any()
    assert len(list(tmp_path.iterdir())) == 2


def test_digits_are_rounded_to_the_nearest_pixel():
    source = digits.load()
    assert set(np.unique(source.train_images)) == {round(i * 255 / 16) for i in range(17)}

"""Data sets, splits, the CIFAR-10 directory in all its broken states, and teacher probabilities."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import data
from data import cifar10, digits
from data.source import Source, make_splits

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
    splits = make_splits(source, source.train_labels, meta_size=40, unlabeled_size=0, seed=3)
    test, meta = splits.test_images.ravel(), splits.meta_images.ravel()
    assert len(set(test)) == 100 and len(set(meta)) == 40 and not set(test) & set(meta)
    np.testing.assert_array_equal(splits.test_labels, test % 4)
    np.testing.assert_array_equal(splits.meta_labels, meta % 4)
    assert splits.test_labels.dtype == splits.meta_labels.dtype == np.int32
    assert (np.diff(test.astype(int)) < 0).any()


def test_the_test_set_is_the_same_for_any_meta_and_unlabeled_size_and_depends_on_the_seed():
    source = small_source()

    def splits(seed, meta_size, unlabeled_size=0):
        return make_splits(
            source,
            source.train_labels,
            meta_size=meta_size,
            unlabeled_size=unlabeled_size,
            seed=seed,
        )

    few, many, other = splits(0, 10), splits(0, 100, 30), splits(1, 100)
    np.testing.assert_array_equal(few.test_images, many.test_images)
    np.testing.assert_array_equal(few.meta_images, many.meta_images[:10])
    assert (many.test_images != other.test_images).any()


def test_unlabeled_samples_lose_their_label_and_only_they_do():
    source = small_source()
    given = np.roll(source.train_labels, 1)
    before = given.copy()
    splits = make_splits(source, given, meta_size=40, unlabeled_size=17, seed=3)
    hidden = splits.given_labels == -1
    assert hidden.sum() == 17 and not hidden[:17].all()
    np.testing.assert_array_equal(splits.given_labels[~hidden], given[~hidden])
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(splits.clean_labels, source.train_labels)
    assert splits.given_labels.dtype == np.int32


def test_noise_ratio_counts_labeled_samples_only():
    source = small_source()
    given = source.train_labels.copy()
    given[:15] = (given[:15] + 1) % 4
    splits = make_splits(source, given, meta_size=40, unlabeled_size=0, seed=3)
    assert splits.noise_ratio == 0.25
    splits = make_splits(source, given, meta_size=40, unlabeled_size=20, seed=3)
    wrong = np.count_nonzero(splits.given_labels[:15] >= 0)
    assert 0 < wrong < 15 and splits.noise_ratio == wrong / 40


def test_a_meta_set_without_a_class_is_warned_of_by_name():
    source = small_source()
    with pytest.warns(UserWarning, match="no sample of") as caught:
        splits = make_splits(source, source.train_labels, meta_size=2, unlabeled_size=0, seed=3)
    missing = [name for i, name in enumerate("abcd") if i not in splits.meta_labels]
    assert str(caught[0].message).endswith(": " + ", ".join(missing))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_splits(source, source.train_labels, meta_size=100, unlabeled_size=0, seed=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta_size": 0}, "meta size: expected 1 to 100 .* received 0"),
        ({"meta_size": 101}, "meta size: expected 1 to 100 .* received 101"),
        ({"unlabeled_size": -1}, "unlabeled size: expected 0 to 59 .* received -1"),
        ({"unlabeled_size": 60}, "unlabeled size: expected 0 to 59 .* received 60"),
        ({"given_labels": np.zeros(59, int)}, r"given labels: .*\(60,\).*\(59,\)"),
        ({"given_labels": np.full(60, 4)}, r"given labels: .*\[0, 4\).* 4"),
        ({"given_labels": np.full(60, -1)}, r"given labels: .*\[0, 4\).* -1"),
        ({"given_labels": np.zeros(60)}, "given labels: .*float64"),
    ],
)
def test_bad_splits_get_one_line(change, message):
    source = small_source()
    arguments = dict(given_labels=source.train_labels, meta_size=40, unlabeled_size=0, seed=0)
    with pytest.raises(ValueError, match=message) as error:
        make_splits(source, **(arguments | change))
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


# --- CIFAR-10 in a TFDS directory


def png(pixels):
    import tensorflow as tf

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
    import tensorflow as tf

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
    from data.teacher import teacher_probabilities

    source, calls = digits.load(), []

    def teach(folder, **options):
        return teacher_probabilities(
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
    from data import teacher

    def half(file, array):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(teacher.np, "save", half)
    with pytest.raises(OSError, match="disk full"):
        teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [{"epochs": 0}, {"temperature": 0.0}])
def test_bad_teacher_options_are_refused_by_name(tmp_path, option):
    from data.teacher import teacher_probabilities

    (name,) = option
    with pytest.raises(ValueError, match=name):
        teacher_probabilities(digits.load(), quick_classifier, tmp_path, **option)


def write_npy(array, **options):
    return lambda path: np.save(path, array, **options)


GOOD = np.full((60, 4), 0.25, np.float64)


def test_probabilities_are_read_from_a_file(tmp_path):
    from data.teacher import load_probabilities

    expected = np.random.default_rng(0).dirichlet(np.ones(4), 60)
    np.save(tmp_path / "p.npy", expected)
    probabilities = load_probabilities(tmp_path / "p.npy", small_source())
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
    from data.teacher import load_probabilities

    path = tmp_path / "p.npy"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        load_probabilities(path, small_source())
    assert str(path) in str(error.value) and "\n" not in str(error.value)

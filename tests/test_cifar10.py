"""CIFAR-10 directories, whole and in all broken states; CIFAR-100; human labels of both."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from runs import main, read_result

from mln_keras.data import cifar10, cifar100, corruption
from mln_keras.data.checks import ArgumentError

NUM_TRAIN, NUM_TEST = 24, 10
VERSION_DIR = Path("cifar10", "3.0.2")


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
    with pytest.raises(ArgumentError) as error:
        cifar10.load(data_dir)
    message = str(error.value)
    assert message.startswith(f"data_dir: {data_dir}: ")
    assert "\n" not in message and "; to mend it, " in message
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
        "truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat",
    }  # fmt: skip


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

    data_dir = tmp_path / "new" / "tfds"
    with monkeypatch.context() as patch:
        patch.setattr(Cifar10, "_split_generators", cifar_generators())
        assert_is_whole(cifar10.load(data_dir))
    assert capfd.readouterr().out == ""
    assert [path.relative_to(data_dir) for path in data_dir.glob("*/*")] == [VERSION_DIR]
    assert len(list(tmp_path.rglob("*cifar10*train*"))) == 1
    assert_is_whole(cifar10.load(data_dir))


def test_human_labels_come_in_the_row_order_of_the_images(cifar_dir):
    rng = np.random.default_rng(1)
    features = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")
    human = {name: rng.integers(0, 10, NUM_TRAIN) for name in features}
    generators = cifar_generators()

    def with_human_labels(self, dl_manager):
        def examples(split, rows):
            for i, row in rows:
                workers = {f"worker{k}_{what}": -1 for k in (1, 2, 3) for what in ("id", "time")}
                labels = {n: int(v[i]) if split == "train" else -1 for n, v in human.items()}
                yield i, row | workers | labels

        splits = generators(self, dl_manager)
        return {split: examples(split, rows) for split, rows in splits.items()}

    prepare(cifar_dir, with_human_labels, "cifar10_n")
    source = cifar10.load(cifar_dir)
    assert source.human_labels.keys() == {0.09, 0.17, 0.4}
    for ratio, name in ((0.09, "aggre_label"), (0.17, "random_label1"), (0.4, "worse_label")):
        labels = source.human_labels[ratio](cifar_dir)
        np.testing.assert_array_equal(labels, human[name])
        assert labels.dtype == np.int32


def test_human_labels_that_are_not_there_get_one_line(cifar_dir):
    source = cifar10.load(cifar_dir)
    with pytest.raises(ArgumentError) as error:
        source.human_labels[0.4](cifar_dir)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"data_dir: {cifar_dir}: cifar10_n is not prepared there; ")


# ---- CIFAR-100 ----------------------------------------------------------------------------------


def cifar100_generators(**more):
    """As `cifar_generators`, with fine labels; `more` are further features, functions of a row."""
    images, labels = cifar_arrays()

    def examples(split, start, count):
        for i in range(count):
            row = start + i
            of_row = {name: value(row) if split == "train" else -1 for name, value in more.items()}
            yield i, {"id": f"{split}_{i:05d}", "image": png(images[row]),
                      "label": int(labels[row]) * 9, "coarse_label": 3} | of_row  # fmt: skip

    def split_generators(self, dl_manager):
        del dl_manager
        self.info.features["label"].names = list(cifar100.CLASS_NAMES)
        return {"train": examples("train", 0, NUM_TRAIN),
                "test": examples("test", NUM_TRAIN, NUM_TEST)}  # fmt: skip

    return split_generators


def test_cifar100_has_the_fine_labels_in_the_order_of_the_ids(tmp_path):
    source = cifar100.load(prepare(tmp_path, cifar100_generators(), "cifar100"))
    images, labels = cifar_arrays()
    np.testing.assert_array_equal(source.train_images, images[:NUM_TRAIN])
    np.testing.assert_array_equal(source.train_labels, labels[:NUM_TRAIN] * 9)
    np.testing.assert_array_equal(source.held_out_labels, labels[NUM_TRAIN:] * 9)
    assert source.test_size == NUM_TEST // 2 and source.train_labels.dtype == np.int32
    assert source.num_classes == 100
    known = {0: "apple", 8: "bicycle", 35: "girl", 58: "pickup_truck", 89: "tractor", 99: "worm"}
    assert {i: source.class_names[i] for i in known} == known


def test_flips_of_cifar100_go_round_in_each_superclass(tmp_path):
    source = cifar100.load(prepare(tmp_path, cifar100_generators(), "cifar100"))
    names = {source.class_names[a]: source.class_names[b] for a, b in source.flips.items()}
    known = {"baby": "boy", "boy": "girl", "girl": "man", "man": "woman", "woman": "baby"}
    known |= {"whale": "beaver", "beaver": "dolphin", "tractor": "lawn_mower"}
    assert names.items() >= known.items() and set(names) == set(names.values())
    for start in source.flips:
        ring = [start]
        while (following := source.flips[ring[-1]]) != start:
            ring.append(following)
        assert len(ring) == 5


def test_human_labels_of_cifar100(tmp_path):
    prepare(tmp_path, cifar100_generators(), "cifar100")
    more = {"noise_label": lambda row: (row * 7) % 100, "worker_id": lambda row: 1,
            "worker_time": lambda row: 0.5}  # fmt: skip
    prepare(tmp_path, cifar100_generators(**more), "cifar100_n")
    source = cifar100.load(tmp_path)
    labels = corruption.corrupt(source, "human", 0.4, 0, data_dir=tmp_path, build_teacher=None)
    np.testing.assert_array_equal(labels, np.arange(NUM_TRAIN) * 7 % 100)
    assert labels.dtype == np.int32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the meta set holds")
@pytest.mark.parametrize("method", ["metalabelnet", "cross_entropy", "mslg"])
def test_cifar100_by_command(tmp_path, method):
    where = prepare(tmp_path / "tfds", cifar100_generators(), "cifar100")
    sizes = ("--epochs", 2, "--meta_size", 5, "--batch_size", 5)
    warmup = () if method == "cross_entropy" else ("--warmup_epochs", 1)
    flags = ("--noise", "class_dependent", "--noise_ratio", 1, "--method", method, *warmup)
    assert main("--dataset", "cifar100", "--data_dir", where, "--output_dir", tmp_path / "out",
                *sizes, *flags) == 0  # fmt: skip
    result = read_result(tmp_path / "out")
    assert result["noise_ratio_actual"] == 1 and result["samples"]["train"] == NUM_TRAIN
    served = tf.saved_model.load(tmp_path / "out" / "saved_model")
    assert served.serve(cifar_arrays()[0][:2])["probabilities"].shape == (2, 100)

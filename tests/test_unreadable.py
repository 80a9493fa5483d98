"""Image files that cannot be read: training goes on, and they are counted and named."""

import os
import time
import types
import urllib.error

import keras
import layouts
import numpy as np
import pytest
from keras import layers
from PIL import Image
from runs import main

from mln_keras import MetaLabelNet
from mln_keras.command import results, run
from mln_keras.data import batches, image_files, progress, suspects, tensorflow_errors, unreadable
from mln_keras.data.image_files import ImageFiles

COUNT = 300
MANY = [*range(0, COUNT, 100)]  # as many as are allowed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of one color each, which is their number."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT):
        Image.new("RGB", (3, 2), (i // 16, 8 * (i % 16), 7)).save(folder / f"{i:03d}.png")
    return [str(folder / f"{i:03d}.png") for i in range(COUNT)]


def images_without(pictures, missing):
    paths = list(pictures)
    for i in missing:
        paths[i] += ".gone"
    return ImageFiles(paths, (2, 3)), paths


def numbers_of(batch):
    """The number of each image, by its color."""
    return 16 * batch[:, 0, 0, 0].astype(int) + batch[:, 0, 0, 1] // 8


def batches_of(images, batch_size=32, epochs=range(2), seed=3, rows=True):
    labels = np.arange(len(images)) % 7
    dataset = batches.batches(
        images, labels, batch_size, epochs=epochs, seed=seed,
        rows=np.arange(len(images)) if rows else None,
    )  # fmt: skip
    with tensorflow_errors.in_one_line():
        return dataset, list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("missing", [[0], [COUNT - 1], [31, 32, 33], [287, 288, 299], MANY])
def test_batches_stay_full_and_the_next_sample_comes_twice(pictures, missing, seed):
    images, paths = images_without(pictures, missing)
    dataset, found = batches_of(images, seed=seed)
    whole, expected = batches_of(ImageFiles(pictures, (2, 3)), seed=seed)
    assert int(dataset.cardinality()) == len(found) == len(expected) == 2 * (COUNT // 32)
    assert dataset.element_spec == whole.element_spec
    order = np.concatenate([rows for _, _, rows in expected])
    rows = np.concatenate([rows for _, _, rows in found])
    is_missing = np.isin(order, missing)
    np.testing.assert_array_equal(rows[~is_missing], order[~is_missing])
    for place in np.flatnonzero(is_missing)[::-1]:
        if place + 1 < len(rows):
            assert rows[place] == rows[place + 1]
    assert not np.isin(rows, missing).any()
    for pixels, labels, rows in found:
        assert len(pixels) == 32
        np.testing.assert_array_equal(numbers_of(pixels), rows)
        np.testing.assert_array_equal(labels, rows % 7)
    assert set(images.unreadable) == {paths[i] for i in missing if i in set(order)}


@pytest.mark.parametrize("missing", [[5, 288, 299], MANY])
def test_an_epoch_is_the_same_whether_others_come_before_or_after_it(pictures, missing):
    images, _ = images_without(pictures, missing)
    _, found = batches_of(images, epochs=range(4))
    for epochs in (range(1, 3), range(3, 4)):
        _, part = batches_of(images, epochs=epochs)
        expected = found[epochs.start * 9 : epochs.stop * 9]
        for one, other in zip(part, expected, strict=True):
            for a, b in zip(one, other):
                np.testing.assert_array_equal(a, b)


def test_more_than_one_percent_ends_the_training_by_ten_names(pictures):
    missing = range(40, 52)
    images, paths = images_without(pictures, missing)
    with pytest.raises(ValueError, match=r"^\d+ of 300 image files cannot be read, more th") as e:
        batches_of(images, seed=None)
    text = str(e.value)
    assert "\n" not in text and f"{paths[40]!r} (no such file or directory)" in text
    images, paths = images_without(pictures, range(12))
    with pytest.raises(ValueError) as e:
        image_files.check_files([images], seed=0)
    named = [path for path in paths[:12] if path in str(e.value)]
    assert len(named) == 10 and str(e.value).endswith(" and 2 more")


def test_where_no_file_can_be_read_a_data_set_without_end_does_not_look_for_ever(pictures):
    images, _ = images_without(pictures, range(COUNT))
    dataset = batches.batches(images, np.zeros(COUNT), 32, epochs=range(batches.MANY), seed=0)
    with pytest.raises(ValueError, match="cannot be read"), tensorflow_errors.in_one_line():
        next(iter(dataset))


def test_a_check_finds_what_every_list_has(pictures, monkeypatch):
    lists = [images_without(pictures, missing)[0] for missing in ([7], [], [200, 299])]
    image_files.check_files(lists, seed=0, every=True)
    assert [len(images.unreadable) for images in lists] == [1, 0, 2]
    assert [np.flatnonzero(~images.is_readable()).tolist() for images in lists] == [
        [7], [], [200, 299]
    ]  # fmt: skip
    monkeypatch.setattr(image_files, "SAMPLE", 100)
    monkeypatch.setattr(image_files, "LEAST_SAMPLE", 40)
    decoded = []
    monkeypatch.setattr(
        ImageFiles, "find_damaged", lambda self: decoded.extend(self.paths) or [],
    )
    image_files.check_files(lists, seed=0)
    assert len(decoded) == 3 * 40
    first = list(decoded)
    decoded.clear()
    image_files.check_files(lists, seed=0)
    assert decoded == first
    decoded.clear()
    image_files.check_files(lists, seed=1)
    assert decoded != first


def test_a_small_list_of_which_too_much_is_missing_is_found_beside_a_long_one(pictures):
    whole = images_without(pictures, [])[0]
    test = images_without(pictures, range(20))[0][:40]
    with pytest.raises(ValueError, match="^20 of 40 image files cannot be read, more than 1%"):
        image_files.check_files([whole] * 10 + [test], seed=0)


def trained(images, labels, meta, learning_rate=0.05):
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [keras.Input((2, 3, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2)]
    )
    model = MetaLabelNet(classifier, 1)
    model.compile(keras.optimizers.SGD(learning_rate), jit_compile=False)
    model.fit(images, labels, meta_data=meta, batch_size=32, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("in_a_row", [1, 7, 32])
def test_in_order_blanks_come_one_by_one_however_many(pictures, in_a_row, monkeypatch):
    monkeypatch.setattr(unreadable, "IN_A_ROW", in_a_row)
    missing = [*range(5, 90), 100, *range(150, COUNT)]
    images, paths = images_without(pictures, missing)
    found = list(images.dataset(np.arange(COUNT), 50).as_numpy_iterator())
    assert [len(pixels) for pixels, _ in found] == [50] * 6
    pixels, rows = (np.concatenate(column) for column in zip(*found))
    expected = np.where(np.isin(np.arange(COUNT), missing), -1, np.arange(COUNT))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(numbers_of(pixels)[rows >= 0], rows[rows >= 0])
    assert not pixels[rows < 0].any()
    assert list(images.unreadable) == [paths[i] for i in missing]


def test_what_is_measured_leaves_them_out(pictures):
    """Accuracy is of the others; predictions and soft labels of them are NaN."""
    missing = [0, 150, 299]
    images, _ = images_without(pictures, missing)
    labels = np.arange(COUNT) // (COUNT // 2)
    labels[missing] = 1 - labels[missing]
    model = trained(images, labels, (images, labels))
    rest = np.setdiff1d(np.arange(COUNT), missing)
    whole = ImageFiles(pictures, (2, 3))[rest]
    expected = model.evaluate(whole, labels[rest], verbose=0)
    with pytest.warns(UserWarning, match="^x: 3 of 300 image files cannot be read and are lef"):
        found = model.evaluate(images, labels, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = model.evaluation(images, labels, 64)()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for rows, right in (
        (model.predict(images, verbose=0), model.predict(whole, verbose=0)),
        (model.soft_labels(images, 64), model.soft_labels(whole)),
    ):
        assert np.isnan(rows[missing]).all()
        np.testing.assert_allclose(rows[rest], right, rtol=1e-5)


def test_a_meta_set_in_memory_is_without_them(pictures):
    images, _ = images_without(pictures, [4, 5])
    pixels, labels = images.load(np.arange(COUNT))
    np.testing.assert_array_equal(labels, np.setdiff1d(np.arange(COUNT), [4, 5]))
    np.testing.assert_array_equal(numbers_of(pixels), labels)
    with pytest.raises(ValueError, match="^4 of 300 image files cannot be read, more than 1%"):
        images_without(pictures, range(4))[0].load(np.arange(COUNT))


def test_suspects_leave_out_what_has_no_prediction():
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]], np.float32)
    found = suspects.find(probabilities, [1, 0, 1])
    assert found["index"].tolist() == [0, 2]
    joint = suspects.counted_joint(probabilities, [1, 0, 1])
    np.testing.assert_allclose(joint, [[0, 0], [0.5, 0.5]])


def test_parts_share_what_is_known(pictures):
    images, paths = images_without(pictures, [7])
    part = images[np.arange(5, 10)]
    assert part.find_damaged() == [paths[7]] == list(images.unreadable)
    assert np.flatnonzero(~images.is_readable()).tolist() == [7]


def test_why_a_file_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("text")
    text = unreadable.in_words([str(tmp_path / "text.png"), str(tmp_path), str(tmp_path / "none")])
    for reason in ("no picture that TensorFlow decodes", "is a directory", "no such file"):
        assert f"({reason}" in text


def test_progress_speaks_after_ten_seconds_and_says_what_is_left(monkeypatch, capsys):
    seconds = iter(range(0, 10_000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    parts = [range(10)] * 10
    assert list(progress.progress(parts, 100, "files checked")) == parts
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "files checked: 30 of 100, 28 s left" and len(lines) == 8
    bar = progress.Progress(1_000_000, "soft labels")
    bar.add(1)  # after four seconds
    bar.add(249_999)
    bar.add(100_000)
    assert capsys.readouterr().err == "soft labels: 350,000 of 1,000,000, 22 s left\n"
    monkeypatch.setattr(time, "monotonic", lambda: 0)
    list(progress.progress(parts, 100, "files checked"))
    assert os.linesep not in capsys.readouterr().err


# ---- by command ---------------------------------------------------------------------------------


@pytest.fixture
def splits(pictures):
    """One training file of 300 is missing."""
    train = images_without(pictures, [299])[0]
    empty = ImageFiles([], (2, 3))
    return types.SimpleNamespace(
        train_images=train, given_labels=np.zeros(COUNT, np.int32), meta_images=empty,
        test_images=empty,
    )  # fmt: skip


@pytest.mark.parametrize("check_files", [False, True])
def test_the_command_line_decodes_all_files_where_that_is_asked_for(
    splits, check_files, monkeypatch
):
    monkeypatch.setattr(image_files, "SAMPLE", 1)
    monkeypatch.setattr(image_files, "LEAST_SAMPLE", 1)
    run.check_files({"seed": 0, "check_files": check_files}, splits)
    assert list(results.unreadable_files(splits)) == ["train", "meta", "test"]
    assert len(results.unreadable_files(splits)["train"]) == check_files


def test_soft_labels_that_a_method_keeps_are_nan_where_a_file_cannot_be_read(splits, tmp_path):
    splits.train_images.find_damaged()
    results.write_soft_labels(tmp_path, splits, np.full((COUNT, 2), 0.5, np.float32))
    found = np.load(tmp_path / "soft_labels.npz")["soft_labels"]
    assert found.dtype == np.float32 and np.isnan(found[299]).all() and (found[:299] == 0.5).all()


def test_weights_that_cannot_be_loaded_are_refused_before_training(tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fails)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    layouts.folders(tmp_path / "images", kinds=("jpeg",))
    assert main(
        "--dataset", "folders", "--data_dir", tmp_path / "images", "--backbone", "mobilenet",
        "--image_size", 32, "--batch_size", 4, "--output_dir", tmp_path / "out",
    ) == 2  # fmt: skip
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("mln_keras.py: --weights: cannot load imagenet for MobileNet (")
    assert "or none for random weights" in line and not (tmp_path / "out").exists()

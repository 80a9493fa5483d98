"""Training from image files equals training from arrays."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from mln_keras import MetaLabelNet
from mln_keras.data import batches, inputs, tensorflow_errors
from mln_keras.data.image_files import ImageFiles, from_directory
from mln_keras.training.phases import Phase

pytestmark = pytest.mark.filterwarnings("ignore:.* left out .*notes.txt")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 6, 8, 3), np.uint8)


@pytest.fixture
def files(tmp_path, pixels):
    """The pixels as lossless files, in two folders a class in turn."""
    for i, image in enumerate(pixels):
        path = tmp_path / f"{'ba'[i % 2]}" / f"{i:02d}.{'PNG' if i % 3 else 'bmp'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "list.txt").write_text("no folder")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a" / "._01.png").write_text("no image")
    return tmp_path


def compiled(learning_rate=0.1, metrics=()):
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [keras.Input((6, 8, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2)]
    )
    model = MetaLabelNet(classifier, 1)
    model.compile(keras.optimizers.SGD(learning_rate), metrics=metrics, jit_compile=False)
    return model


def trained(images, labels, unlabeled, meta):
    model = compiled()
    validation = meta if isinstance(images, np.ndarray) else meta[0].dataset(meta[1])
    history = model.fit(
        (images, labels), meta_data=meta, unlabeled_data=unlabeled, validation_data=validation,
        batch_size=4, epochs=3, verbose=0,
    ).history  # fmt: skip
    return [w.numpy() for w in model.weights], history, model.soft_labels(images, batch_size=7)


def test_files_to_predict_and_evaluate_are_never_all_in_memory(files, monkeypatch):
    images, labels, _ = from_directory(files, (6, 8))
    arrays = np.asarray(images)
    model = compiled(learning_rate=0.0, metrics=["accuracy"])  # the weights stay

    def results(found):
        history = model.fit(
            arrays, labels, batch_size=8, validation_data=(found, labels), verbose=0
        ).history
        return [
            model.predict(found, batch_size=5, verbose=0), model.predict(found, verbose=0),
            model.evaluate(found, labels, 5, verbose=0),
            model.evaluate((found, labels), verbose=0), history["val_loss"],
        ]  # fmt: skip

    expected = results(arrays)

    def decode_all(self, dtype=None, copy=None):
        raise AssertionError("decoded all images")

    monkeypatch.setattr(ImageFiles, "__array__", decode_all)
    for found, right in zip(results(images), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5)


def test_a_directory_is_read_in_the_order_of_names(files, pixels):
    images, labels, names = from_directory(files, (6, 8))
    assert names == ("a", "b") and images.shape == (24, 6, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 12))
    np.testing.assert_array_equal(images, np.concatenate([pixels[1::2], pixels[::2]]))
    np.testing.assert_array_equal(images[labels == 1], pixels[::2])
    np.testing.assert_array_equal(images[2:4], pixels[5:8:2])


def test_a_number_gives_an_image_and_iterating_gives_all(files, pixels):
    images, _, _ = from_directory(files, (6, 8))
    expected = np.concatenate([pixels[1::2], pixels[::2]])
    for index in (3, np.int64(4), -1):
        assert images[index].dtype == np.uint8
        np.testing.assert_array_equal(images[index], expected[index])
    np.testing.assert_array_equal(list(images), expected)
    with pytest.raises(IndexError):
        images[24]


def test_class_names_number_the_classes_of_another_directory(files, pixels, tmp_path):
    for path in (files / "a").iterdir():
        path.unlink()
    images, labels, names = from_directory(files, (6, 8), class_names=("c", "b", "a"))
    assert names == ("c", "b", "a")
    np.testing.assert_array_equal(labels, np.ones(12))
    np.testing.assert_array_equal(images, pixels[::2])
    for names, message in (
        (("c", "a"), "expected folders with the names of the classes, 'c', 'a'; found 'b' too"),
        (("a", "b", "a"), "class_names: expected a list of different names"),
        ("ab", "class_names: expected a list of different names"),
    ):
        with pytest.raises(ValueError, match=message):
            from_directory(files, (6, 8), class_names=names)


def test_batches_have_one_known_shape(files):
    images, labels, _ = from_directory(files, (6, 8))
    shapes = [spec.shape for spec in batches.batches(images, labels, 5).element_spec]
    assert shapes == [(5, 6, 8, 3), (5,)]
    assert images.dataset(labels).element_spec[0].shape[1:] == (6, 8, 3)


@pytest.mark.parametrize("held_bytes", [0, pytest.param(2**30, marks=pytest.mark.slow)])
def test_training_from_files_equals_training_from_arrays(files, held_bytes, monkeypatch):
    monkeypatch.setattr(inputs, "HELD_BYTES", held_bytes)
    images, labels, _ = from_directory(files, (6, 8))
    labels[3:6] = -1
    every = []
    for of in (lambda files: files, np.asarray):
        meta = (of(images[::2]), np.repeat([0, 1], 6).astype(np.int32))
        every.append(trained(of(images[:20]), labels[:20], of(images[20:]), meta))
    (weights, history, soft_labels), (expected, expected_history, expected_soft_labels) = every
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, column in history.items():
        np.testing.assert_array_equal(column, expected_history[name])
    np.testing.assert_array_equal(soft_labels, expected_soft_labels)


@pytest.mark.filterwarnings("ignore:meta_data. holds no sample")
@pytest.mark.parametrize("held_bytes", [12 * 6 * 8 * 3, 12 * 6 * 8 * 3 - 1])
def test_a_meta_set_that_fits_into_memory_is_read_once(files, held_bytes, monkeypatch):
    monkeypatch.setattr(inputs, "HELD_BYTES", held_bytes)
    images, labels, _ = from_directory(files, (6, 8))
    noisy, meta = ((images[rows], labels[rows]) for rows in (labels == 1, labels == 0))
    training_data = inputs.TrainingData(
        noisy, meta, None, inputs.Expected((6, 8, 3), 2), inputs.Batching(4, seed=0)
    )
    pairs = training_data.batches(Phase("phase 2", samples="all", with_meta=True), range(1))
    for path in meta[0].paths:
        Path(path).unlink()
    if held_bytes < 12 * 6 * 8 * 3:
        with pytest.raises(ValueError, match="^12 of 12 image files cannot be read, more than 1%"):
            with tensorflow_errors.in_one_line():
                list(pairs)
    else:
        assert len(list(pairs)) == len(noisy[0]) // 4 > 0


def test_images_are_resized_as_pillow_does_and_their_centre_is_taken(tmp_path):
    y, x = np.mgrid[:37, :50]
    image = np.stack([5 * x, 6 * y, 120 + 100 * np.sin(x * y / 40)], -1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    found = np.asarray(ImageFiles([tmp_path / "image.png"], (12, 10), (16, 20)))[0]
    resized = Image.fromarray(image).resize((20, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found, np.asarray(resized)[2:14, 5:15], atol=1)


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_resized_pixels_are_rounded(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    found = np.asarray(ImageFiles([save(tmp_path / "i.png", image)], (16, 20)))[0]
    resized = Image.fromarray(image).resize((20, 16), Image.Resampling.BILINEAR)
    difference = found - np.asarray(resized, int)
    assert abs(difference).max() <= 1 and abs(difference.mean()) < 0.1


def test_an_odd_margin_is_cut_at_whole_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    found = np.asarray(ImageFiles([save(tmp_path / "i.png", image)], (5, 7), (8, 12)))[0]
    np.testing.assert_array_equal(found, image[1:6, 2:9])


def test_parts_of_image_files_and_their_union_are_resized_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
    images = ImageFiles(
        [save(tmp_path / f"{i}.png", image) for i, image in enumerate(pixels)], (4, 5), (8, 9)
    )
    np.testing.assert_array_equal(images, pixels[:, 2:6, 2:7])
    np.testing.assert_array_equal(images[1:3], pixels[1:3, 2:6, 2:7])
    training_data = inputs.TrainingData(
        (images[:4], np.zeros(4, int)), None, images[4:],
        inputs.Expected((4, 5, 3), 2), inputs.Batching(6, seed=0),
    )  # fmt: skip
    ((batch, _),) = training_data.batches(Phase("all", samples="all"), range(1))
    found = {image.tobytes() for image in batch.numpy()}
    assert found == {image.tobytes() for image in pixels[:, 2:6, 2:7]}


def test_gray_and_animated_images_have_three_channels(tmp_path):
    gray = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    gray.save(tmp_path / "gray.jpg")
    gray.save(tmp_path / "moving.gif", save_all=True, append_images=[gray.rotate(180)])
    images = np.asarray(ImageFiles([tmp_path / "gray.jpg", tmp_path / "moving.gif"], (6, 8)))
    for image in images:
        np.testing.assert_allclose(image, np.stack([gray] * 3, -1), atol=4)


@pytest.mark.filterwarnings("ignore:meta_data. holds no sample")
@pytest.mark.parametrize("meta_files", [slice(4), slice(4, 8)])
def test_a_damaged_file_stops_training_and_is_found(files, meta_files):
    images, labels, _ = from_directory(files, (6, 8))
    damaged = [images.paths[5], images.paths[17]]
    for path in damaged:
        with open(path, "r+b") as file:
            file.truncate(40)
    with pytest.raises(ValueError, match=rf"^\d of \d+ image files cannot .*'{damaged[0]}' \(no p"):
        trained(images, labels, None, (images[meta_files], labels[meta_files]))
    assert images.find_damaged() == damaged
    assert ImageFiles(map(Path, images.paths), (6, 8)).find_damaged() == damaged
    assert ImageFiles(map(str.encode, images.paths), (6, 8)).find_damaged() == damaged


@pytest.mark.filterwarnings("ignore:meta_data. holds no sample")
def test_a_file_that_is_gone_stops_training_by_its_name(files):
    images, labels, _ = from_directory(files, (6, 8))
    Path(images.paths[5]).unlink()
    with pytest.raises(ValueError, match=f"^'{images.paths[5]}': no such file or directory$"):
        np.asarray(images)
    for fails in (
        lambda: trained(images, labels, None, (images[12:], labels[12:])),
        lambda: trained(images[6:], labels[6:], None, (images[:6], labels[:6])),
    ):
        with pytest.raises(ValueError, match=f"more than 1%: '{images.paths[5]}' \\(no such fil"):
            fails()


def test_a_dataset_of_images_and_labels_takes_a_label_an_image(files):
    images, labels, _ = from_directory(files, (6, 8))
    assert sum(len(batch) for batch, _ in images.dataset(labels)) == len(images)
    for wrong in (labels[:-1], labels[:, None]):
        with pytest.raises(ValueError, match=r"^labels: expected shape \(24,\), one an image, rec"):
            images.dataset(wrong)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d / "c", "c: expected a directory with a folder for each class"),
        (lambda d: d / "a", "expected a folder for each of two or more classes, found 0"),
        (lambda d: (d / "c").mkdir() or d, r"c: expected images \(.jpg, .* found none"),
    ],
)
def test_directories_without_images_are_refused(files, spoil, message):
    with pytest.raises(ValueError, match=message):
        from_directory(spoil(files), (6, 8))


def test_an_empty_meta_set_is_refused(files):
    images, labels, _ = from_directory(files, (6, 8))
    with pytest.raises(ValueError, match="meta_data: expected at least one batch, .*received 0"):
        trained(images, labels, None, (images[labels == 9], labels[labels == 9]))


def test_sizes_that_do_not_fit_are_refused(files, pixels):
    with pytest.raises(ValueError, match="resize: expected at least size="):
        from_directory(files, (6, 8), (7, 7))
    with pytest.raises(ValueError, match=r"^size: expected \(height, width\), received 6"):
        from_directory(files, 6)
    with pytest.raises(ValueError, match="^paths: expected a list of file names, received 'a.png'"):
        ImageFiles("a.png", (6, 8))
    images, labels, _ = from_directory(files, (6, 8))
    with pytest.raises(ValueError, match="unlabeled_data: expected ImageFiles as x is"):
        trained(images, labels, pixels, (images, labels))
    with pytest.raises(ValueError, match=r"x: expected images of shape \('N', 6, 8, 3\)"):
        trained(ImageFiles(images.paths, (5, 8)), labels, None, (images, labels))


@pytest.mark.slow
def test_a_file_name_need_not_be_text(files, pixels):
    latin = files / "a" / os.fsdecode("é.png".encode("latin-1"))
    (files / "a" / "01.PNG").rename(latin)
    images, labels, _ = from_directory(files, (6, 8))
    meta = images[8:16], labels[8:16]
    np.testing.assert_array_equal(images[11:12], pixels[1:2])
    assert images.paths[11] == str(latin) and images.find_damaged() == []
    trained(images, labels, None, meta)
    os.truncate(latin, 40)
    assert images.find_damaged() == [str(latin)]


def test_class_names_without_any_image_are_refused(files):
    for path in [*(files / "a").iterdir(), *(files / "b").iterdir()]:
        path.unlink()
    with pytest.raises(ValueError, match="expected images in the folders of class_names, found no"):
        from_directory(files, (6, 8), class_names=("a", "b"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{files}/a", "'{files}/a': is a directory"),
        ("{files}/a/01.PNG/x", "'{files}/a/01.PNG/x': not a directory"),
        ("https://host/a: b.jpg", "'https://host/a: b.jpg': TensorFlow reads no files from https:"),
        ("01.png\r", r"'01.png\\r': no such file or directory"),
        ("01.png\n", r"'01.png\\n': no such file or directory"),
        ("a: b; c.png", "'a: b; c.png': no such file or directory"),
        ("{files}/" + 300 * "x", "'{files}/x+': file name too long"),
    ],
)
def test_names_that_cannot_be_read_are_shown_as_they_are(files, name, message):
    images, labels, _ = from_directory(files, (6, 8))
    name, message = name.format(files=files), f"^{message.format(files=files)}"
    images = ImageFiles([*images.paths, name], (6, 8))
    assert images.find_damaged() == [name]
    with pytest.raises(ValueError, match=message) as error:
        images[-1]
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^1 of 24 image files") as error:
        compiled().fit(images[1:], [*labels[1:], 0], batch_size=24, verbose=0)
    assert f"more than 1%: {name!r} (" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", ["", None, float("nan"), 3, "a\0b"])
def test_what_is_no_file_name_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=r"^paths: expected file names, received .* at index 1$"):
        ImageFiles(["a.png", wrong], (6, 8))


def test_what_is_left_out_of_a_directory_is_warned_of(files, pixels):
    for name in ("a/scan.TIFF", "a/other.tiff", "b/photo", "b/new.AVIF"):
        (files / name).write_bytes(b"")
    (files / "b" / "more.png").mkdir()
    save(files / "beside.png", pixels[0])
    with pytest.warns(UserWarning, match="left out") as caught:
        images, _, _ = from_directory(files, (6, 8))
    assert len(images) == 24 and caught[0].filename == __file__
    message = str(caught[0].message)
    for part in ("'a/notes.txt', 'a/other.tiff', 'a/scan.TIFF' and 4 more", ".tiff: 2", ".txt: 1",
                 ".avif: 1", "no ending: 1", "folders: 1", ".png: 1", ".jfif"):  # fmt: skip
        assert part in message, part
    assert "\n" not in message


def test_jfif_files_are_jpeg_files(files):
    (files / "c").mkdir()
    for name in ("c/a.jfif", "c/b.JFIF"):
        Image.new("RGB", (8, 6), (10, 200, 30)).save(files / name, format="jpeg", quality=95)
    images, labels, _ = from_directory(files, (6, 8))
    np.testing.assert_allclose(images[labels == 2], np.full((2, 6, 8, 3), (10, 200, 30)), atol=3)


def test_a_folder_without_images_says_what_is_there(files):
    (files / "c").mkdir()
    (files / "c" / "x.tiff").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c: expected images .* found 'c/x.tiff' \(.tiff: 1\)$"):
        from_directory(files, (6, 8))

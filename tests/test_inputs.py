"""What `fit` and `evaluate` refuse, or warn of, before any training."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mln_keras import MetaLabelNet
from mln_keras.data import inputs
from mln_keras.data.batches import BATCH_SIZE
from mln_keras.data.source import Source, make_splits
from mln_keras.training.classifier import scales_down

EXPECTED = inputs.Expected((8, 8, 1), 4)


def training_data(noisy, meta=None, unlabeled=None, batch_size=8):
    batching = inputs.Batching(batch_size, seed=0)
    return inputs.TrainingData(noisy, meta, unlabeled, EXPECTED, batching)


def batched(arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(8)


def as_arrays(arrays):
    return arrays


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the scale of pixels ------------------------------------------------------------------------


@pytest.mark.parametrize("of", [as_arrays, batched])
@pytest.mark.parametrize("received", ["uint16", "int64", "bool", "float32"])
@pytest.mark.parametrize("name", ["meta_data", "unlabeled_data", "validation_data"])
def test_images_beside_others_have_the_same_type(images, of, received, name):
    x, y = images(40)
    other = x.astype(received)
    given = {"meta_data": (x, y), "unlabeled_data": x, "validation_data": (x, y)}
    given[name] = other if name == "unlabeled_data" else (other, y)
    given = {argument: of(arrays) for argument, arrays in given.items()}
    validation = given.pop("validation_data")
    wanted = f"^{name}: expected uint8 images, as in training"
    with pytest.raises(ValueError, match=wanted) as error:
        data = training_data(of((x, y)), *given.values())
        expected = inputs.Expected((8, 8, 1), 4, data.image_dtype)
        inputs.check_evaluated("validation_data", validation, expected)
    assert f"received {received}; " in one_line(error)


@pytest.mark.parametrize("received", ["complex64", "U3", object])
def test_images_are_real_numbers(images, received):
    x, y = images(40)
    with pytest.raises(ValueError, match="^x: expected images of integers or floats, received"):
        training_data((x.astype(received), y))


def test_floats_of_any_width_go_together(images):
    x, y = images(40)
    unlabeled = x.astype(np.float16)
    data = training_data((x.astype(np.float64), y), (x.astype(np.float32), y), unlabeled)
    assert data.image_dtype == "float32"


def test_a_model_is_evaluated_on_the_integers_that_it_was_trained_on(images):
    x, y = images(16)
    model = MetaLabelNet(small_net(layers.Rescaling(1 / 255)), 1)
    model.compile("sgd", jit_compile=False)
    model.fit(x, y, batch_size=8, verbose=0)
    for received in (np.uint16, np.int32, bool):
        for call in (model.predict, lambda images: model.evaluate(images, y)):
            with pytest.raises(ValueError, match="expected uint8 images, as in training") as error:
                call(x.astype(received))
            one_line(error)


def small_net(*first):
    return keras.Sequential([keras.Input((8, 8, 1)), *first, layers.Flatten(), layers.Dense(4)])


def test_a_classifier_that_scales_bytes_down_is_known():
    def nest(*models):
        return keras.Sequential([keras.Input((8, 8, 1)), *models])

    flip = nest(layers.RandomFlip())
    for is_so, classifier in (
        (True, small_net(layers.Rescaling(1 / 255))),
        (True, small_net(layers.RandomFlip(), layers.Rescaling([1 / 255]))),
        (True, nest(small_net(layers.Rescaling(1 / 127.5, -1)))),
        (True, nest(flip, small_net(layers.Rescaling(1 / 127.5, -1)))),
        (True, nest(nest(layers.Rescaling(1 / 255)), small_net())),
        (False, small_net()),
        (False, small_net(layers.Rescaling(2.0, -1))),
        (False, small_net(layers.Conv2D(2, 3), layers.Rescaling(1 / 255))),
        (False, nest(nest(layers.Conv2D(1, 3, padding="same")), layers.Rescaling(1 / 255))),
    ):
        assert scales_down(classifier) == is_so


@pytest.mark.parametrize("of", [as_arrays, batched])
@pytest.mark.parametrize(
    ("scale", "rescaling", "warns"),
    [(1 / 255, 1 / 255, True), (1, 1 / 255, False), (1 / 255, 2.0, False), (0, 1 / 255, False)],
)
def test_pixels_that_are_scaled_down_twice_are_warned_of(images, of, scale, rescaling, warns):
    x, y = images(16)
    model = MetaLabelNet(small_net(layers.Rescaling(rescaling)), 1)
    model.compile("sgd", jit_compile=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(of((x * np.float32(scale), y)), batch_size=8, verbose=0)
    found = [w for w in caught if "Rescaling" in str(w.message)]
    assert len(found) == warns
    for warning in found:
        assert str(warning.message).startswith("x: float32 images in 0..1, but the classifier")
        assert warning.filename == __file__


# ---- NaN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "meta_data", "unlabeled_data", "validation_data"])
@pytest.mark.parametrize("pixel", [np.nan, np.inf])
def test_pixels_of_arrays_are_finite(images, name, pixel):
    x, y = images(40)
    x = x.astype(np.float32)
    wrong = x.copy()
    wrong[[17, 30], 2] = pixel
    given = {n: wrong if n == name else x
             for n in ("x", "meta_data", "unlabeled_data", "validation_data")}  # fmt: skip
    with pytest.raises(ValueError, match=f"^{name}: expected finite pixels") as error:
        training_data((given["x"], y), (given["meta_data"], y), given["unlabeled_data"])
        inputs.check_evaluated("validation_data", (given["validation_data"], y), EXPECTED)
    assert "in 2 of 40 images, the first at index 17" in one_line(error)


def test_large_pixels_are_finite(images):
    x, y = images(40)
    training_data((np.full(x.shape, 3e38, np.float32), y))


@pytest.mark.parametrize("name", ["x", "meta_data", "unlabeled_data", "validation_data"])
@pytest.mark.parametrize("pixel", [np.nan, np.inf])
def test_pixels_of_datasets_are_finite(images, name, pixel):
    """Not only in the first batch; the loss is not NaN before that is found."""
    x, y = images(40)
    x = x.astype(np.float32)
    wrong = x.copy()
    wrong[30, 2] = pixel
    names = ("x", "meta_data", "unlabeled_data", "validation_data")
    given = {n: batched((wrong if n == name else x, y)) for n in names}
    given["unlabeled_data"] = given["unlabeled_data"].map(lambda images, labels: images)
    model = MetaLabelNet(small_net(), 1)
    model.compile("sgd", "sgd", jit_compile=False)
    received = "received NaN or infinity in a batch"
    with pytest.raises(ValueError, match=f"^{name}: expected finite pixels, {received}$"):
        model.fit(**given, epochs=2, verbose=0)


def test_a_loss_that_diverges_is_no_matter_of_pixels(images):
    model = MetaLabelNet(small_net(), 1)
    model.compile(keras.optimizers.SGD(1e38), jit_compile=False)
    text = "the loss is (nan|inf); try lower learning rates$"
    with pytest.raises(FloatingPointError, match=text):
        model.fit(*images(40), batch_size=8, verbose=0)


# ---- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [as_arrays, batched])
@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda y: y[:, None], r"\(\w+, 1\); of labels in a column pass labels\[:, 0\]"),
        (lambda y: y[:, None] * 1.0, r"\(\w+, 1\); of labels in a column pass labels\[:, 0\]"),
        (lambda y: np.eye(4, dtype=int)[y], r"\(\w+, 4\); of one-hot labels pass argmax\(-1\)"),
        (lambda y: np.eye(4)[y], r"\(\w+, 4\); of one-hot labels pass argmax\(-1\)"),
        (lambda y: y.astype(float), r"\(\w+,\); convert them to int32"),
        (lambda y: y.astype(str), r"\(\w+,\)"),
    ],
)
@pytest.mark.parametrize("name", ["x", "meta_data", "validation_data"])
def test_labels_of_another_form_get_the_hint_that_mends_them(images, of, spoil, hint, name):
    x, y = images(40)
    names = ("x", "meta_data", "validation_data")
    given = {n: of((x, spoil(y) if n == name else y)) for n in names}
    with pytest.raises(ValueError, match=f"^{name}: expected integer labels .*{hint}$") as error:
        training_data(given["x"], given["meta_data"])
        inputs.check_evaluated("validation_data", given["validation_data"], EXPECTED)
    one_line(error)


# ---- how many samples ---------------------------------------------------------------------------


def test_a_batch_size_that_nobody_gave_is_called_the_default(images):
    model = MetaLabelNet(small_net(), 1)
    model.compile("sgd", jit_compile=False)
    text = f"^x: expected at least one batch, batch_size={BATCH_SIZE} samples"
    with pytest.raises(ValueError, match=rf"{text} \(the default\), received 40$"):
        model.fit(images(40), verbose=0)
    with pytest.raises(ValueError, match="batch_size=41 samples, received 40$"):
        model.fit(images(40), batch_size=41, verbose=0)


def meta_set(images, counts):
    x, y = images(80)
    rows = np.concatenate([np.flatnonzero(y == label)[:n] for label, n in enumerate(counts)])
    return x[rows], y[rows]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((5, 1, 5, 4), "fewer than 5 samples of class 1, 3, so training on"),
        ((0, 5, 2, 7), "no sample of class 0; fewer than 5 samples of class 2, so training on"),
        ((5, 0, 5, 0), "no sample of class 1, 3, so training on"),
    ],
)
def test_classes_with_few_meta_samples_are_named(images, counts, text):
    with pytest.warns(UserWarning, match=f"^meta_data: holds {text}"):
        training_data(images(40), meta_set(images, counts))


def test_five_meta_samples_of_a_class_are_not_warned_of(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_data(images(40), meta_set(images, (5, 5, 5, 5)))


def test_classes_with_few_meta_samples_of_a_split_are_named():
    labels = np.array([0] * 12 + [1] * 2, np.int32)
    pixels = np.zeros((14, 1, 1, 1), np.uint8)
    source = Source("small", pixels, labels, pixels, labels, ("cat", "dog", "elk"), 2)
    with pytest.warns(UserWarning) as caught:
        splits = make_splits(source, meta_size=12, unlabeled_size=0, seed=0)
    assert 1 <= (splits.meta_labels == 1).sum() <= 2
    expected = "the meta set holds no sample of class elk; fewer than 5 samples of class dog"
    assert [str(warning.message) for warning in caught] == [expected]

"""Backbones by name: their preprocessing, their weights, and the second derivative they need."""

import os
import runpy
import sys
import urllib.error

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from mln_keras import MetaLabelNet
from mln_keras.data.checks import ArgumentError
from mln_keras.data.keras_home import keras_home, weights_folder
from mln_keras.layers import backbone, backbones
from mln_keras.training.classifier import classifier_shapes, find_features, scales_down

MODULES = {getattr(keras.applications, name).__module__: name
           for name in backbones.NAMES if name not in backbones.OWN}  # fmt: skip
SMALL = {"ResNet50": 40, "InceptionResNetV2": 75}


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [("cnn8", "cnn8"), ("resnet50", "ResNet50"), ("inception_resnet_v2", "InceptionResNetV2"),
     ("Inception-ResNet-v2", "InceptionResNetV2"), ("EFFICIENTNETB0", "EfficientNetB0"),
     ("digits_cnn", "digits_cnn"), ("ResNet50V2", "ResNet50V2"), ("vgg-16", "VGG16")],
)  # fmt: skip
def test_a_name_is_known_in_any_case(given, name):
    assert backbones.known_name(given) == name


def test_every_network_of_keras_has_a_name_of_its_own():
    known = {backbones.known_name(name) for name in backbones.NAMES}
    assert len(known) == len(backbones.NAMES) > 35


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="^backbone: expected one of cnn8, .*ResNet50, .*'resnet'"):
        backbone("resnet", 4, (32, 32, 3))


# ---- preprocessing ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_preprocessing_is_that_of_keras(module):
    """Of every module, so of each of its kinds: tf, torch, caffe and none."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    preprocess_input = sys.modules[module].preprocess_input
    images = keras.Input((5, 4, 3))
    model = keras.Model(images, backbones.preprocessed(images, preprocess_input))
    x = pixels(2, 5, 4, 3)
    expected = preprocess_input(x.astype(np.float64))
    found = model(ops.cast(x, "float32"))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_all_kinds_of_preprocessing_are_met():
    black = np.zeros((1, 1, 1, 3))
    found = {tuple(np.round(sys.modules[module].preprocess_input(black.copy()).ravel(), 2))
             for module in MODULES}  # fmt: skip
    assert len(found) == 4


@pytest.mark.parametrize("name", ["ResNet50", pytest.param("DenseNet121", marks=pytest.mark.slow)])
def test_a_backbone_is_the_network_of_keras_behind_its_preprocessing(name, tmp_path):
    """Also when it was saved and loaded."""
    model = backbone(name, 4, (32, 32, 3))
    plain = getattr(keras.applications, name)(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    plain.set_weights(model.get_weights()[:-2])
    x = pixels(2, 32, 32, 3)
    preprocess_input = sys.modules[getattr(keras.applications, name).__module__].preprocess_input
    features = plain(preprocess_input(x.astype(np.float32)), training=False)
    head = model.layers[-1]
    model.save(tmp_path / "model.keras")
    for one in (model, keras.models.load_model(tmp_path / "model.keras")):
        found = one(ops.cast(x, "float32"), training=False)
        np.testing.assert_allclose(found, head(features), rtol=1e-4, atol=1e-4)


def test_pixels_are_not_rounded_to_bfloat16_within_a_network():
    """MobileNetV3's preprocessing is a layer of its own."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = backbone("mobilenet_v3_small", 4, (32, 32, 3))
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling))
    x = pixels(1, 32, 32, 3)
    found = keras.Model(model.inputs, layer.output)(ops.cast(x, "float32"))
    np.testing.assert_allclose(found, x / 127.5 - 1, atol=1e-6)
    assert model.layers[-1].compute_dtype == "bfloat16"


def test_a_backbone_has_logits_and_features():
    model = backbone("mobilenet", 7, (32, 32, 3))
    assert classifier_shapes(model) == ((32, 32, 3), 7)
    features, count = find_features(model, None, (32, 32, 3))
    x = ops.cast(pixels(2, 32, 32, 3), "float32")
    assert count == 1024 == model.layers[-1].kernel.shape[0]
    found = model.layers[-1](features(x))
    np.testing.assert_allclose(found, model(x, training=False), rtol=1e-5, atol=1e-6)
    kernel = np.abs(model.layers[-1].kernel)
    assert 0.99 / 32 < kernel.max() <= 1 / 32


def test_a_backbone_that_takes_a_mean_away_scales_down():
    assert scales_down(backbone("resnet50", 4, (32, 32, 3)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("resnet50", (8, 8, 1), "backbone: expected images of 3 channels for ResNet50, received 1"),
     ("resnet50", (16, 16, 3), "backbone: ResNet50: Input size must be at least 32x32"),
     ("cnn8", (9, 7, 3), "backbone: expected images of at least 8×8 pixels for cnn8, received 9×7"),
     ("digits_cnn", (1, 2, 1), "backbone: expected images of at least 2×2 pixels for digits_cnn")],
)  # fmt: skip
def test_images_that_do_not_fit_are_refused(name, shape, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        backbone(name, 4, shape)
    assert "\n" not in str(error.value)


# ---- weights ------------------------------------------------------------------------------------


def test_weights_of_a_file_are_those_of_keras_without_its_top(tmp_path):
    plain = keras.applications.MobileNet(
        include_top=False, weights=None, input_shape=(32, 32, 3), alpha=1.0
    )
    plain.save_weights(tmp_path / "notop.weights.h5")
    plain.save(tmp_path / "model.keras")
    plain.save(tmp_path / "notop.h5")  # the form in which Keras offers them
    for name in ("notop.weights.h5", "model.keras", "notop.h5"):
        model = backbone("mobilenet", 4, (32, 32, 3), str(tmp_path / name))
        for found, expected in zip(model.weights[:-2], plain.weights, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_weights_of_our_own_networks_are_theirs(tmp_path):
    saved = backbone("digits_cnn", 4, (8, 8, 1))
    saved.save_weights(tmp_path / "digits.weights.h5")
    keras.utils.set_random_seed(1)
    model = backbone("digits_cnn", 4, (8, 8, 1), str(tmp_path / "digits.weights.h5"))
    for found, expected in zip(model.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("no weights")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "other.weights.h5"
    )
    for name, weights, message in (
        ("mobilenet", "missing.h5", "weights: expected imagenet, a file or none, received 'miss"),
        ("mobilenet", tmp_path / "text.h5", "weights: .*text.h5 does not hold the weights"),
        ("mobilenet", tmp_path / "other.weights.h5", "weights: .*does not hold the weights of m"),
        ("cnn8", "imagenet", "weights: expected a file or none for cnn8, received imagenet$"),
        ("efficientnetb0", tmp_path / "other.weights.h5", "weights: expected imagenet or none"),
    ):
        with pytest.raises(ValueError, match=f"^{message}") as error:
            backbone(name, 4, (32, 32, 3), str(weights))
        assert "\n" not in str(error.value)


def test_without_a_network_imagenet_says_the_way_out(monkeypatch, tmp_path):
    def fails(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fails)
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="^weights: cannot load imagenet for MobileNet ") as error:
        backbone("mobilenet", 4, (32, 32, 3), "imagenet")
    text = str(error.value)
    assert "\n" not in text and "mobilenet_1_0_224_tf_no_top.h5" in text
    assert f"put that file into {tmp_path / 'models'}, give the name of a file, or none f" in text


@pytest.mark.parametrize("weights", ["imagenet", None])
def test_too_small_images_are_the_backbones_fault(weights):
    with pytest.raises(ArgumentError, match="^backbone: ResNet50: Input size must be at least 32"):
        backbone("ResNet50", 4, (16, 16, 3), weights)


@pytest.mark.parametrize("name", [None, "set", "~/tilde", "missing", "/missing/at/all"])
@pytest.mark.parametrize("home", ["home", "missing"])
def test_keras_home_is_where_keras_keeps_its_files(monkeypatch, tmp_path, home, name):
    (tmp_path / "home").mkdir()
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.delenv("KERAS_HOME", raising=False)
    if name:
        monkeypatch.setenv("KERAS_HOME", name)
    seen = []

    def make(path, **_):
        raise PermissionError(path)

    monkeypatch.setattr(os, "makedirs", make)
    kerass = runpy.run_path(keras.src.backend.config.__file__)["keras_home"]()
    assert keras_home() == os.path.expanduser(kerass)
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: kerass)
    monkeypatch.setattr(os, "makedirs", lambda path, **_: seen.append(path))
    with pytest.raises(TypeError):  # Keras has said by then which folder it takes
        keras.utils.get_file("a.h5", origin=1, cache_subdir="models")
    assert seen[:1] == [weights_folder()]


# ---- second derivatives -------------------------------------------------------------------------


def log_f(classifier, θ, x):
    with keras.StatelessScope(list(zip(classifier.trainable_variables, θ))):
        return tf.nn.log_softmax(classifier(tf.cast(x, tf.float64), training=True))


def meta_loss(classifier, θ, φ, features, x, x_meta, y_meta):
    """L_meta(θ̂(φ)), Eq. 5 to 9, written down once more."""
    with tf.GradientTape() as tape:
        tape.watch(θ)
        prediction = log_f(classifier, θ, x)
        soft_labels = tf.nn.log_softmax(features @ φ[0] + φ[1])
        divergence = tf.exp(prediction) * (prediction - soft_labels)
        loss = tf.reduce_mean(tf.reduce_sum(divergence, -1))
    θ_hat = [w - ALPHA * g for w, g in zip(θ, tape.gradient(loss, θ))]
    return -tf.reduce_mean(tf.gather(log_f(classifier, θ_hat, x_meta), y_meta, batch_dims=1))


ALPHA = 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_meta_gradient_is_a_central_difference(float64, name):
    """Of a tiny step, as so deep a network of ReLUs has a corner next to everywhere."""
    side = SMALL[name]
    classifier = backbone(name, 4, (side, side, 3))
    x, x_meta, y_meta = pixels(4, side, side, 3), pixels(4, side, side, 3, seed=1), np.arange(4)
    model = MetaLabelNet(
        classifier, 0, inner_learning_rate=ALPHA, weight_decay=0.0, average_over_classes=False
    )
    model.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(1.0), jit_compile=False)
    features = model._features(x.astype("float64"))
    φ = [w.numpy() for w in model.label_head.weights]
    model.fit(x, np.zeros(4, int), meta_data=(x_meta, y_meta), batch_size=4, verbose=0)
    gradient = [before - w.numpy() for before, w in zip(φ, model.label_head.weights)]
    scale = 1e-10 / np.sqrt(sum((g**2).sum() for g in gradient))
    θ = [tf.constant(w.numpy()) for w in classifier.trainable_variables]
    loss_at = tf.function(
        lambda *head: meta_loss(classifier, θ, head, features, x, x_meta, y_meta), autograph=False
    )
    plus, minus = (
        float(loss_at(*(w + sign * scale * g for w, g in zip(φ, gradient)))) for sign in (1, -1)
    )
    expected = scale * sum((g**2).sum() for g in gradient)
    assert (plus - minus) / 2 == pytest.approx(expected, rel=1e-3)

"""Losses, label head, augmentation, pooling and backbones, each against a plain recomputation."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from mln_keras import layers
from mln_keras.layers import convolution
from mln_keras.layers.pooling import max_pool


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_losses_are_the_paper_s():
    rng = np.random.default_rng(0)
    logits, soft = rng.normal(size=(2, 6, 5)).astype("float32") * 3
    f, ŷ = softmax(logits), softmax(soft)
    np.testing.assert_allclose(
        layers.kl_divergence(logits, soft), (f * np.log(f / ŷ)).sum(-1), rtol=1e-4
    )
    np.testing.assert_allclose(layers.entropy(logits), -(f * np.log(f)).sum(-1), rtol=1e-4)
    labels = rng.integers(0, 5, 6)
    np.testing.assert_allclose(
        layers.cross_entropy(labels, logits), -np.log(f[np.arange(6), labels]), rtol=1e-4
    )


def test_losses_stay_finite_where_a_probability_underflows():
    certain, opposite = np.float32([[200.0, 0.0]]), np.float32([[0.0, 200.0]])
    np.testing.assert_allclose(layers.kl_divergence(certain, opposite), [200.0])
    np.testing.assert_allclose(layers.entropy(certain), [0.0], atol=1e-6)


def test_label_head_is_one_linear_layer_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    head = layers.LabelHead(7, 64)
    v = np.random.default_rng(0).normal(size=(5, 64)).astype("float32")
    w, b = (weight.numpy() for weight in head.weights)
    assert w.shape == (64, 7) and head(v).dtype == "float32"
    np.testing.assert_allclose(head(v), v @ w + b, atol=1e-5)
    assert abs(w).max() <= 1 / 8 and abs(b).max() <= 1 / 8 and abs(w).max() > 0.12


@pytest.mark.parametrize("weight", [0.3, np.float32([0.0, 0.25, 0.9, 0.5])], ids=["one", "each"])
def test_given_labels_are_mixed_in_where_there_are_any(weight):
    logits = np.float32([[1.0, -2.0, 0.5], [0.0, 90.0, 0.0], [3.0, 1.0, 2.0], [0.0, 1.0, -1.0]])
    labels = np.int32([2, 0, -1, 1])
    a = np.where(labels >= 0, weight, 0)[:, None]
    expected = a * np.eye(3)[labels] + (1 - a) * softmax(logits)
    mixed = layers.mix_in_labels(logits, labels, weight)
    np.testing.assert_allclose(np.exp(mixed), expected, rtol=1e-5, atol=1e-7)
    with tf.GradientTape() as tape:
        tape.watch(logits := tf.constant(logits))
        total = tf.reduce_sum(layers.mix_in_labels(logits, labels, weight))
    assert np.isfinite(tape.gradient(total, logits)).all()


def test_augmentation_is_a_crop_of_a_flip_of_the_padded_image():
    """Each output must be one of the 2·2·5·5 possible ones, and all kinds must come up."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (6, 6, 3)).astype(np.uint8)
    possible = {}
    for vertical in (0, 1):
        for horizontal in (0, 1):
            flipped = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
            padded = np.pad(flipped, ((2, 2), (2, 2), (0, 0)))
            for i in range(5):
                for j in range(5):
                    crop = padded[i : i + 6, j : j + 6]
                    possible[crop.tobytes()] = (vertical, horizontal, i, j)
    augment = tf.function(layers.RandomFlipCrop(2, seed=3), jit_compile=True)
    out = augment(np.repeat(image[None], 4000, 0), training=True).numpy()
    assert out.dtype == np.uint8 and out.shape == (4000, 6, 6, 3)
    found = np.array([possible[o.tobytes()] for o in out])
    for column, kinds in enumerate((2, 2, 5, 5)):
        counts = np.bincount(found[:, column], minlength=kinds)
        assert counts.min() > 0.7 * 4000 / kinds
    assert abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.2
    together = collections.Counter(map(tuple, found))
    assert len(together) == 100 and min(together.values()) > 10 and max(together.values()) < 80


@pytest.mark.parametrize("options", [(1, False, False), (0, True, False)])
def test_augmentation_options(options):
    image = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
    out = layers.RandomFlipCrop(*options, seed=0)(np.repeat(image[None], 64, 0), training=True)
    if options[0] == 0:
        views = {image.tobytes(), image[:, ::-1].tobytes()}
        assert {o.tobytes() for o in out.numpy()} == views
    else:
        gaps = [np.diff(o[..., 0], axis=1) for o in out.numpy()]
        assert not any((g == -1).any() for g in gaps)  # no row was mirrored


def test_augmentation_is_the_identity_in_inference():
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(layers.RandomFlipCrop(4)(image, training=False), image)


@pytest.mark.parametrize("flips", [(False, False), (False, True), (True, False)])
def test_augmentation_is_made_again_from_its_config(flips):
    arguments = dict(zip(("horizontal_flip", "vertical_flip"), flips), padding=2, seed=7, name="a")
    layer = layers.RandomFlipCrop(**arguments)
    config = layer.get_config()
    assert {name: config[name] for name in arguments} == arguments
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    expected = layer(images, training=True)
    for copy in (
        layers.RandomFlipCrop.from_config(config),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)),
    ):
        assert copy.get_config() == config
        np.testing.assert_array_equal(copy(images, training=True), expected)


@pytest.mark.parametrize("shape", [(3, 8, 8, 2), (1, 7, 5, 1)])
def test_window_max_pooling(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    pooled = layers.WindowMaxPooling2D()(x)
    np.testing.assert_array_equal(pooled, keras.layers.MaxPooling2D(2)(x))
    assert layers.WindowMaxPooling2D().compute_output_shape(shape) == pooled.shape


@pytest.mark.parametrize("shape", [(2, 7, 2), (2, 9, 8, 3), (1, 6, 7, 5, 2)])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_max_pool_is_that_of_keras_in_value_and_gradient(shape, window, stride, padding):
    x = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)
    sides = len(shape) - 2
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        found = max_pool(x, (window,) * sides, (stride,) * sides, padding)
        expected = keras.ops.max_pool(x, window, stride, padding)
        weights = tf.reshape(tf.range(tf.size(found), dtype=tf.float32), found.shape)
        sums = [tf.reduce_sum(weights * y) for y in (found, expected)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(*(tape.gradient(s, x) for s in sums))


def test_of_equal_maxima_the_first_takes_the_gradient():
    window = [[[0, 2], [2, 2]], [[1, 1], [3, 1]], [[0, 0], [5, 5]], [[4, 4], [4, 4]]]
    x = tf.constant(window, tf.bfloat16)[..., None]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layers.WindowMaxPooling2D()(x)
    expected = [[[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [1, 0]], [[1, 0], [0, 0]]]
    np.testing.assert_array_equal(tape.gradient(y, x)[..., 0], expected)


def assert_is_a_convolution(kernel_size, dtype, channels, options):
    """The results and the gradients of an AlignedConv2D are those of Keras' layer."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(2, 6, 7, channels)), tf.float32)
    options = {"padding": "same", "bias_initializer": "ones", "dtype": dtype} | options
    ours = layers.AlignedConv2D(13, kernel_size, **options)
    plain = keras.layers.Conv2D(13, kernel_size, **options)
    ours.build(images.shape)
    plain.build(images.shape)
    ours.set_weights(plain.get_weights())
    gradients = []
    for layer in (ours, plain):
        with tf.GradientTape() as tape:
            tape.watch(images)
            result = tf.cast(layer(images), tf.float32)
            loss = tf.reduce_sum(result**2)
        gradients.append([result, *tape.gradient(loss, [images, *layer.weights])])
    for mine, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=2e-5 if dtype == "float32" else 2e-2,
                                   atol=1e-4 if dtype == "float32" else 0.3)


@pytest.mark.parametrize("dtype, channels, options", [
    ("float32", 3, {}),
    ("mixed_bfloat16", 3, {}),
    ("float32", 3, {"strides": 2}),
    ("float32", 26, {"groups": 13}),
])  # fmt: skip
def test_aligned_convolution_is_a_convolution(dtype, channels, options):
    assert_is_a_convolution(3, dtype, channels, options)


@pytest.mark.parametrize("kernel_size, dtype, channels, options, is_product", [
    (3, "float32", 3, {}, True),
    (3, "mixed_bfloat16", 3, {}, True),
    ((1, 5), "float32", 6, {}, True),
    (3, "float32", 4, {}, False),  # 36 numbers
    ((2, 3), "float32", 3, {}, False),
    (3, "float32", 3, {"padding": "valid"}, False),
    (3, "float32", 3, {"strides": 2}, False),
    (3, "float32", 3, {"dilation_rate": 2}, False),
])  # fmt: skip
def test_on_a_gpu_a_small_kernel_is_a_product_with_patches(
    kernel_size, dtype, channels, options, is_product, monkeypatch
):
    calls, product = [], convolution.patch_convolution
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(
        convolution, "patch_convolution", lambda *args: calls.append(args) or product(*args)
    )
    assert_is_a_convolution(kernel_size, dtype, channels, options)
    assert len(calls) == is_product


def test_cnn8_is_the_paper_s():
    net = layers.cnn8()
    convolutions = [layer for layer in net.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [c.filters for c in convolutions] == [64, 64, 128, 128, 196, 196]
    assert all(c.kernel_size == (3, 3) and c.padding == "same" for c in convolutions)
    dense = [layer for layer in net.layers if isinstance(layer, keras.layers.Dense)]
    assert [d.weights[0].shape for d in dense] == [(4 * 4 * 196, 256), (256, 10)]
    norms = [n for n in net.layers if isinstance(n, keras.layers.BatchNormalization)]
    assert len(norms) == 7 and all((n.momentum, n.epsilon) == (0.9, 1e-5) for n in norms)
    expected = sum(
        i * o * 9 + 2 * o
        for i, o in [(3, 64), (64, 64), (64, 128), (128, 128), (128, 196), (196, 196)]
    ) + (4 * 4 * 196 * 256 + 2 * 256) + (256 * 10 + 10)  # fmt: skip
    assert sum(np.prod(w.shape) for w in net.trainable_weights) == expected
    for kernel in (layer.kernel.numpy() for layer in convolutions + dense):
        limit = np.prod(kernel.shape[:-1]) ** -0.5  # uniform: ±1/√inputs, as PyTorch does
        assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.03)
        assert 0.99 * limit < abs(kernel).max() <= limit


def test_cnn8_is_computed_as_the_paper_draws_it():
    """Convolution, batch norm, ReLU, twice before each pooling; written with tf.nn alone."""
    net = layers.cnn8()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    rng = np.random.default_rng(1)
    for weight in net.weights:
        if "batch_normalization" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    weights = iter(net.weights)

    def norm_relu(x):
        scale, offset, mean, variance = (next(weights) for _ in range(4))
        return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-5))

    x = (tf.cast(images, tf.float32) / 255 - 0.5) / 0.5
    for _ in range(3):
        for _ in range(2):
            x = norm_relu(tf.nn.conv2d(x, next(weights), 1, "SAME"))
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    x = norm_relu(tf.reshape(x, (3, -1)) @ next(weights))
    expected = x @ next(weights) + next(weights)
    np.testing.assert_allclose(net(images, training=False), expected, rtol=1e-3, atol=1e-4)


def test_cnn8_normalizes_by_itself():
    net = layers.cnn8()
    pixels = np.uint8([0, 255]).repeat(32 * 32 * 3).reshape(2, 32, 32, 3)
    first = keras.Model(net.inputs[0], net.layers[1].output)(pixels)
    np.testing.assert_allclose(np.unique(first), [-1, 1])


def test_linear_layers_start_with_random_biases():
    for layer in (layers.LabelHead(200, 64), layers.cnn8().layers[-1]):
        weights, bias = layer.kernel.numpy(), layer.bias.numpy()
        limit = len(weights) ** -0.5
        assert 0.5 * limit < abs(bias).max() <= limit
        assert len(set(bias)) == len(bias)


def test_pixels_are_normalized_in_float32_where_the_rest_is_not():
    keras.config.set_dtype_policy("mixed_bfloat16")
    net = layers.digits_cnn()
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    normalized = keras.Model(net.inputs[0], net.layers[1].output)(pixels)
    assert len(np.unique(normalized)) == 256

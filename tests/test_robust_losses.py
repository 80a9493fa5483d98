"""The losses that wrong labels hurt less: formulas in NumPy, gradients, and the methods on them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mln_keras import layers
from mln_keras.data.checks import ArgumentError
from mln_keras.methods import (
    Bootstrap,
    Forward,
    GeneralizedCrossEntropy,
    SymmetricCrossEntropy,
)

NUM_CLASSES = 4
T = np.array([[0.7, 0.3, 0, 0], [0, 0.6, 0.3, 0.1], [0.2, 0, 0.8, 0], [0.1, 0.1, 0.1, 0.7]])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(target, p):
    return -(target * np.log(p)).sum(-1)


def symmetric(z, y, alpha=0.1, beta=1.0):
    p = softmax(z)
    return alpha * cross_entropy(y, p) + beta * cross_entropy(p, np.clip(y, 1e-4, 1))


def symmetric_as_run(z, y, alpha=0.1, beta=1.0):
    p = softmax(z)
    first = cross_entropy(y, softmax(np.clip(p, 1e-7, 1)))
    return alpha * first + beta * cross_entropy(p, softmax(np.clip(y, 1e-4, 1)))


def generalized(z, y, q=0.7):
    return (1 - (softmax(z) * y).sum(-1) ** q) / q


def hard(z, y, weight=0.8):
    p = softmax(z)
    return cross_entropy(weight * y + (1 - weight) * np.eye(z.shape[-1])[p.argmax(-1)], p)


def soft(z, y, weight=0.95):
    p = softmax(z)
    return cross_entropy(weight * y + (1 - weight) * p, p)


def forward(z, y, transition=T):
    return -np.log((softmax(z) @ transition * y).sum(-1))


def forward_as_run(z, y, transition=T):
    return cross_entropy(y, softmax(softmax(z @ transition)))


LOSSES = [
    (layers.symmetric_cross_entropy, symmetric, {}),
    (layers.symmetric_cross_entropy, symmetric, {"alpha": 0.7, "beta": 0.2}),
    (layers.symmetric_cross_entropy_as_run, symmetric_as_run, {}),
    (layers.symmetric_cross_entropy_as_run, symmetric_as_run, {"alpha": 0.7, "beta": 0.2}),
    (layers.generalized_cross_entropy, generalized, {}),
    (layers.generalized_cross_entropy, generalized, {"q": 0.2}),
    (layers.hard_bootstrap, hard, {}),
    (layers.soft_bootstrap, soft, {}),
    (layers.forward_cross_entropy, forward, {"transition": T}),
    (layers.forward_cross_entropy_as_run, forward_as_run, {"transition": T}),
]


@pytest.mark.parametrize("loss, formula, options", LOSSES)
def test_losses_and_their_gradients_are_those_of_the_formulas(float64, loss, formula, options):
    z = np.random.default_rng(0).normal(size=(9, NUM_CLASSES)) * 2
    labels = np.arange(9) % NUM_CLASSES
    y = np.eye(NUM_CLASSES)[labels]
    with tf.GradientTape() as tape:
        logits = tf.constant(z)
        tape.watch(logits)
        losses = loss(labels, logits, **options)
    assert losses.shape == (9,) and losses.dtype == "float64"
    np.testing.assert_allclose(losses, formula(z, y, **options), rtol=1e-9)

    ε, differences = 1e-6, np.empty_like(z)
    for c in range(NUM_CLASSES):
        step = ε * np.eye(NUM_CLASSES)[c]
        differences[:, c] = formula(z + step, y, **options) - formula(z - step, y, **options)
    np.testing.assert_allclose(tape.gradient(losses, logits), differences / (2 * ε), atol=1e-8)


@pytest.mark.parametrize("loss, formula, options", LOSSES)
def test_where_a_probability_is_0_loss_and_gradient_are_finite(loss, formula, options):
    logits = tf.constant([[0.0, 300, -300, 0]] * NUM_CLASSES)
    assert tf.nn.softmax(logits)[0, 2] == 0
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = loss(np.arange(NUM_CLASSES), logits, **options)
    assert np.isfinite(losses).all() and np.isfinite(tape.gradient(losses, logits)).all()


def test_a_label_that_no_class_is_ever_given_teaches_nothing():
    logits = tf.constant([[1.0, 2, 3]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = layers.forward_cross_entropy([2], logits, [[0.5, 0.5, 0]] * 3)
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(tape.gradient(loss, logits), 0, atol=1e-6)


def test_the_two_symmetric_losses_are_nearly_linear_in_the_labels_probability():
    z = np.random.default_rng(0).normal(size=(9, 10))
    labels = np.arange(9)
    p_y = softmax(z)[labels, labels]
    losses = layers.symmetric_cross_entropy(labels, z, alpha=0)
    np.testing.assert_allclose(losses, 9.2103 * (1 - p_y), atol=1e-4)
    losses = layers.symmetric_cross_entropy_as_run(labels, z, alpha=0)
    np.testing.assert_allclose(losses, 2.4612 - 0.9999 * p_y, atol=1e-4)


METHODS = [
    (SymmetricCrossEntropy, {}, symmetric),
    (SymmetricCrossEntropy, {"alpha": 2, "beta": 3}, lambda z, y: symmetric(z, y, 2, 3)),
    (SymmetricCrossEntropy, {"as_run": True}, symmetric_as_run),
    (
        SymmetricCrossEntropy,
        {"as_run": True, "alpha": 2, "beta": 3},
        lambda z, y: symmetric_as_run(z, y, 2, 3),
    ),
    (GeneralizedCrossEntropy, {}, generalized),
    (GeneralizedCrossEntropy, {"q": 0.3}, lambda z, y: generalized(z, y, 0.3)),
    (Bootstrap, {}, soft),
    (Bootstrap, {"kind": "hard"}, hard),
    (Bootstrap, {"label_weight": 0.3}, lambda z, y: soft(z, y, 0.3)),
    (Bootstrap, {"kind": "hard", "label_weight": 0.3}, lambda z, y: hard(z, y, 0.3)),
    (Forward, {"transition": T}, forward),
    (Forward, {"transition": T.tolist(), "as_run": True}, forward_as_run),
]


def linear():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )


@pytest.mark.parametrize("method, options, formula", METHODS)
def test_methods_train_on_their_losses_with_published_defaults(
    images, tmp_path, method, options, formula
):
    x, labels = images(12)
    y = np.eye(NUM_CLASSES)[labels]
    new = method(linear(), **options)
    new.compile(keras.optimizers.SGD(0.5), jit_compile=False)
    new.save(tmp_path / "model.keras")
    for model in (new, keras.models.load_model(tmp_path / "model.keras")):
        before = formula(model.classifier.predict(x, verbose=0).astype(float), y).mean()
        history = model.fit(x, labels, batch_size=12, epochs=9, verbose=0).history
        assert history["loss"][0] == pytest.approx(before, rel=1e-5)
        assert history["loss"][-1] < before


@pytest.mark.parametrize(
    "name, method, options",
    [
        ("alpha", SymmetricCrossEntropy, {"alpha": -1}),
        ("beta", SymmetricCrossEntropy, {"beta": -1}),
        ("q", GeneralizedCrossEntropy, {"q": 0}),
        ("q", GeneralizedCrossEntropy, {"q": 1.5}),
        ("kind", Bootstrap, {"kind": "medium"}),
        ("label_weight", Bootstrap, {"label_weight": 1.5}),
        ("warmup_epochs", Forward, {}),
        ("warmup_epochs", Forward, {"warmup_epochs": 3, "transition": T}),
        ("warmup_epochs", Forward, {"warmup_epochs": 1.5}),
        ("percentile", Forward, {"warmup_epochs": 3, "percentile": 101}),
        ("transition", Forward, {"transition": T[:3]}),
        ("transition", Forward, {"transition": T.T}),
        ("transition", Forward, {"transition": T + [[0.1, -0.1, 0, 0]]}),
        ("transition", Forward, {"transition": T + np.nan}),
    ],
)
def test_wrong_arguments_are_refused(name, method, options):
    with pytest.raises(ArgumentError, match=f"^{name}: expected [^\n]*$"):
        method(linear(), **options)

"""The numbers of the paper's equations: the meta-gradient, and whole updates, recomputed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mln_keras import MetaLabelNet

BATCH = 6


def conv_net(num_classes):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(3, 3, activation="tanh"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(5),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(num_classes),
        ]
    )


def one_phase_2_step(model, x, x_meta, y_meta):
    """Runs `fit` for one step of phase 2; returns the label head's weights before and after."""
    keras.utils.set_random_seed(1)
    model.begin_phase(2)
    before = [w.numpy() for w in model.label_head.weights]
    batch = tf.data.Dataset.from_tensors((x, np.zeros(len(x), np.int32)))
    meta = tf.data.Dataset.from_tensors((x_meta, y_meta))
    model.fit(batch, meta_data=meta, epochs=1, verbose=0)
    return before, [w.numpy() for w in model.label_head.weights]


def log_softmax(x):
    return tf.nn.log_softmax(x)


def meta_loss(classifier, θ, φ, v, x, x_meta, y_meta, α, divisor):
    """L_meta(θ̂(φ)), Eq. 5 to 9, written down once more."""
    with tf.GradientTape() as tape:
        tape.watch(θ)
        log_f = log_softmax(at(classifier, θ, x))
        log_ŷ = log_softmax(v @ φ[0] + φ[1])
        loss = tf.reduce_mean(tf.reduce_sum(tf.exp(log_f) * (log_f - log_ŷ), -1)) / divisor
    θ_hat = [w - α * g for w, g in zip(θ, tape.gradient(loss, θ))]
    log_f_hat = log_softmax(at(classifier, θ_hat, x_meta))
    return -tf.reduce_mean(tf.gather(log_f_hat, y_meta, batch_dims=1)), θ_hat


def at(classifier, θ, x):
    with keras.StatelessScope(list(zip(classifier.trainable_variables, θ))):
        return classifier(tf.cast(x, tf.float64), training=True)


def closed_form(classifier, θ, φ, v, x, x_meta, y_meta, α, divisor):
    """∂L_meta/∂log ŷ_ij = α/B · f_ij (ż_ij − Σ_k f_ik ż_ik), then on to W and b."""
    _, θ_hat = meta_loss(classifier, θ, φ, v, x, x_meta, y_meta, α, divisor)
    with tf.GradientTape() as tape:
        tape.watch(θ_hat)
        log_f_hat = log_softmax(at(classifier, θ_hat, x_meta))
        loss = -tf.reduce_mean(tf.gather(log_f_hat, y_meta, batch_dims=1))
    u = tape.gradient(loss, θ_hat)
    with tf.autodiff.ForwardAccumulator(θ, u) as accumulator:
        z = at(classifier, θ, x)
    ż, f = accumulator.jvp(z).numpy(), tf.nn.softmax(z).numpy()
    by_log_ŷ = α / len(x) / divisor * f * (ż - (f * ż).sum(-1, keepdims=True))
    ŷ = tf.nn.softmax(v @ φ[0] + φ[1]).numpy()
    by_logits = by_log_ŷ - ŷ * by_log_ŷ.sum(-1, keepdims=True)
    return [v.numpy().T @ by_logits, by_logits.sum(0)]


@pytest.mark.parametrize("average_over_classes", [True, False])
@pytest.mark.parametrize("num_classes", [10, 4])
def test_meta_gradient(float64, images, average_over_classes, num_classes):
    x, _ = images(BATCH, num_classes)
    x_meta, y_meta = images(BATCH, num_classes, seed=1)
    α = 0.7
    model = MetaLabelNet(
        conv_net(num_classes), 0, inner_learning_rate=α, weight_decay=0.0,
        average_over_classes=average_over_classes,
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(1.0), jit_compile=False)
    θ = [tf.constant(w.numpy()) for w in model.classifier.trainable_variables]
    v = keras.Model(model.classifier.inputs[0], model.classifier.layers[-2].output)(
        x.astype("float64"), training=False
    )
    before, after = one_phase_2_step(model, x, x_meta, y_meta)
    tapes = [b - a for b, a in zip(before, after)]

    φ = [tf.constant(w) for w in before]
    rest = (v, x, x_meta, y_meta, α, num_classes if average_over_classes else 1)
    for found, expected in zip(tapes, closed_form(model.classifier, θ, φ, *rest), strict=True):
        assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)

    direction = [np.random.default_rng(2).normal(size=w.shape) for w in φ]
    ε = 1e-5
    plus, minus = (
        meta_loss(model.classifier, θ, [w + s * ε * d for w, d in zip(φ, direction)], *rest)[0]
        for s in (1, -1)
    )
    difference = float(plus - minus) / (2 * ε)
    along = sum((g * d).sum() for g, d in zip(tapes, direction))
    assert abs(along - difference) < 1e-4 * abs(difference)


class NumpyTraining:
    """Algorithm 1 in NumPy float64 for Dense-BatchNorm-tanh-Dense.

    Derivatives are taken by complex steps, Im f(w + iε)/ε, exact to rounding, so that no line of
    calculus is shared with the code under test.
    """

    MOMENTUM_BN, EPSILON_BN = 0.99, 1e-3
    # Numbers that float32 holds exactly, since Keras' optimizers round theirs to it.
    MOMENTUM, BETA_1, BETA_2, λ, β = 0.875, 0.875, 0.9375, 0.25, 0.125

    L2 = 0.125  # of the last kernel, as a Keras regularizer

    def __init__(self, θ, φ, statistics, options):
        self.θ, self.φ, self.options = θ, φ, options
        self.mean, self.variance = statistics
        self.velocity = [np.zeros_like(w) for w in θ]
        self.m, self.n, self.t = [np.zeros_like(w) for w in φ], [np.zeros_like(w) for w in φ], 0

    def net(self, θ, x, keep=False):
        w1, b1, γ, β, w2, b2 = θ
        h = x @ w1 + b1
        mean = h.mean(0)
        variance = ((h - mean) ** 2).mean(0)
        if keep:
            keep = self.MOMENTUM_BN
            self.mean = keep * self.mean + (1 - keep) * mean.real
            self.variance = keep * self.variance + (1 - keep) * variance.real
        return np.tanh((h - mean) / np.sqrt(variance + self.EPSILON_BN) * γ + β) @ w2 + b2

    @staticmethod
    def log_softmax(z):
        z = z - z.real.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    @staticmethod
    def gradient(function, weights):
        gradients = []
        for i, weight in enumerate(weights):
            gradient = np.zeros(weight.shape)
            for at in np.ndindex(weight.shape):
                moved = weight.astype(complex)
                moved[at] += 1e-30j
                gradient[at] = function([*weights[:i], moved, *weights[i + 1 :]]).imag / 1e-30
            gradients.append(gradient)
        return gradients

    def regularization(self, θ):
        return self.L2 * (θ[4] ** 2).sum()

    def descend(self, objective):
        self.follow(self.gradient(objective, self.θ))

    def follow(self, gradients):
        """SGD with momentum and coupled weight decay."""
        for i, (w, d) in enumerate(zip(self.θ, gradients)):
            step = self.λ * (d + self.options["weight_decay"] * w)
            self.velocity[i] = self.MOMENTUM * self.velocity[i] - step
            self.θ[i] = w + self.velocity[i]

    def warmup_step(self, x, y):
        self.net(self.θ, x, keep=True)
        self.descend(
            lambda θ: -self.log_softmax(self.net(θ, x))[np.arange(len(y)), y].mean()
            + self.regularization(θ)
        )

    def freeze(self):
        self.v_net = [*self.θ[:4], self.mean, self.variance]

    def features(self, x):
        w1, b1, γ, β, mean, variance = self.v_net
        return np.tanh((x @ w1 + b1 - mean) / np.sqrt(variance + self.EPSILON_BN) * γ + β)

    def log_soft_labels(self, v, φ, y):
        log_head, a = self.log_softmax(v @ φ[0] + φ[1]), self.options.get("given_label_weight")
        if not a:
            return log_head
        return np.log(a * np.eye(log_head.shape[1])[y] + (1 - a) * np.exp(log_head))

    def step(self, x, x_meta, y_meta, y=None):
        o, B = self.options, len(x)
        divisor = self.θ[-1].size if o["average_over_classes"] else 1
        v = self.features(x)
        f = np.exp(self.log_softmax(self.net(self.θ, x, keep=True)))

        def loss_c(θ, φ, entropy_weight=0.0):
            log_f = self.log_softmax(self.net(θ, x))
            f = np.exp(log_f)
            kl = f * (log_f - self.log_soft_labels(v, φ, y))
            return (kl - entropy_weight * f * log_f).sum() / B / divisor

        def loss_meta(θ):
            return -self.log_softmax(self.net(θ, x_meta))[np.arange(len(y_meta)), y_meta].mean()

        g = self.gradient(lambda θ: loss_c(θ, self.φ), self.θ)
        θ_hat = [w - o["inner_learning_rate"] * d for w, d in zip(self.θ, g)]
        u = self.gradient(loss_meta, θ_hat)
        self.net(θ_hat, x_meta, keep=o["meta_batch_norm"])
        ż = self.net([w + 1e-30j * d for w, d in zip(self.θ, u)], x).imag / 1e-30
        by_log_ŷ = o["inner_learning_rate"] / B / divisor * f * (ż - (f * ż).sum(-1, keepdims=True))
        by_φ = self.gradient(lambda φ: (by_log_ŷ * self.log_soft_labels(v, φ, y)).sum(), self.φ)
        self.meta_step(by_φ)
        self.descend(
            lambda θ: loss_c(θ, self.φ, o["entropy_weight"])
            + self.regularization(θ)
            + self.clean_loss(θ, x_meta, y_meta)
        )

    def meta_step(self, by_φ):
        """Adam with coupled weight decay."""
        self.t += 1
        for i, (w, d) in enumerate(zip(self.φ, by_φ)):  # Adam
            d = d + self.options["weight_decay"] * w
            self.m[i] = self.BETA_1 * self.m[i] + (1 - self.BETA_1) * d
            self.n[i] = self.BETA_2 * self.n[i] + (1 - self.BETA_2) * d**2
            rate = self.β * np.sqrt(1 - self.BETA_2**self.t) / (1 - self.BETA_1**self.t)
            self.φ[i] = w - rate * self.m[i] / (np.sqrt(self.n[i]) + 1e-8)

    def clean_loss(self, θ, x_meta, y_meta):
        """What a subclass adds to Eq. 13."""
        return 0.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average_over_classes": False, "entropy_weight": 0.3},
        {"meta_batch_norm": False, "inner_learning_rate": 2.5, "weight_decay": 0.05},
        {"given_label_weight": 0.3},
    ],
)
def test_three_updates_of_each_phase_equal_numpy(float64, options):
    options = {
        "average_over_classes": True, "entropy_weight": 1.0, "weight_decay": 1e-2,
        "inner_learning_rate": 1.0, "meta_batch_norm": True,
    } | options  # fmt: skip
    rng = np.random.default_rng(0)
    x, x_meta = (rng.normal(size=(3, 5, 4)) for _ in range(2))
    y, y_meta = (rng.integers(0, 3, (3, 5)).astype(np.int32) for _ in range(2))
    n = NumpyTraining
    classifier = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Dense(3, kernel_regularizer=keras.regularizers.L2(n.L2)),
        ]
    )
    model = MetaLabelNet(classifier, 1, **options)
    model.compile(
        keras.optimizers.SGD(n.λ, momentum=n.MOMENTUM),
        keras.optimizers.Adam(n.β, n.BETA_1, n.BETA_2, epsilon=1e-8),
        jit_compile=False,
    )
    batch_norm = classifier.layers[1]
    statistics = [w.numpy() for w in batch_norm.non_trainable_variables]
    θ = [w.numpy() for w in classifier.trainable_variables]
    reference = NumpyTraining(
        θ, [w.numpy() for w in model.label_head.weights], statistics, options
    )
    for step in range(3):
        reference.warmup_step(x[step], y[step])
    reference.freeze()
    for step in range(3):
        reference.step(x[step], x_meta[step], y_meta[step], y[step])
    noisy = tf.data.Dataset.from_tensor_slices((x, y))
    meta = tf.data.Dataset.from_tensor_slices((x_meta, y_meta))
    model.fit(noisy, meta_data=meta, epochs=2, verbose=0)

    found = [*classifier.trainable_variables, *model.label_head.weights]
    for w, expected in zip(found, reference.θ + reference.φ, strict=True):
        np.testing.assert_allclose(w.numpy(), expected, rtol=1e-8, atol=1e-9, err_msg=w.path)
    found = [w.numpy() for w in batch_norm.non_trainable_variables]
    np.testing.assert_allclose(found, [reference.mean, reference.variance], rtol=1e-9)

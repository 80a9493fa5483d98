"""Joint Optimization, PENCIL and Co-teaching: whole trainings recomputed in NumPy, and what they
refuse."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_equations import NumpyTraining

from mln_keras import layers as mln_layers
from mln_keras.command.recipes import RECIPES
from mln_keras.data.batches import batches
from mln_keras.data.checks import ArgumentError
from mln_keras.methods import CoTeaching, JointOptimization, Pencil

N, BATCH, INPUTS, CLASSES = 7, 3, 4, 3  # one sample sits out each epoch
MOMENTUM, RATE, DECAY = 0.875, 0.25, 0.125  # float32, as Keras' optimizers have it, holds them


log_softmax, by_complex_step = NumpyTraining.log_softmax, NumpyTraining.gradient


def softmax(z):
    return np.exp(log_softmax(z))


def entropy(z):
    return -(softmax(z) * log_softmax(z)).sum(-1)


def network():
    return keras.Sequential(
        [
            keras.Input((INPUTS,)),
            layers.Dense(3),
            layers.BatchNormalization(momentum=0.5),
            layers.Activation("tanh"),
            layers.Dense(CLASSES, bias_initializer="random_normal"),
        ]
    )


class NumpyNetwork:
    """`network()` and its optimizer in float64."""

    def __init__(self, model):
        self.θ = [w.numpy() for w in model.trainable_variables]
        self.mean, self.variance = (w.numpy() for w in model.non_trainable_variables)
        self.velocity = [np.zeros_like(w) for w in self.θ]

    def logits(self, θ, x, training=True):
        w1, b1, γ, β, w2, b2 = θ
        h = x @ w1 + b1
        mean, variance = self.mean, self.variance
        if training:
            mean = h.mean(0)
            variance = ((h - mean) ** 2).mean(0)
        return np.tanh((h - mean) / np.sqrt(variance + 1e-3) * γ + β) @ w2 + b2

    def descend(self, loss, x):
        """One step of SGD on a function of the logits; it moves the averages of batch norm."""
        gradients = by_complex_step(lambda θ: loss(self.logits(θ, x)), self.θ)
        h = x @ self.θ[0] + self.θ[1]
        self.mean = (self.mean + h.mean(0)) / 2
        self.variance = (self.variance + h.var(0)) / 2
        for i, (w, d) in enumerate(zip(self.θ, gradients)):
            self.velocity[i] = MOMENTUM * self.velocity[i] - RATE * (d + DECAY * w)
            self.θ[i] = w + self.velocity[i]

    def assert_equals(self, model):
        found = [w.numpy() for w in model.trainable_variables + model.non_trainable_variables]
        for a, b in zip(found, [*self.θ, self.mean, self.variance], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def samples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, INPUTS)).astype(np.float32)  # as which `fit` takes float images
    return x.astype(np.float64), rng.integers(0, CLASSES, N).astype(np.int32)


def steps_of(x, y, epoch):
    return [
        tuple(part.numpy() for part in batch)
        for batch in batches(x, y, BATCH, epochs=range(epoch, epoch + 1), seed=0, rows=np.arange(N))
    ]


def trained(model, x, y, epochs, **options):
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), jit_compile=False)
    model.fit((x, y), batch_size=BATCH, epochs=epochs, verbose=0, **options)
    return model


def joint_penalty(z, prior_weight, entropy_weight, as_run):
    log_mean = np.log(softmax(z).mean(0))
    if as_run:
        prior = -log_mean.sum() / CLASSES
        h = -(softmax(z) * log_softmax(softmax(z))).sum(-1).mean()
    else:
        prior = (1 / CLASSES * (np.log(1 / CLASSES) - log_mean)).sum()
        h = entropy(z).mean()
    return prior_weight * prior + entropy_weight * h


@pytest.mark.parametrize("as_run", [False, True])
@pytest.mark.parametrize("label_epoch", [1, 2])
def test_joint_optimization_equals_numpy(float64, label_epoch, as_run):
    """Both trainings; from epoch 1 on, a sample that sat out the first still has its own label."""
    x, y = samples()
    classifier = network()
    reference = NumpyNetwork(classifier)
    model = JointOptimization(
        classifier, label_epoch=label_epoch, first_epochs=4, averaged_epochs=2, prior_weight=0.7,
        entropy_weight=0.3, as_run=as_run, weight_decay=DECAY,
    )  # fmt: skip
    one_hot, said = np.eye(CLASSES), [[] for _ in y]
    sat_out = set(range(N)) - {row for *_, rows in steps_of(x, y, 0) for row in rows}

    def label(row):
        return np.mean(said[row][-2:], axis=0) if said[row] else one_hot[y[row]]

    for epoch in range(6):
        is_first = epoch < 4 or as_run
        if epoch == 4 and not as_run:
            reference = NumpyNetwork(network_like(reference, model.initial_weights))
        for images, labels, rows in steps_of(x, y, epoch):
            t = one_hot[labels]
            if epoch >= label_epoch and not as_run:
                t = np.array([label(row) for row in rows])
                if epoch == label_epoch == 1 and sat_out & set(rows):
                    assert one_hot[labels].tolist() != t.tolist()

            def loss(z, t=t, is_first=is_first):
                ce = -(t * log_softmax(z)).sum(-1).mean()
                return ce + (joint_penalty(z, 0.7, 0.3, as_run) if is_first else 0)

            if is_first:
                for row, p in zip(rows, softmax(reference.logits(reference.θ, images))):
                    said[row].append(p)
            reference.descend(loss, images)
    trained(model, x, y, 6)
    reference.assert_equals(classifier)
    if not as_run:
        expected = [label(row) for row in range(N)]
        np.testing.assert_allclose(model.sample_soft_labels(), expected, rtol=1e-8)


def network_like(reference, weights):
    model = network()
    for variable, value in zip(model.weights, weights, strict=True):
        variable.assign(value)
    return model


@pytest.mark.parametrize("stages", [(1, 3), (0, 2)])
def test_pencil_equals_numpy(float64, stages):
    x, y = samples()
    classifier = network()
    reference, s = NumpyNetwork(classifier), 10 * np.eye(CLASSES)[y]
    model = Pencil(
        classifier, stage_2_epoch=stages[0], stage_3_epoch=stages[1], compatibility_weight=0.4,
        entropy_weight=0.6, label_learning_rate=50.0, weight_decay=DECAY,
    )  # fmt: skip
    for epoch in range(4):
        for images, labels, rows in steps_of(x, y, epoch):

            def loss(z, s_of, epoch=epoch, labels=labels):
                if epoch < stages[0]:
                    return -log_softmax(z)[np.arange(BATCH), labels].mean()
                kl = (softmax(z) * (log_softmax(z) - log_softmax(s_of))).mean()
                if epoch >= stages[1]:
                    return kl
                compatibility = -log_softmax(softmax(s_of))[np.arange(BATCH), labels].mean()
                return kl + 0.4 * compatibility + 0.6 * entropy(z).mean() / CLASSES

            before = s[rows].copy()
            if stages[0] <= epoch < stages[1]:
                by_label = functools.partial(loss, reference.logits(reference.θ, images))
                (by_s,) = by_complex_step(lambda s, f=by_label: f(s[0]), [before])
                s[rows] = before - 50.0 * by_s
            reference.descend(functools.partial(loss, s_of=before), images)
    trained(model, x, y, 4)
    reference.assert_equals(classifier)
    np.testing.assert_allclose(model.sample_soft_labels(), softmax(s), rtol=1e-8)
    assert np.abs(softmax(s) - np.eye(CLASSES)[y]).max() > 0.1


@pytest.mark.parametrize("as_run", [False, True])
def test_co_teaching_equals_numpy(float64, as_run):
    x, y = samples()
    both = network(), network()
    nets = [NumpyNetwork(one) for one in both]
    model = CoTeaching(
        both[0], 0.5, ramp_epochs=3, second_classifier=both[1], as_run=as_run, weight_decay=DECAY
    )
    rises_to, then = (0.725, 0.2) if as_run else (0.5, 0.5)
    disagreed = False
    for epoch in range(4):
        forgotten = rises_to * epoch / 2 if epoch < 3 else then
        count = max(1, math.floor((1 - forgotten) * BATCH))
        for images, labels, _ in steps_of(x, y, epoch):

            def cross_entropies(z, y=labels):
                return -log_softmax(z)[np.arange(BATCH), y]

            picks = []
            for net in nets:
                z = net.logits(net.θ, images, training=not as_run)
                picks.append(np.argsort(cross_entropies(softmax(z) if as_run else z))[:count])
            disagreed |= set(picks[0]) != set(picks[1])
            for net, picked in zip(nets, reversed(picks)):
                net.descend(lambda z, picked=picked: cross_entropies(z)[picked].mean(), images)
    trained(model, x, y, 4)
    for net, one in zip(nets, both):
        net.assert_equals(one)
    assert disagreed


# ---- losses -------------------------------------------------------------------------------------


def value_and_gradient(function, *tensors):
    tensors = [tf.constant(t) for t in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = tf.reduce_sum(function(*tensors))
    return float(value), [g.numpy() for g in tape.gradient(value, tensors)]


@pytest.mark.parametrize(
    "function, in_numpy, distributions",
    [
        (mln_layers.soft_cross_entropy, lambda t, z: -(t * log_softmax(z)).sum(), True),
        (
            mln_layers.prior_divergence,
            lambda z: (np.log(1 / CLASSES) - np.log(softmax(z).mean(0))).mean(),
            False,
        ),
    ],
)
def test_losses_equal_numpy(float64, function, in_numpy, distributions):
    rng = np.random.default_rng(0)
    arguments = [rng.normal(size=(5, CLASSES)) * 3]
    if distributions:
        arguments.insert(0, rng.dirichlet(np.ones(CLASSES), 5))
    value, gradients = value_and_gradient(function, *arguments)
    assert np.isclose(value, in_numpy(*arguments), rtol=1e-12)
    expected = by_complex_step(lambda weights: in_numpy(*weights), arguments)
    for found, gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-9, atol=1e-12)


def test_the_prior_is_finite_where_a_class_has_no_probability():
    logits = np.array([[200.0, 0, 0], [200.0, 0, 0]], np.float32)
    value, (gradient,) = value_and_gradient(mln_layers.prior_divergence, logits)
    assert np.isclose(value, 400 / 3 - np.log(3)) and np.isfinite(gradient).all()


# ---- how it is used -----------------------------------------------------------------------------


def image_network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(4),
        ]
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: JointOptimization(image_network(), label_epoch=6, first_epochs=20),
        lambda: Pencil(image_network(), stage_2_epoch=6, stage_3_epoch=20),
    ],
)
def test_labels_are_corrected(images, build):
    x, y = images(400)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(400) < 0.4, (y + rng.integers(1, 4, 400)) % 4, y)
    model = build()
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), jit_compile=False)
    model.fit((x, noisy), batch_size=16, epochs=20, verbose=0)
    soft_labels = model.sample_soft_labels()
    np.testing.assert_allclose(soft_labels.sum(-1), 1, rtol=1e-5)
    assert (soft_labels.argmax(-1) == y).mean() > 0.9 > (noisy == y).mean() + 0.2


def test_a_sample_without_a_label_keeps_the_uniform_one(images):
    x, y = images(40)
    y[5] = -1
    for model in (
        JointOptimization(image_network(), label_epoch=1, first_epochs=3),
        Pencil(image_network(), stage_2_epoch=1, stage_3_epoch=3),
    ):
        trained(model, x, y, 3)
        np.testing.assert_allclose(model.sample_soft_labels()[5], 0.25)
        assert model.sample_soft_labels().max() > 0.3


@pytest.mark.parametrize("method", [JointOptimization, Pencil])
def test_other_data_than_before_are_refused(images, method):
    x, y = images(40)
    model = trained(method(image_network()), x, y, 1)
    with pytest.raises(ArgumentError, match="x: expected the 40 samples .* received 30"):
        model.fit((x[:30], y[:30]), epochs=2, initial_epoch=1, batch_size=8)
    dataset = tf.data.Dataset.from_tensors((x, y))
    with pytest.raises(ArgumentError, match="x: expected arrays or ImageFiles"):
        model.fit(dataset, epochs=2, initial_epoch=1)


def test_as_run_joint_optimization_keeps_nothing_of_a_sample(images):
    x, y = images(40)
    model = JointOptimization(image_network(), as_run=True)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    model.fit(tf.data.Dataset.from_tensors((x, y)), epochs=1, verbose=0)
    with pytest.raises(ArgumentError, match="as_run=True leaves the labels"):
        model.sample_soft_labels()


@pytest.mark.parametrize(
    "build",
    [
        lambda: JointOptimization(image_network(), label_epoch=1, first_epochs=2),
        lambda: Pencil(image_network(), stage_2_epoch=1, stage_3_epoch=2),
        lambda: CoTeaching(image_network(), 0.4, ramp_epochs=2),
    ],
)
@pytest.mark.slow
def test_a_training_that_starts_over_repeats_itself(images, build):
    x, y = images(44)
    model = build()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=False)
    first = model.fit((x, y), batch_size=8, epochs=3, verbose=0).history["loss"]
    model.start_over()
    assert model.fit((x, y), batch_size=8, epochs=3, verbose=0).history["loss"] == first


def test_soft_labels_before_they_change(images):
    x, y = images(40)
    for model in (JointOptimization(image_network()), Pencil(image_network())):
        with pytest.raises(ArgumentError, match="sample_soft_labels: .* not yet called"):
            model.sample_soft_labels()
    trained(model, x, y, 1)  # stage 1
    np.testing.assert_allclose(model.sample_soft_labels(), np.eye(4)[y], atol=2e-4)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: JointOptimization(image_network(), label_epoch=5, first_epochs=4),
         "first_epochs: expected at least label_epoch=5, received 4"),
        (lambda: JointOptimization(image_network(), averaged_epochs=0), "averaged_epochs: "),
        (lambda: Pencil(image_network(), stage_2_epoch=201),
         "stage_3_epoch: expected at least stage_2_epoch=201, received 200"),
        (lambda: Pencil(image_network(), label_learning_rate=0.0), "label_learning_rate: "),
        (lambda: Pencil(image_network(), num_samples=0), "num_samples: "),
        (lambda: CoTeaching(image_network(), 1.5), "noise_rate: expected 0 to 1"),
        (lambda: CoTeaching(image_network(), 0.2, ramp_epochs=0), "ramp_epochs: "),
        (lambda: CoTeaching(image_network(), 0.2, second_classifier=network()),
         r"second_classifier: expected images \(8, 8, 1\) and 4 classes"),
        (lambda: CoTeaching(image_network(), 0.2, second_classifier="x"),
         "second_classifier: expected a keras.Model, received str"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        build()


def test_the_second_network_is_another_one():
    classifier = image_network()
    kernel = CoTeaching(classifier, 0.2).second_classifier.layers[2].kernel
    assert np.abs(kernel.numpy() - classifier.layers[2].kernel.numpy()).max() > 0.01
    with pytest.raises(ArgumentError, match="second_classifier: expected another network"):
        CoTeaching(classifier, 0.2, second_classifier=classifier)
    seeded = keras.Sequential(
        [keras.Input((INPUTS,)),
         layers.Dense(CLASSES, kernel_initializer=keras.initializers.GlorotUniform(seed=1))]
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="second_classifier: needed, as a clone"):
        CoTeaching(seeded, 0.2)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(CLASSES)

        def call(self, images):
            return self.dense(images)

    one, other = Subclassed(), Subclassed()
    for model in (one, other):
        model(np.zeros((1, INPUTS)))
    with pytest.raises(ArgumentError, match="second_classifier: needed, as a subclassed"):
        CoTeaching(one, 0.2)
    assert CoTeaching(one, 0.2, second_classifier=other).second_classifier is other


def test_the_published_numbers():
    pencil, as_run = Pencil(image_network()), Pencil(image_network(), as_run=True)
    names = ("compatibility_weight", "entropy_weight", "label_learning_rate",
             "stage_2_epoch", "stage_3_epoch")  # fmt: skip
    assert [getattr(pencil, name) for name in names] == [0.4, 0.1, 600, 70, 200]
    assert [getattr(as_run, name) for name in names] == [0.1, 0.8, 400, 21, 80]
    published = CoTeaching(image_network(), 0.45)
    found = [published.forgotten_at(epoch) for epoch in range(12)]
    np.testing.assert_allclose(found, [*(0.05 * np.arange(10)), 0.45, 0.45])
    as_run = CoTeaching(image_network(), 0.45, as_run=True)
    found = [as_run.forgotten_at(epoch) for epoch in (0, 9, 10, 100)]
    np.testing.assert_allclose(found, [0, 0.725, 0.2, 0.2])


@pytest.mark.parametrize("forgotten, kept", [(0.1, 9), (0.3, 7), (0.35, 6), (1.0, 1)])
def test_as_many_samples_are_picked_as_published(forgotten, kept):
    """0.9 · 10 is 9, which float32 may make 8.999."""
    model = CoTeaching(image_network(), forgotten)
    model.begin_epoch(20)
    losses = np.random.default_rng(0).permutation(10).astype(np.float32)
    np.testing.assert_array_equal(model._smallest(losses), losses < kept)


def test_recipes_are_scaled():
    recipe = RECIPES["cifar10"]
    options, epochs, rate_at = JointOptimization.from_recipe(recipe)
    assert (options, epochs) == ({"label_epoch": 26, "first_epochs": 75}, 120)
    rates = [rate_at(epoch) for epoch in (0, 74, 75, 90, 91, 105, 106, 119)]
    np.testing.assert_allclose(rates, [1e-2] * 4 + [1e-3] * 2 + [1e-4] * 2)
    options, _, rate_at = Pencil.from_recipe(recipe)
    assert (options["stage_2_epoch"], options["stage_3_epoch"]) == (26, 75)
    assert rate_at == recipe.learning_rate_at
    options, _, _ = Pencil.from_recipe(recipe.with_flags({"as_run": True}))
    assert options == {"as_run": True, "stage_2_epoch": 21, "stage_3_epoch": 80}
    assert CoTeaching.from_recipe(recipe)[0] == {"ramp_epochs": 10}

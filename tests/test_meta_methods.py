"""Methods that learn by a gradient through a step: their updates, recomputed in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_equations import NumpyTraining

from mln_keras import MetaLabelNet
from mln_keras.command.recipes import RECIPES
from mln_keras.data.batches import batches
from mln_keras.data.checks import ArgumentError
from mln_keras.methods import MLNT, MSLG, MetaLabelNetClean, MetaWeightNet

C, BATCH = 3, 5


class Numpy(NumpyTraining):
    """NumpyTraining of a method under test; its options are the constructor's."""

    def __init__(self, model, φ=(), **options):
        classifier = model.classifier
        super().__init__(
            [w.numpy() for w in classifier.trainable_variables],
            [w.numpy() for w in φ],
            [w.numpy() for w in classifier.non_trainable_variables],
            {"weight_decay": model.weight_decay} | options,
        )

    def losses(self, θ, x, y):
        return -self.log_softmax(self.net(θ, x))[np.arange(len(y)), y]

    def mean_kl(self, θ, x, log_q, entropy_weight=0.0):
        """Mean over batch and classes, as is that of the entropy."""
        log_p = self.log_softmax(self.net(θ, x))
        return (np.exp(log_p) * ((1 - entropy_weight) * log_p - log_q)).mean()

    def along(self, function, direction):
        """The derivative of a function of θ along a direction."""
        moved = [w + 1e-30j * d for w, d in zip(self.θ, direction)]
        return function(moved).imag / 1e-30

    def after(self, loss, step, θ=None):
        """θ̂, one plain step on a loss, from weights or from these."""
        θ = self.θ if θ is None else θ
        return [w - step * d for w, d in zip(θ, self.gradient(loss, θ))]

    def assert_equal(self, classifier, rtol=1e-8):
        for w, expected in zip(classifier.trainable_variables, self.θ, strict=True):
            np.testing.assert_allclose(w.numpy(), expected, rtol, 1e-9, err_msg=w.path)
        found = [w.numpy() for w in classifier.non_trainable_variables]
        np.testing.assert_allclose(found, [self.mean, self.variance], rtol)


def network():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Dense(C, kernel_regularizer=keras.regularizers.L2(NumpyTraining.L2)),
        ]
    )


def compiled(model):
    n, meta_optimizer = NumpyTraining, None
    if model.meta_weights():
        meta_optimizer = keras.optimizers.Adam(n.β, n.BETA_1, n.BETA_2, epsilon=1e-8)
    sgd = keras.optimizers.SGD(n.λ, momentum=n.MOMENTUM)
    model.compile(sgd, meta_optimizer, jit_compile=False)
    return model


def drawn(steps, seed=0):
    """Batches (steps, BATCH, 4), of numbers that float32 holds, and their labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, BATCH, 4)).astype(np.float32).astype(np.float64)
    return x, rng.integers(0, C, (steps, BATCH)).astype(np.int32)


def dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def central_difference(function, weights, direction, ε=1e-5):
    plus, minus = (
        function([w + sign * ε * d for w, d in zip(weights, direction)]) for sign in (1, -1)
    )
    return (plus - minus) / (2 * ε)


def assert_is_gradient(found, function, weights):
    rng = np.random.default_rng(3)
    direction = [rng.normal(size=w.shape) for w in weights]
    expected = central_difference(function, weights, direction)
    along = sum((g * d).sum() for g, d in zip(found, direction))
    assert abs(along - expected) < 1e-5 * abs(expected)


class NumpyMetaWeightNet(Numpy):
    def weights(self, φ, losses):
        w1, b1, w2, b2 = φ
        h = losses[:, None] @ w1 + b1
        return 1 / (1 + np.exp(-(np.where(h.real > 0, h, 0) @ w2 + b2)[:, 0]))

    def step(self, x, y, x_meta, y_meta):
        self.net(self.θ, x, keep=True)
        losses = self.losses(self.θ, x, y)

        def loss(φ):
            w = self.weights(φ, losses)
            return lambda θ: (w * self.losses(θ, x, y)).mean()

        def meta_loss(φ):
            return self.losses(self.after(loss(φ), self.λ), x_meta, y_meta).mean()

        θ_hat = self.after(loss(self.φ), self.λ)
        u = self.gradient(lambda θ: self.losses(θ, x_meta, y_meta).mean(), θ_hat)
        along_u = self.along(lambda θ: self.losses(θ, x, y), u)
        by_φ = self.gradient(
            lambda φ: -self.λ * (self.weights(φ, losses) * along_u).mean(), self.φ
        )
        assert_is_gradient(by_φ, meta_loss, self.φ)
        self.meta_step(by_φ)
        new_loss = loss(self.φ)
        self.descend(lambda θ: new_loss(θ) + self.regularization(θ))


def test_two_updates_of_meta_weight_net(float64):
    (x, y), (x_meta, y_meta) = drawn(2), drawn(2, seed=1)
    model = compiled(MetaWeightNet(network(), hidden_units=4, weight_decay=1e-2))
    reference = NumpyMetaWeightNet(model, model.weight_net.weights)
    model.fit(dataset(x, y), meta_data=dataset(x_meta, y_meta), verbose=0)
    for batch in zip(x, y, x_meta, y_meta):
        reference.step(*batch)
    reference.assert_equal(model.classifier)
    for w, expected in zip(model.weight_net.weights, reference.φ, strict=True):
        np.testing.assert_allclose(w.numpy(), expected, 1e-8, 1e-9, err_msg=w.path)


def test_meta_weight_net_begins_as_published():
    model = MetaWeightNet(network())
    assert [w.shape for w in model.weight_net.weights] == [(1, 100), (100,), (100, 1), (1,)]
    model.compile("sgd")
    assert float(model.meta_optimizer.learning_rate) == np.float32(1e-3)
    assert model.weight_decay == 1e-4


class NumpyMSLG(Numpy):
    def __init__(self, model, labels, **options):
        super().__init__(model, **options)
        self.s = options["label_scale"] * np.eye(C)[labels]

    def step(self, x, rows, x_meta, y_meta):
        o, s = self.options, self.s[rows]
        α = o["inner_learning_rate"]
        self.net(self.θ, x, keep=True)

        def θ_hat(s):
            return self.after(lambda θ: self.mean_kl(θ, x, self.log_softmax(s)), α)

        def meta_loss(θ):
            return self.losses(θ, x_meta, y_meta).mean()

        u = self.gradient(meta_loss, θ_hat(s))
        self.net(θ_hat(s), x_meta, keep=True)
        by_s = self.along(lambda θ: np.exp(self.log_softmax(self.net(θ, x))), u) * α / s.size
        assert_is_gradient([by_s], lambda s: meta_loss(θ_hat(s[0])), [s])
        self.s[rows] = s - o["label_learning_rate"] * by_s
        log_q = self.log_softmax(self.s[rows])
        self.descend(
            lambda θ: self.mean_kl(θ, x, log_q, o["entropy_weight"]) + self.regularization(θ)
        )


def test_updates_of_mslg_whose_soft_labels_stay_between_epochs(float64):
    x, y = (a.reshape(2 * BATCH, *a.shape[2:]) for a in drawn(2))
    x_meta, y_meta = drawn(2, seed=1)
    options = {
        "inner_learning_rate": 0.7, "label_learning_rate": 300.0, "label_scale": 2.0,
        "entropy_weight": 0.3,
    }  # fmt: skip
    model = compiled(MSLG(network(), 1, weight_decay=1e-2, seed=7, **options))
    reference = NumpyMSLG(model, y, **options)
    meta_data = x_meta.reshape(-1, 4), y_meta.reshape(-1)
    model.shuffle_meta = False
    model.fit((x, y), meta_data=meta_data, batch_size=BATCH, epochs=3, verbose=0)
    in_order = batches(x, y, BATCH, epochs=range(3), seed=7, rows=np.arange(len(y)))
    for i, (x_batch, labels, rows) in enumerate(in_order.as_numpy_iterator()):
        if i < 2:
            reference.warmup_step(x_batch, labels)
        else:
            reference.step(x_batch, rows, x_meta[i % 2], y_meta[i % 2])
    reference.assert_equal(model.classifier, 1e-7)
    np.testing.assert_allclose(model.soft_label_logits.numpy(), reference.s, 1e-7)
    assert (reference.s != 2 * np.eye(C)[y]).all()


def test_soft_labels_of_mslg_start_at_the_given_labels_and_belong_to_these_samples(tmp_path):
    (x,), (y,) = drawn(1)
    y[2] = -1
    model = compiled(MSLG(network(), 1))
    model.fit((x, y), batch_size=2, verbose=0)
    assert model.soft_label_logits.shape == (BATCH, C)
    with pytest.raises(ArgumentError, match="sample_soft_labels: .*not yet begun"):
        model.sample_soft_labels()
    model.begin_phase(2)
    expected = 10 * np.eye(C)[y] * (y >= 0)[:, None]
    np.testing.assert_array_equal(model.soft_label_logits.numpy(), expected)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    soft_labels = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose(again.sample_soft_labels(), soft_labels, 1e-6)
    meta = (x[:C], np.arange(C))
    with pytest.raises(ArgumentError, match="x: expected the 5 samples .*received 4"):
        again.fit((x[:4], y[:4]), meta_data=meta, batch_size=2, epochs=2, verbose=0)


class NumpyMLNT(Numpy):
    """Its synthetic label sets are the labels turned around, see `turned`."""

    def begin_student(self, initial):
        self.freeze()  # the mentor
        self.θ, (self.mean, self.variance) = list(initial.θ), (initial.mean, initial.variance)
        self.velocity = [np.zeros_like(w) for w in self.θ]

    def begin_teacher(self):
        self.teacher, self.averages, self.steps = list(self.θ), (self.mean, self.variance), 0

    def teach(self, x):
        """Moves the teacher, returns (w, log t)."""
        self.steps += 1
        u = min(self.steps / self.options["ramp_up_steps"], 1)
        keep = 0.99 if self.steps <= self.options["ramp_up_steps"] else self.options["decay"]
        self.teacher = [keep * t + (1 - keep) * w for t, w in zip(self.teacher, self.θ)]
        own, (self.mean, self.variance) = (self.mean, self.variance), self.averages
        log_t = self.log_softmax(self.net(self.teacher, x, keep=True))
        self.averages, (self.mean, self.variance) = (self.mean, self.variance), own
        return np.exp(-5 * (1 - u) ** 2), log_t

    def step(self, x, y):
        weight, log_t = self.teach(x)
        self.net(self.θ, x, keep=True)

        def distance(θ, labels):
            η = self.options["inner_learning_rate"]
            θ_m = self.after(lambda θ: self.losses(θ, x, labels).mean(), η, θ)
            return (np.exp(log_t) * (log_t - self.log_softmax(self.net(θ_m, x)))).mean()

        def consistency(θ):
            return (distance(θ, np.roll(y, 1)) + distance(θ, np.roll(y, 2))) / 2

        gradients = self.gradient(
            lambda θ: self.losses(θ, x, y).mean() + self.regularization(θ), self.θ
        )
        for i, w in enumerate(self.θ):
            for at in np.ndindex(w.shape):
                direction = [np.zeros_like(w) for w in self.θ]
                direction[i][at] = 1
                gradients[i][at] += weight * central_difference(consistency, self.θ, direction)
        self.follow(gradients)

    def probabilities(self, x, θ, averages):
        """In inference mode."""
        w1, b1, γ, β, w2, b2 = θ
        mean, variance = averages
        h = (x @ w1 + b1 - mean) / np.sqrt(variance + self.EPSILON_BN) * γ + β
        return np.exp(self.log_softmax(np.tanh(h) @ w2 + b2))


def turned(labels, features):
    return tf.stack([tf.roll(labels, 1, 0), tf.roll(labels, 2, 0)])


@pytest.mark.parametrize("as_run", [False, True])
def test_updates_of_mlnt(float64, monkeypatch, as_run):
    x, y = drawn(3)
    model = compiled(
        MLNT(network(), 1, delay_epochs=1, label_sets=2, inner_learning_rate=0.7, decay=0.995,
             ramp_up_steps=2, weight_decay=1e-2, as_run=as_run)
    )  # fmt: skip
    monkeypatch.setattr(model, "synthetic_labels", turned)
    options = {"inner_learning_rate": 0.7, "decay": 0.995, "ramp_up_steps": 1e-9 if as_run else 2}
    initial, reference = Numpy(model), NumpyMLNT(model, **options)
    steps = {"mentor": reference.warmup_step, "student": reference.warmup_step,
             "student with teacher": reference.step}  # fmt: skip
    begin = {"student": lambda: reference.begin_student(initial),
             "student with teacher": reference.begin_teacher}  # fmt: skip
    model.fit(dataset(x, y), epochs=3, verbose=0)
    for phase in model.phases():
        begin.get(phase.name, list)()
        for batch in zip(x, y):
            steps[phase.name](*batch)
    reference.assert_equal(model.classifier, 1e-7)
    found = model.features_at(model.mentor, x[0])
    np.testing.assert_allclose(found, reference.features(x[0]), 1e-7)

    student = reference.θ, (reference.mean, reference.variance)
    teacher = reference.teacher, reference.averages
    expected = reference.probabilities(x[0], *(student if as_run else teacher))
    np.testing.assert_allclose(model.predict(x[0], verbose=0), expected, 1e-6)
    assert np.abs(expected - reference.probabilities(x[0], *student)).max() == 0 or not as_run
    assert np.abs(reference.teacher[0] - reference.θ[0]).max() > 1e-2


def test_what_mlnt_ran_for_table_1():
    published, as_run = MLNT(network(), 1), MLNT(network(), 1, as_run=True)
    assert (published.inner_learning_rate, as_run.inner_learning_rate) == (0.02, 0.2)
    assert [phase.start for phase in as_run.phases()] == [0, 1, 3]


def test_the_teacher_of_mlnt_predicts_when_there_is_one(tmp_path):
    x, y = drawn(4)
    model = compiled(MLNT(network(), 1, delay_epochs=1, ramp_up_steps=0, decay=0.9))

    def student():
        return keras.ops.softmax(model.classifier(x[0], training=False))

    for epochs, is_student in ((1, True), (2, True), (3, False)):
        model.fit(dataset(x, y), initial_epoch=epochs - 1, epochs=epochs, verbose=0)
        predicted = model.predict(x[0], verbose=0)
        assert (np.abs(predicted - student()).max() < 1e-6) == is_student
    model.export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served")
    exported = served.serve(x[0].astype(np.float32))["probabilities"]
    np.testing.assert_allclose(exported, predicted, atol=1e-6)


def test_synthetic_labels_are_those_of_near_neighbors():
    count, sets, neighbors = 24, 400, 5
    model = MLNT(network(), 1, label_sets=sets, neighbors=neighbors, seed=3)
    model.compile("sgd")
    features = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    own = np.arange(count, dtype=np.int32)  # so a label says whose it is
    labels = model.synthetic_labels(own, features).numpy()
    assert ((labels != own).sum(1) == count // 2).all()
    distances = ((features[:, None] - features) ** 2).sum(-1)
    nearest = np.argsort(distances, 1)[:, 1 : neighbors + 1]
    for i in range(count):
        taken, times = np.unique(labels[:, i], return_counts=True)
        assert set(taken) == {i, *nearest[i]}
        is_own = taken == i
        assert abs(times[is_own] - sets / 2) < 5 * np.sqrt(sets / 4)
        assert (abs(times[~is_own] - sets / 10) < 5 * np.sqrt(sets * 0.1 * 0.9)).all()
    np.testing.assert_array_equal(labels, model.synthetic_labels(own, features))
    model.optimizer.iterations.assign_add(1)
    assert (labels != model.synthetic_labels(own, features).numpy()).any()


def test_a_batch_smaller_than_the_neighborhood_has_synthetic_labels():
    model = MLNT(network(), 1, label_sets=50)
    model.compile("sgd")
    two = model.synthetic_labels(np.int32([4, 7]), np.float32([[0], [1]])).numpy()
    assert set(map(tuple, two)) == {(7, 7), (4, 4)}
    one = model.synthetic_labels(np.int32([4]), np.float32([[0]])).numpy()
    assert (one == 4).all()


def augmented(x):
    return 0.5 * x + 0.25


class NumpyClean(Numpy):
    T = None

    def log_soft_labels(self, v, φ, y):
        log_head = super().log_soft_labels(v, φ, y)
        return log_head if self.T is None else self.log_softmax(log_head + np.log(self.T[:, y].T))

    def measure(self, x, y):
        """T, of all clean samples at once."""
        self.freeze()
        p = np.exp(self.log_softmax(self.features(x) @ self.θ[4] + self.θ[5]))
        self.T = np.array([p[y == c].mean(0) for c in range(C)])

    def corrected_step(self, x, y, x_meta, y_meta, share):
        self.net(self.θ, x, keep=True)
        self.net(self.θ, x_meta, keep=True)

        def loss(θ):
            p = np.exp(self.log_softmax(self.net(θ, x))) @ self.T
            noisy = -np.log(p[np.arange(BATCH), y]).mean()
            return (1 - share) * noisy + share * self.losses(θ, x_meta, y_meta).mean()

        self.descend(lambda θ: loss(θ) + self.regularization(θ))

    def step(self, x, x_meta, y_meta, y=None):
        θ = list(self.θ)
        super().step(augmented(x), x_meta, y_meta, y)
        if self.options["meta_batch_norm"]:
            self.net(θ, augmented(x_meta), keep=True)

    def clean_loss(self, θ, x_meta, y_meta):
        return self.options["clean_weight"] * self.losses(θ, augmented(x_meta), y_meta).mean()


@pytest.mark.parametrize("meta_batch_norm", [True, False])
def test_updates_with_clean_images_and_fine_tuning(float64, meta_batch_norm):
    (x, y), (x_meta, y_meta) = drawn(2), drawn(2, seed=1)
    options = {"clean_weight": 0.6, "meta_batch_norm": meta_batch_norm}
    model = compiled(
        MetaLabelNetClean(network(), 1, fine_tune_from=2, weight_decay=1e-2,
                          augmentation=layers.Rescaling(0.5, 0.25), **options)
    )  # fmt: skip
    reference = NumpyClean(
        model, model.label_head.weights, inner_learning_rate=1.0, average_over_classes=True,
        entropy_weight=1.0, **options,
    )  # fmt: skip
    model.fit(dataset(x, y), meta_data=dataset(x_meta, y_meta), epochs=3, verbose=0)
    for step in range(2):
        reference.warmup_step(augmented(x[step]), y[step])
    reference.freeze()
    for step in range(2):
        reference.step(x[step], x_meta[step], y_meta[step])
    for step in range(2):
        reference.warmup_step(augmented(x_meta[step]), y_meta[step])
    reference.assert_equal(model.classifier)
    for w, expected in zip(model.label_head.weights, reference.φ, strict=True):
        np.testing.assert_allclose(w.numpy(), expected, 1e-8, 1e-9)


def test_updates_with_loss_correction(float64):
    (x, y), (x_meta, y_meta) = drawn(2), drawn(2, seed=1)
    model = compiled(
        MetaLabelNetClean(network(), 2, corrected_from=1, clean_weight=0.6, weight_decay=1e-2,
                          augmentation=layers.Rescaling(0.5, 0.25))
    )  # fmt: skip
    options = {
        "inner_learning_rate": 1.0, "average_over_classes": True, "entropy_weight": 1.0,
        "clean_weight": 0.6, "meta_batch_norm": True,
    }  # fmt: skip
    first, second = (NumpyClean(model, model.label_head.weights, **options) for _ in range(2))
    model.fit(dataset(x, y), meta_data=dataset(x_meta, y_meta), epochs=3, verbose=0)
    for step in range(2):
        first.warmup_step(augmented(x[step]), y[step])
    first.measure(x_meta.reshape(-1, 4), y_meta.ravel())
    second.T = first.T
    np.testing.assert_allclose(model.transition, first.T, 1e-8)
    for step in range(2):
        second.corrected_step(
            augmented(x[step]), y[step], augmented(x_meta[step]), y_meta[step], share=0.5
        )
    second.freeze()
    for step in range(2):
        second.step(x[step], x_meta[step], y_meta[step], y[step])
    second.assert_equal(model.classifier)
    for w, expected in zip(model.label_head.weights, second.φ, strict=True):
        np.testing.assert_allclose(w.numpy(), expected, 1e-8, 1e-9)

    seen = model.soft_labels(x[0], given_labels=np.where(y[0] == 1, -1, y[0]))
    v = second.features(x[0])
    log_head = second.log_softmax(v @ second.φ[0] + second.φ[1])
    expected = np.where((y[0] == 1)[:, None], log_head, second.log_soft_labels(v, second.φ, y[0]))
    np.testing.assert_allclose(seen, np.exp(expected), 1e-7)


def test_without_the_clean_images_it_is_metalabelnet():
    (x, y), (x_meta, y_meta) = drawn(2), drawn(2, seed=1)
    ends, graphs = [], []
    for method, options in ((MetaLabelNet, {}), (MetaLabelNetClean, {"clean_weight": 0})):
        keras.utils.set_random_seed(0)
        model = compiled(method(network(), 1, **options))
        model.fit(dataset(x, y), meta_data=dataset(x_meta, y_meta), epochs=2, verbose=0)
        model.phase_in_training, model.held = 2, (None, None)
        batch = (x[0], y[0]), (x_meta[0], y_meta[0])
        graph = tf.function(model.train_step).get_concrete_function(batch).graph
        weights = model.classifier.weights + model.label_head.weights
        ends.append([w.numpy() for w in weights])
        graphs.append([operation.type for operation in graph.get_operations()])
    assert graphs[0] == graphs[1]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_phases_follow_the_recipe():
    recipe = RECIPES["cifar10"]
    flags = {"fine_tune_epochs": 60, "clean_weight": 0.3, "as_run": True}
    options, epochs, learning_rate_at = MetaLabelNetClean.from_recipe(recipe.with_flags(flags))
    assert options == {
        "corrected_from": 44, "warmup_epochs": 88, "fine_tune_from": 164,
        "inner_learning_rate": 1.0, "clean_weight": 0.3,
    }  # fmt: skip
    assert epochs == 224
    rates = [learning_rate_at(epoch) for epoch in (40, 41, 44, 84, 85, 124, 125, 163)]
    np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert [learning_rate_at(epoch) for epoch in (164, 203, 204)] == [1e-2, 1e-2, 1e-3]
    options, epochs, learning_rate_at = MetaLabelNetClean.from_recipe(recipe)
    assert "fine_tune_from" not in options and epochs == 164
    recipe = recipe.with_flags({"warmup_epochs": 0})
    assert "corrected_from" not in MetaLabelNetClean.from_recipe(recipe)[0]


@pytest.mark.parametrize(
    "method, arguments, text",
    [
        (MetaWeightNet, {"hidden_units": 0}, "hidden_units"),
        (MSLG, {"warmup_epochs": -1}, "warmup_epochs"),
        (MSLG, {"warmup_epochs": 1, "label_learning_rate": 0}, "label_learning_rate"),
        (MLNT, {"mentor_epochs": 1, "decay": 1.5}, "decay"),
        (MLNT, {"mentor_epochs": 1, "label_sets": 0}, "label_sets"),
        (MetaLabelNetClean, {"warmup_epochs": 1, "clean_weight": -1}, "clean_weight"),
        (MetaLabelNetClean, {"warmup_epochs": 3, "fine_tune_from": 2}, "fine_tune_from"),
        (MetaLabelNetClean, {"warmup_epochs": 3, "corrected_from": 3}, "corrected_from"),
    ],
)
def test_arguments_out_of_range_are_refused(method, arguments, text):
    with pytest.raises(ArgumentError, match=f"{text}: expected"):
        method(network(), **arguments)

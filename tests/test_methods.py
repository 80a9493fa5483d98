"""What every method must do: learn, run in each of Keras' ways, resume, be saved and served."""

import csv
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mln_keras.data.checks import ArgumentError
from mln_keras.layers import RandomFlipCrop
from mln_keras.methods import METHODS, CrossEntropy

# What a constructor needs besides the classifier. Phases begin within the first three epochs.
ARGUMENTS = {
    "metalabelnet": {"warmup_epochs": 2},
    "co_teaching": {"noise_rate": 0.3, "ramp_epochs": 3},
    "fine_tune": {"warmup_epochs": 2},
    "forward": {"warmup_epochs": 2},
    "gold_loss_correction": {"warmup_epochs": 2},
    "joint_optimization": {"label_epoch": 1, "first_epochs": 2, "averaged_epochs": 2},
    "metalabelnet_clean": {"warmup_epochs": 2, "corrected_from": 1},
    "mlnt": {"mentor_epochs": 1, "delay_epochs": 1, "label_sets": 2, "ramp_up_steps": 3},
    "mslg": {"warmup_epochs": 2, "label_learning_rate": 100.0},
    "pencil": {"stage_2_epoch": 1, "stage_3_epoch": 2},
}
EPOCHS = 4


def but_for(*names):
    """All methods; those that are not named only where tests marked slow are run."""
    return [pytest.param(n, marks=() if n in names else pytest.mark.slow) for n in METHODS]


@pytest.fixture(scope="module", params=but_for("metalabelnet", "cross_entropy"))
def method(request):
    return request.param


most_are_slow = pytest.mark.parametrize(
    "method", but_for("cross_entropy"), indirect=True, scope="module"
)


def network(dropout):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(momentum=0.9),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(dropout, seed=1),  # not from the seeds that kernels start with
            layers.Dense(4),
        ]
    )


def build(method, dropout=0.1, padding=1, **options):
    """A new model of the method, always with the same weights."""
    keras.utils.set_random_seed(0)
    crop = RandomFlipCrop(padding, horizontal_flip=False, vertical_flip=False)
    model = METHODS[method](network(dropout), augmentation=crop, **ARGUMENTS.get(method, {}))
    meta_optimizer = keras.optimizers.Adam(0.005) if model.meta_weights() else None
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        meta_optimizer,
        **({"jit_compile": False} | options),
    )
    return model


def needs_meta(model, epochs=EPOCHS):
    return any(phase.needs_meta and phase.start < epochs for phase in model.phases())


def fit(model, images, epochs=EPOCHS, **options):
    """A short training on 40 images; returns the history's columns."""
    meta = images(16, seed=1) if needs_meta(model, epochs) else None
    return model.fit(
        images(40), meta_data=meta, epochs=epochs, batch_size=8, verbose=0, **options
    ).history


def values(variables):
    return [variable.numpy() for variable in variables]


# ---- one training, as a user would do it --------------------------------------------------------


class Watch(keras.callbacks.Callback):
    """Keeps each epoch's phase, and the classifier's weights before the first and after each."""

    def on_train_begin(self, logs=None):
        self.phases, self.weights = [], [values(self.model.classifier.trainable_variables)]

    def on_epoch_end(self, epoch, logs=None):
        self.phases.append(int(self.model.phase.numpy()))
        self.weights.append(values(self.model.classifier.trainable_variables))


def rate(epoch):
    return 0.02 / (1 + epoch / 10)


@pytest.fixture(scope="module")
def training(method, images, tmp_path_factory):
    """A training with 30 % wrong labels and several callbacks, which stops after 8 of 20 epochs."""
    folder = tmp_path_factory.mktemp(method)
    x, y = images(320)
    wrong = np.random.default_rng(0).random(320) < 0.3
    model, watch = build(method), Watch()
    history = model.fit(
        (x, np.where(wrong, (y + 1) % 4, y)),
        meta_data=images(64, seed=1) if needs_meta(model) else None,
        validation_data=images(120, seed=2),
        batch_size=16,
        epochs=20,
        verbose=2,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                folder / "best.keras", save_best_only=True, monitor="val_accuracy", mode="max"
            ),
            keras.callbacks.EarlyStopping(
                "val_loss", min_delta=100, patience=2, start_from_epoch=5
            ),
            keras.callbacks.LearningRateScheduler(rate),
            keras.callbacks.TensorBoard(folder / "logs"),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.BackupAndRestore(folder / "backup"),
            watch,
        ],
    ).history
    return types.SimpleNamespace(model=model, history=history, watch=watch, folder=folder)


def test_it_learns(training):
    assert training.history["val_accuracy"][-1] > 0.8  # chance is 0.25


def test_every_epoch_trains_every_weight_of_the_classifier(training):
    for before, after in zip(training.watch.weights, training.watch.weights[1:]):
        assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_standard_callbacks_see_the_phases_as_one_training(training, images):
    history, folder = training.history, training.folder
    own = training.model.phase_metrics()
    expected = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", *own}
    assert set(history) == expected and {len(column) for column in history.values()} == {8}
    for name in expected:
        has_it = [
            name not in own or name in training.model.phases()[number - 1].metrics
            for number in training.watch.phases
        ]
        np.testing.assert_array_equal(np.isfinite(history[name]), has_it)
    assert history["learning_rate"] == pytest.approx([rate(epoch) for epoch in range(8)])

    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("epoch") for row in rows] == [str(epoch) for epoch in range(8)]
    for i, row in enumerate(rows):
        assert set(row) == expected
        np.testing.assert_allclose([float(row[n]) for n in row], [history[n][i] for n in row])
    assert list(folder.glob("logs/train/*")) and not (folder / "backup").exists()
    best = keras.models.load_model(folder / "best.keras")
    accuracy = best.evaluate(*images(120, seed=2), verbose=0, return_dict=True)["accuracy"]
    assert accuracy == pytest.approx(max(history["val_accuracy"]))


def test_a_loaded_model_predicts_the_same(training, images, tmp_path):
    training.model.save(tmp_path / "model.keras")
    loaded, (x, _) = keras.models.load_model(tmp_path / "model.keras"), images(40, seed=3)
    assert type(loaded) is type(training.model)
    for name in training.model.config_names:
        assert getattr(loaded, name) == getattr(training.model, name)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), training.model.predict(x, verbose=0)
    )


def test_the_exported_model_serves_what_it_predicts(training, images, tmp_path):
    training.model.export(tmp_path / "saved_model")
    served, (x, _) = tf.saved_model.load(tmp_path / "saved_model"), images(40, seed=3)
    expected = training.model.predict(x, verbose=0)
    assert expected.dtype == np.float32 and expected.shape == (40, 4)
    np.testing.assert_allclose(expected.sum(-1), 1, atol=1e-6)
    for found in (served.serve(x), served.signatures["serving_default"](images=tf.constant(x))):
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)


# ---- ways to run --------------------------------------------------------------------------------


def trained(model, images):
    """Trains a model; it, its predictions, the history and all that training changes."""
    history = fit(model, images)
    return types.SimpleNamespace(
        model=model,
        predicted=model.predict(images(40)[0], verbose=0),
        history=history,
        state=values(model.training_state()),
    )


@pytest.fixture(scope="module")
def single_steps(method, images):
    """A training by TensorFlow, step by step. What it draws at random decides nothing.

    XLA draws other numbers, and a training that starts over goes on drawing.
    """
    return trained(build(method, dropout=1e-9, padding=0), images)


@most_are_slow
def test_steps_in_one_program_by_xla_are_single_steps(method, images, single_steps):
    model = build(method, dropout=1e-9, padding=0, jit_compile=True, steps_per_execution=5)
    found = trained(model, images)
    assert model.loop_length > 1
    if method == "mlnt":  # it draws labels, and XLA draws others
        single_steps = trained(build(method, dropout=1e-9, padding=0, jit_compile=True), images)
    for name, column in single_steps.history.items():
        np.testing.assert_allclose(found.history[name], column, rtol=2e-3, err_msg=name)
    for of_loop, expected in zip(found.state, single_steps.state, strict=True):
        np.testing.assert_allclose(of_loop, expected, rtol=2e-3, atol=2e-3)


@most_are_slow
def test_mixed_bfloat16_by_xla_is_close_to_float32(method, images, single_steps):
    """Max pooling included, of which XLA has no second derivative in bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    found = trained(build(method, dropout=0, padding=0, jit_compile=True), images)
    classifier = found.model.classifier
    assert {layer.compute_dtype for layer in classifier.layers} == {"bfloat16"}
    assert {weight.dtype for weight in classifier.weights} == {"float32"}
    assert found.predicted.dtype == np.float32
    if method == "mslg":  # its labels take steps of 4000, so that rounding turns some of them
        assert np.abs(found.predicted - single_steps.predicted).mean() < 0.1
        return
    np.testing.assert_allclose(found.predicted, single_steps.predicted, atol=0.1)
    np.testing.assert_allclose(found.history["loss"], single_steps.history["loss"], atol=0.05)


def test_a_training_that_starts_over_repeats_itself(images, single_steps):
    model = single_steps.model
    model.start_over()
    again = trained(model, images)
    assert again.history.keys() == single_steps.history.keys()
    for name, column in again.history.items():
        np.testing.assert_array_equal(column, single_steps.history[name], err_msg=name)
    for variable, found, expected in zip(model.training_state(), again.state, single_steps.state):
        if "seed_generator" not in variable.path:  # a random state
            np.testing.assert_array_equal(found, expected, err_msg=variable.path)


@most_are_slow
def test_resuming_is_as_if_it_had_not_stopped(method, images, tmp_path):
    """Dropout, batch norm, augmentation and momentum are in it.

    It stops where the last phase begins and in that phase, or in the middle of the only one.
    """
    unbroken = build(method)
    history = fit(unbroken, images)
    start = unbroken.phases()[-1].start
    stops = [start, start + 1] if start else [EPOCHS // 2]
    first = build(method)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    fit(first, images, stops[-1], callbacks=[checkpoint, backup])

    ways = [(stops[-1], build(method), {"callbacks": [backup]})]
    keras.utils.set_random_seed(99)
    for epoch in stops:
        loaded = keras.models.load_model(tmp_path / f"{epoch}.keras")
        ways.append((epoch, loaded, {"initial_epoch": epoch}))
    for epoch, model, options in ways:
        rest = fit(model, images, **options)
        for name, column in history.items():
            np.testing.assert_array_equal(rest[name], column[epoch:], err_msg=name)
        for found, expected in zip(model.training_state(), unbroken.training_state(), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=expected.path)


# ---- wrong use ----------------------------------------------------------------------------------


def refused(name, call, *arguments, **keywords):
    with pytest.raises(ArgumentError) as error:
        call(*arguments, **keywords)
    assert error.value.name == name and str(error.value).startswith(f"{name}: ")
    assert "\n" not in str(error.value)


def test_wrong_use_is_one_line_before_training(method, images):
    model, (x, y) = build(method), images(40)
    before = values(model.training_state())
    assert type(model).needs_meta == needs_meta(model)
    meta = {"meta_data": images(16, seed=1)} if needs_meta(model) else {}
    options = {"epochs": EPOCHS, "batch_size": 8, "verbose": 0}
    useless_or_missing = {} if meta else {"meta_data": (x, y)}
    refused("meta_data", model.fit, (x, y), **useless_or_missing, **options)
    if all(phase.samples != "all" for phase in model.phases()):
        refused("unlabeled_data", model.fit, (x, y), unlabeled_data=x, **meta, **options)
    refused("x", model.fit, (x, y + 1), **meta, **options)
    refused("validation_data", model.fit, (x, y), validation_data=(x, y + 1), **meta, **options)
    for found, expected in zip(model.training_state(), before, strict=True):
        np.testing.assert_array_equal(found, expected)

    optimizer, scaled = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, loss_scale_factor=8)
    refused("meta_optimizer", model.compile, optimizer, optimizer)
    refused("optimizer", model.compile, scaled)
    refused("optimizer", model.compile, keras.optimizers.LossScaleOptimizer(optimizer))
    refused("meta_optimizer", model.compile, optimizer, scaled)
    options = ARGUMENTS.get(method, {})
    refused("weight_decay", METHODS[method], network(0), weight_decay=-1, **options)
    refused("classifier", METHODS[method], layers.Dense(4), **options)


# ---- cross-entropy ------------------------------------------------------------------------------


def test_cross_entropy_is_the_warm_up_of_metalabelnet(images):
    ends = []
    for method in ("metalabelnet", "cross_entropy"):
        model = build(method)
        fit(model, images, epochs=2)
        ends.append(values(model.classifier.weights + model.optimizer.variables))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_loss_is_a_subclass_of_cross_entropy(images):
    """Of samples with a label."""

    class Margin(CrossEntropy):
        def sample_losses(self, labels, logits):
            assert labels.shape == (8,) and labels.dtype == "int32"
            return tf.cast(labels + 1, logits.dtype) * tf.reduce_mean(logits, -1) ** 2

    (x, y), net = images(16), network(0)
    model = Margin(net, weight_decay=0)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    y = np.where(np.arange(16) < 8, y, -1)
    history = model.fit((x, y), epochs=1, batch_size=8, verbose=0).history
    logits = net(x[:8].astype("float32"), training=True)
    expected = np.mean((y[:8] + 1) * np.mean(logits, -1) ** 2)
    assert history["loss"] == pytest.approx([expected], rel=1e-4)

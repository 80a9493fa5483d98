"""Methods that train twice, or on the clean samples: what they learn from, and in which order."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_equations import NumpyTraining

from mln_keras.command.recipes import RECIPES
from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles
from mln_keras.data.noise import uniform
from mln_keras.methods import CrossEntropy, FineTune, Forward, GoldLossCorrection, MetaOnly
from mln_keras.methods.forward import count_transitions, count_transitions_as_run

NUM_CLASSES = 4


def network(channels=1):
    keras.utils.set_random_seed(3)  # the same weights each time
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(6),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )


def compiled(method, *arguments, channels=1, **options):
    model = method(network(channels), *arguments, **options)
    model.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    return model


def assert_same_weights(model, other):
    for found, expected in zip(model.classifier.weights, other.classifier.weights, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=found.path)


def predictions_after_warmup(data, epochs, images, **options):
    """What a classifier trained with cross-entropy says of images, float32 (N, C)."""
    model = compiled(CrossEntropy, **options)
    model.fit(data, epochs=epochs, batch_size=8, verbose=0)
    return model.predict(images, verbose=0)


# ---- T ------------------------------------------------------------------------------------------


def rows_by_sorting(p, percentile):
    ranked = np.argsort(p, axis=0)[int(percentile / 100 * (len(p) - 1))]
    return np.array([p[i] for i in ranked])


@pytest.mark.parametrize("percentile", [50, 100])
def test_forward_reads_T_off_its_own_predictions_for_all_labeled_samples(images, percentile):
    """Those that fill no batch too."""
    (x, y), (other, _) = images(43), images(20, seed=1)
    p = predictions_after_warmup((x, y), 2, x)
    mixed = np.concatenate([other, x]), np.concatenate([np.full(20, -1), y])
    model = compiled(Forward, 2, percentile=percentile)
    model.fit(mixed, epochs=3, batch_size=8, verbose=0)
    np.testing.assert_allclose(model.transition, rows_by_sorting(p, percentile), atol=1e-6)


def test_forward_estimates_T_from_files_and_data_sets(images, tmp_path):
    x, y = images(21)
    x, paths = np.repeat(x, 3, axis=-1), [str(tmp_path / f"{i}.png") for i in range(21)]
    for image, path in zip(x, paths):
        tf.io.write_file(path, tf.io.encode_png(image))
    p = predictions_after_warmup((x, y), 1, x, channels=3)
    model = compiled(Forward, 1, channels=3)
    model.fit((ImageFiles(paths, (8, 8)), y), epochs=2, batch_size=8, verbose=0)
    np.testing.assert_allclose(model.transition, rows_by_sorting(p, 97), atol=1e-6)

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    p = predictions_after_warmup(dataset, 1, x, channels=3)
    model = compiled(Forward, 1, channels=3)
    model.fit(dataset, epochs=2, verbose=0)
    np.testing.assert_allclose(model.transition, rows_by_sorting(p, 97), atol=1e-6)


@pytest.mark.parametrize("as_dataset", [False, True])
def test_gold_loss_correction_averages_its_predictions_for_all_clean_samples(images, as_dataset):
    (x, y), (x_meta, y_meta) = images(40), images(27, seed=1)
    y[:10] = -1
    x_meta, y_meta = x_meta[y_meta != 2], y_meta[y_meta != 2]
    data, meta = (x, y), (x_meta, y_meta)
    if as_dataset:
        data = x[10:], y[10:]
        data, meta = (tf.data.Dataset.from_tensor_slices(both).batch(8) for both in (data, meta))
    p = predictions_after_warmup(data, 2, x_meta)
    model = compiled(GoldLossCorrection, 2)
    model.fit(data, meta_data=meta, epochs=3, batch_size=8, verbose=0)
    expected = [p[y_meta == c].mean(0) if c != 2 else np.eye(4)[2] for c in range(NUM_CLASSES)]
    np.testing.assert_allclose(model.transition, expected, atol=1e-6)
    assert float(model.clean_share) == pytest.approx(len(y_meta) / (len(y_meta) + 30))


def test_images_held_on_the_gpu_are_read_as_others_are(images, monkeypatch):
    """A CPU stands for the GPU."""
    x, y = images(43)
    plain = compiled(Forward, 1)
    plain.fit(x, y, epochs=2, batch_size=8, verbose=0)
    held = Forward(network(), 1)
    held.compile(keras.optimizers.Adam(0.02), jit_compile=True)
    list_devices = tf.config.list_logical_devices
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: list_devices("CPU"))
    held.fit(x, y, epochs=2, batch_size=8, verbose=0)
    np.testing.assert_allclose(held.transition, plain.transition, atol=1e-4)


def test_counted_transitions():
    true, given = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 2, 1]
    expected = [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(count_transitions(true, given, 3), expected)
    # As run: once a pair in 32, and column j is divided by the sum of row j.
    true, given = true * 6, given * 6
    np.testing.assert_allclose(
        count_transitions_as_run(true, given, 3), [[0.5, 0.5, 0], [0, 0.5, 2], [0, 0, 0]]
    )
    for count in (count_transitions, count_transitions_as_run):
        with pytest.raises(ArgumentError, match="^given_labels: "):
            count([0, 1], [0, -1], 2)


def test_transitions_as_run_for_table_1():
    labels = np.random.default_rng(0).permutation(np.arange(50000) % 10)
    for ratio, diagonal in ((0.4, 0.42), (0.8, 0.17)):
        counted = count_transitions_as_run(labels, uniform(labels, ratio, 10, seed=0), 10)
        assert counted.diagonal().mean() == pytest.approx(diagonal, abs=0.01)


# ---- the second training ------------------------------------------------------------------------


def test_forward_trains_anew_from_the_same_start(images, tmp_path):
    """As if T had been given: weights, batch norm and the optimizer's state are the first ones."""
    x, y = images(40)
    estimated = compiled(Forward, 2)
    losses = estimated.fit(x, y, epochs=4, batch_size=8, verbose=0).history["loss"]
    given = compiled(Forward, transition=estimated.transition)
    assert len(given.phases()) == 1
    options = {"initial_epoch": 2, "batch_size": 8, "verbose": 0}
    assert given.fit(x, y, epochs=3, **options).history["loss"] == losses[2:3]
    given.save(tmp_path / "model.keras")
    given = keras.models.load_model(tmp_path / "model.keras")
    assert given.fit(x, y, epochs=4, **options | {"initial_epoch": 3}).history["loss"] == losses[3:]
    assert_same_weights(given, estimated)

    plain = compiled(CrossEntropy)
    assert plain.fit(x, y, epochs=2, batch_size=8, verbose=0).history["loss"] == losses[:2]


def test_two_updates_of_gold_loss_correction_equal_numpy(float64):
    rng = np.random.default_rng(0)
    x, x_meta = rng.normal(size=(2, 5, 4)), rng.normal(size=(3, 5, 4))
    y, y_meta = (rng.integers(0, 3, (n, 5)).astype(np.int32) for n in (2, 3))
    classifier = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(NumpyTraining.L2)),
        ]
    )
    model = GoldLossCorrection(classifier, 1, weight_decay=0.05)
    n, batch_norm = NumpyTraining, classifier.layers[1]
    model.compile(keras.optimizers.SGD(n.λ, momentum=n.MOMENTUM), jit_compile=False)

    def reference():
        θ = [w.numpy() for w in classifier.trainable_variables]
        statistics = [w.numpy() for w in batch_norm.non_trainable_variables]
        return NumpyTraining(θ, [], statistics, {"weight_decay": 0.05})

    first, second = reference(), reference()
    for batch in zip(x, y):
        first.warmup_step(*batch)
    first.freeze()
    clean = x_meta.reshape(15, 4)
    p = np.exp(first.log_softmax(first.features(clean) @ first.θ[4] + first.θ[5]))
    T = np.array([p[y_meta.ravel() == c].mean(0) for c in range(3)])
    share = 15 / 25

    def loss(θ, batch, clean_batch):
        rows, (a, labels), (b, clean_labels) = np.arange(5), batch, clean_batch
        noisy = np.exp(second.log_softmax(second.net(θ, a))) @ T
        right = second.log_softmax(second.net(θ, b))
        return (
            -(1 - share) * np.log(noisy[rows, labels]).mean()
            - share * right[rows, clean_labels].mean()
            + second.regularization(θ)
        )

    # Meta batches go on across the epochs: the second one begins with the third of them.
    for both in zip(zip(x, y), zip(x_meta[[2, 0]], y_meta[[2, 0]])):
        for images, _ in both:
            second.net(second.θ, images, keep=True)
        second.descend(functools.partial(loss, batch=both[0], clean_batch=both[1]))

    noisy = tf.data.Dataset.from_tensor_slices((x, y))
    meta = tf.data.Dataset.from_tensor_slices((x_meta, y_meta))
    model.fit(noisy, meta_data=meta, epochs=2, verbose=0)
    np.testing.assert_allclose(model.transition, T, rtol=1e-9)
    for w, expected in zip(classifier.trainable_variables, second.θ, strict=True):
        np.testing.assert_allclose(w, expected, rtol=1e-8, atol=1e-9, err_msg=w.path)
    found = [w.numpy() for w in batch_norm.non_trainable_variables]
    np.testing.assert_allclose(found, [second.mean, second.variance], rtol=1e-9)


# ---- the clean samples --------------------------------------------------------------------------


def test_meta_only_learns_from_the_clean_samples_alone(images):
    (x, y), meta = images(128), tf.data.Dataset.from_tensors(images(12, seed=1))
    ends = [compiled(method) for method in (MetaOnly, MetaOnly, CrossEntropy)]
    ends[0].fit((x, y), meta_data=meta, epochs=3, verbose=0)
    ends[1].fit((255 - x, 3 - y), meta_data=meta, epochs=3, verbose=0)
    ends[2].fit(meta, epochs=3, verbose=0)
    assert_same_weights(ends[0], ends[2])
    assert_same_weights(ends[1], ends[2])


def test_fine_tuning_goes_on_with_the_clean_samples(images):
    (x, y), meta = images(40), tf.data.Dataset.from_tensors(images(12, seed=1))
    model, other = compiled(FineTune, 2), compiled(CrossEntropy)
    model.fit((x, y), meta_data=meta, epochs=5, batch_size=8, verbose=0)
    other.fit((x, y), epochs=2, batch_size=8, verbose=0)
    other.fit(meta, epochs=5, initial_epoch=2, verbose=0)
    assert_same_weights(model, other)


@keras.saving.register_keras_serializable("test")
class Record(keras.layers.Layer):
    """An augmentation that keeps the first pixels of the images that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, images, training=False):
        self.seen.append(images[:, 0, 0, 0].numpy().tolist())
        return images


@pytest.mark.parametrize(
    "method, arguments", [(MetaOnly, ()), (FineTune, (0,)), (GoldLossCorrection, (1,))]
)
def test_clean_images_are_augmented_and_where_they_are_all_drawn_anew(images, method, arguments):
    (x, y), (x_meta, y_meta) = images(40), images(12, seed=1)
    x[:, 0, 0], x_meta[:, 0, 0, 0] = 0, np.arange(1, 13)
    record = Record()
    model = method(network(), *arguments, augmentation=record, shuffle_meta=False)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    data = {"meta_data": (x_meta, y_meta), "batch_size": 4, "verbose": 0}
    model.fit((x, y), epochs=2, **data)
    seen = [pixels for pixels in record.seen if any(pixels)]
    if method is GoldLossCorrection:  # its clean batches are the other batches' companions
        batches = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
        assert seen == [batches[(10 + i) % 3] for i in range(10)]
        return
    epochs = sum(seen[:3], []), sum(seen[3:], [])
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 13))


def unknown_length(data):
    return tf.data.Dataset.from_tensor_slices(data).batch(4).filter(lambda *_: True)


@pytest.mark.parametrize(
    "name, method, arguments",
    [
        ("x", Forward, (1,)),
        ("x", GoldLossCorrection, (1,)),
        ("meta_data", GoldLossCorrection, (1,)),
        ("meta_data", FineTune, (1,)),
        ("meta_data", MetaOnly, ()),
    ],
)
@pytest.mark.parametrize("make", [unknown_length, lambda data: unknown_length(data).repeat()])
def test_what_is_gone_over_as_a_whole_has_an_end(images, name, method, arguments, make):
    x, meta = images(12), images(12, seed=1)
    x, meta = (make(x), meta) if name == "x" else (x, make(meta))
    model = compiled(method, *arguments)
    data = {"meta_data": meta} if method is not Forward else {}
    if name == "x":
        data["steps_per_epoch"] = 2
    with pytest.raises(ArgumentError, match=f"^{name}: expected .* of known length, [^\n]*$"):
        model.fit(x, epochs=2, batch_size=4, verbose=0, **data)
    assert_same_weights(model, compiled(method, *arguments))


def test_the_steps_of_an_endless_x_are_not_those_of_the_clean_samples(images):
    x, meta = tf.data.Dataset.from_tensor_slices(images(12)).batch(4).repeat(), images(12, seed=1)
    model = compiled(FineTune, 1)
    model.fit(x, meta_data=meta, steps_per_epoch=2, epochs=3, batch_size=4, verbose=0)
    assert model.optimizer.iterations.numpy() == 2 + 3 + 3


def test_a_damaged_clean_file_is_one_line(images, tmp_path):
    (x, y), path = images(12), tmp_path / "damaged.png"
    path.write_bytes(b"no image")
    meta = ImageFiles([path] * 4, (8, 8))
    meta.nbytes = 2**40  # as if they were too many to keep
    model = compiled(GoldLossCorrection, 1, channels=3)
    with pytest.raises(ValueError, match="^1 of 4 image files cannot be read, [^\n]*$"):
        model.fit(
            np.repeat(x, 3, -1), y, meta_data=(meta, np.arange(4)), epochs=2, batch_size=4,
            verbose=0,
        )  # fmt: skip


# ---- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Forward, GoldLossCorrection])
def test_the_second_training_has_all_of_the_recipe(method):
    recipe = RECIPES["cifar10"]
    options, epochs, rate = method.from_recipe(recipe)
    assert options == {"warmup_epochs": 44} and epochs == 44 + 120
    assert [rate(e) for e in range(44)] == [recipe.learning_rate_at(e) for e in range(44)]
    assert [rate(e) for e in range(44, 164)] == [recipe.learning_rate_at(e) for e in range(120)]


def test_the_recipe_of_fine_tuning():
    options, epochs, rate = FineTune.from_recipe(RECIPES["cifar10"])
    assert options == {"warmup_epochs": 44} and epochs == 44 + 60
    expected = [1e-2] * 41 + [1e-3] * 3 + [1e-2] * 40 + [1e-3] * 20
    assert [rate(e) for e in range(epochs)] == pytest.approx(expected)


def test_meta_only_has_as_many_steps_whatever_the_size_of_the_meta_set():
    _, epochs, rate = MetaOnly.from_recipe(RECIPES["cifar10"])
    expected = [1e-2] * 40 + [1e-3] * 60 + [1e-4] * 20
    assert [rate(e) for e in range(epochs)] == pytest.approx(expected)
    for meta_size in (200, 1000, 14000):
        recipe = RECIPES["cifar10"].with_flags({"meta_size": meta_size})
        _, epochs, rate = MetaOnly.from_recipe(recipe)
        steps = meta_size // 128
        assert 0 <= epochs * steps - 120 * 39 < steps
        drops = [e for e in range(1, epochs) if rate(e) < rate(e - 1)]
        assert drops == pytest.approx([epochs / 3, epochs * 5 / 6], abs=1)


def test_the_warm_up_takes_an_epoch_at_least():
    with pytest.raises(ArgumentError, match="^warmup_epochs: expected .* received 0$"):
        GoldLossCorrection(network(), 0)

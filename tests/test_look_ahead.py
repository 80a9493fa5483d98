"""What `fit` finds out before it trains, what it keeps from fit to fit, and how to start over."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mln_keras import MetaLabelNet
from mln_keras.data.checks import ArgumentError
from mln_keras.methods import CrossEntropy
from mln_keras.training import programs


def network(*extra):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(3, 3),
            *extra,
            layers.Flatten(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(4),
        ]
    )


def compiled(classifier, warmup_epochs=1, meta_optimizer=None, optimizer=None, cls=MetaLabelNet):
    model = cls(classifier, warmup_epochs)
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9), meta_optimizer, jit_compile=False
    )
    return model


def fit(model, images, epochs=2, meta=None, **more):
    meta = images(16, seed=1) if meta is None else meta
    return model.fit(images(32), meta_data=meta, epochs=epochs, batch_size=8, verbose=0, **more)


def values(model):
    return [v.numpy() for v in model.training_state()]


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (layers.Resizing(4, 4, name="culprit"), "ResizeBilinearGrad"),
        (layers.UpSampling2D(2, interpolation="bilinear", name="culprit"), "ResizeBilinearGrad"),
        (layers.Resizing(4, 4, interpolation="bicubic", name="culprit"), "ResizeBicubicGrad"),
        (layers.Activation("softsign", name="culprit"), "SoftsignGrad"),
    ],
)
def test_a_layer_without_second_derivative_is_refused_by_name(images, layer, operation):
    model = compiled(network(layer))
    before = values(model)
    with pytest.raises(ValueError, match="^classifier: layer 'culprit' cannot be") as error:
        fit(model, images)
    assert operation in str(error.value) and "\n" not in str(error.value)
    np.testing.assert_equal(values(model), before)


def test_without_a_meta_gradient_the_layer_is_taken(images):
    """In a warm-up, and by another method."""
    resize = layers.Resizing(4, 4)
    compiled(network(resize)).fit(images(32), batch_size=8, verbose=0)
    model = CrossEntropy(network(resize))
    model.compile("sgd", jit_compile=False)
    model.fit(images(32), batch_size=8, verbose=0)


def test_a_resize_before_the_layers_that_train_is_taken(images):
    classifier = network()
    resized = keras.Sequential([keras.Input((8, 8, 1)), layers.Resizing(8, 8), classifier])
    assert len(fit(compiled(resized), images).epoch) == 2


class Position(layers.Layer):
    """Adds a learned row to each sample, taken by `gather` or by a product that is the same."""

    def __init__(self, gathers):
        super().__init__()
        self.gathers = gathers

    def build(self, shape):
        self.table = self.add_weight(shape=(5, shape[-1]), initializer="ones")

    def call(self, x):
        rows = tf.cast(tf.abs(x[:, 0]) * 4, tf.int32) % 5
        if self.gathers:
            return x + tf.gather(tf.convert_to_tensor(self.table), rows)
        return x + tf.one_hot(rows, 5) @ self.table


def test_a_gathered_weight_has_a_meta_gradient(images):
    ends = []
    for gathers in (True, False):
        keras.utils.set_random_seed(0)
        classifier = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Rescaling(1 / 255),
                layers.Flatten(),
                Position(gathers),
                layers.Dense(4),
            ]
        )
        model = compiled(classifier, warmup_epochs=0)
        fit(model, images)
        ends.append([w.numpy() for w in model.weights])
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_wrong_label_in_a_clean_data_set_is_found_before_the_first_step(images):
    x, y = images(16, seed=1)
    y[11] = 4
    meta = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True)
    model = compiled(network(), warmup_epochs=2)
    with pytest.raises(ValueError, match=r"^meta_data: expected labels in \[0, 4\)"):
        fit(model, images, epochs=3, meta=meta)
    assert model.optimizer.iterations.numpy() == 0


@keras.saving.register_keras_serializable("test_look_ahead")
class Broken(MetaLabelNet):
    def classification_loss(self, logits, soft_label_logits):
        raise TypeError("\x1b[1mtwo lines\x1b[0m\nof a reason")


def test_what_phase_2_cannot_do_is_known_before_the_warm_up(images):
    model = compiled(network(), cls=Broken)
    before = values(model)
    message = r"^classifier: phase 2 cannot train it \(TypeError: two lines of a reason\)$"
    with pytest.raises(ArgumentError, match=message):
        fit(model, images)
    np.testing.assert_equal(values(model), before)


@keras.saving.register_keras_serializable("test_look_ahead")
class Large(MetaLabelNet):
    """Phase 2 takes 128 TiB."""

    def classification_loss(self, logits, soft_label_logits):
        return super().classification_loss(logits, soft_label_logits) + tf.reduce_sum(
            tf.random.uniform((2**45,))
        )


def test_that_phase_2_has_too_little_memory_is_known_before_the_warm_up(images):
    model = compiled(network(), cls=Large)
    with pytest.raises(MemoryError, match=r"^a smaller batch_size needs less memory \(.*OOM"):
        fit(model, images)


def test_trying_phase_2_leaves_no_trace(images, monkeypatch):
    ends = []
    for tried in (True, False):
        if not tried:
            monkeypatch.setattr(programs, "try_program", lambda *args: None)
        keras.utils.set_random_seed(0)
        model = compiled(network(layers.BatchNormalization(), layers.Dropout(0.2)))
        history = fit(model, images, epochs=3).history
        ends.append((values(model), {n: np.array(v) for n, v in history.items()}))
    np.testing.assert_equal(ends[0], ends[1])


def test_a_second_fit_that_leaves_epochs_out_says_so_and_how_to_start_over(images):
    model = compiled(network(layers.Dropout(0.2)))
    keras.utils.set_random_seed(3)
    first = fit(model, images, epochs=3).history
    with pytest.warns(UserWarning, match=r"in phase 2, so the 1 epochs.*start_over\(\)") as caught:
        fit(model, images, epochs=4)
    assert caught[0].filename == __file__
    model.start_over()
    assert model.phase == 1 and model.optimizer.iterations.numpy() == 0
    keras.utils.set_random_seed(3)
    again = fit(model, images, epochs=3).history
    assert again["accuracy"][0] == pytest.approx(first["accuracy"][0], abs=0.2)
    assert np.isnan(again["meta_loss"][0]) and not np.isnan(again["meta_loss"][1])


@pytest.mark.parametrize("optimizer", ["adagrad", "nadam"])
def test_an_optimizer_starts_over_from_its_own_first_state(images, optimizer):
    """It is not zero everywhere; the shared test of all methods has the paper's optimizers."""
    model = compiled(network(), meta_optimizer=optimizer, optimizer=optimizer)
    first = fit(model, images, epochs=3).history
    model.start_over()
    again = fit(model, images, epochs=3).history
    for name, values_of in first.items():
        np.testing.assert_array_equal(values_of, again[name])


def test_a_loaded_model_does_not_start_over(images, tmp_path):
    model = compiled(network())
    fit(model, images)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="^start_over: a loaded model has no first weights"):
        keras.models.load_model(tmp_path / "model.keras").start_over()


def test_what_was_traced_is_kept_until_it_changes(images, monkeypatch):
    traces, step = [], MetaLabelNet._phase_2_step
    monkeypatch.setattr(
        MetaLabelNet, "_phase_2_step", lambda *args: traces.append(args) or step(*args)
    )
    model = compiled(network(), optimizer=keras.optimizers.SGD(0.1))
    fit(model, images, epochs=2)
    first = len(traces)
    fit(model, images, epochs=4, initial_epoch=2)
    assert len(traces) == first
    kernels = [w for w in model.classifier.weights if w.name == "kernel"]
    before = [kernel.numpy() for kernel in kernels]
    model.weight_decay = 10.0  # a step takes all of a weight away
    fit(model, images, epochs=5, initial_epoch=4)
    for kernel, old in zip(kernels, before, strict=True):
        assert np.linalg.norm(kernel) < 0.2 * np.linalg.norm(old)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("train_on_batch", lambda m, x, y: m.train_on_batch(x, y)),
        ("test_on_batch", lambda m, x, y: m.test_on_batch(x, y)),
        ("filepath", lambda m, x, y: m.save("a.h5")),
        ("format", lambda m, x, y: m.export("a", format="onnx")),
        ("class_weight", lambda m, x, y: m.fit(x, y, class_weight={0: 2})),
        ("validation_split", lambda m, x, y: m.fit(x, y, validation_split=0.1)),
        ("sample_weight", lambda m, x, y: m.fit(x, y, sample_weight=y)),
        ("epoch", lambda m, x, y: m.fit(x, y, epoch=3)),
        ("sample_weight", lambda m, x, y: m.evaluate(x, y, sample_weight=y)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(images, name, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = compiled(network())
    with pytest.raises(ValueError) as error:
        call(model, *images(8))
    assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_arguments_that_are_none_pass(images):
    model = compiled(network())
    model.fit(*images(8), class_weight=None, batch_size=8, verbose=0)
    model.evaluate(*images(8), sample_weight=None, verbose=0)


def test_means_of_both_optimizers_end_up_in_the_weights(images):
    """Means with a momentum of 1 stay at what the first step made."""
    ends = []
    for options, epochs in (({}, 1), ({"use_ema": True, "ema_momentum": 1.0}, 2)):
        keras.utils.set_random_seed(0)
        one, another = (keras.optimizers.SGD(0.1, **options) for _ in range(2))
        model = compiled(network(), 0, meta_optimizer=one, optimizer=another)
        model.fit(images(8), meta_data=images(8, seed=1), batch_size=8, epochs=epochs, verbose=0)
        ends.append([w.numpy() for w in model.classifier.weights + model.label_head.weights])
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_gradients_left_over_from_the_warm_up_are_forgotten(images):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    model = compiled(network(), optimizer=optimizer)
    model.fit(images(32), epochs=1, batch_size=8, verbose=0)
    left_over = [v for v in optimizer.variables if "accumul" in v.path]
    assert left_over and any(np.abs(v.numpy()).max() > 0 for v in left_over)
    model.begin_phase(2)
    assert all(np.abs(v.numpy()).max() == 0 for v in left_over)

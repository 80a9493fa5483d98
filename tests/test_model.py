"""MetaLabelNet as a Keras model: what it accepts, how it runs, what it never looks at."""

import dataclasses
import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mln_keras import MetaLabelNet
from mln_keras import layers as mln_layers
from mln_keras.data import batches, checks
from mln_keras.data.checks import ArgumentError
from mln_keras.methods import CrossEntropy
from mln_keras.training.classifier import twice_differentiable_max_pooling
from mln_keras.training.phases import Phase, plan


def dense_net(num_classes=4, extra=()):
    """Rescaling-Flatten-Dense-(extra)-ReLU-Dense, on 8×8 images."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(16),
            *extra,
            layers.ReLU(),
            layers.Dense(num_classes),
        ]
    )


def conv_net(extra=()):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3),
            *extra,
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(16, activation="tanh"),
            layers.Dense(4),
        ]
    )


def compiled(classifier, warmup_epochs=1, compile_options=None, model=MetaLabelNet, **options):
    model = model(classifier, warmup_epochs, **options)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.optimizers.Adam(0.01),
        **({"jit_compile": False} | (compile_options or {})),
    )
    return model


def fitted(classifier, images, epochs=2, labels=None, meta_seed=1, **options):
    model = compiled(classifier, **options)
    x, y = images(40)
    meta = images(16, seed=meta_seed)
    model.fit(
        (x, y if labels is None else labels), meta_data=meta, epochs=epochs, batch_size=8, verbose=0
    )
    return model


def batched(arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(8)


def values(weights):
    return [w.numpy() for w in weights]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what it learns from ------------------------------------------------------------------------


def test_it_learns_to_correct_labels(images):
    x, y = images(400)
    noisy = np.where(np.random.default_rng(0).random(400) < 0.4, (y + 1) % 4, y)
    model = compiled(conv_net(), warmup_epochs=3)
    test = images(100, seed=3)
    history = model.fit(
        (x, noisy), meta_data=images(64, seed=1), batch_size=32, epochs=15, verbose=0,
        validation_data=test,
    ).history  # fmt: skip
    assert history["val_accuracy"][-1] > 0.95
    assert history["meta_loss"][-1] < 0.5 * history["meta_loss"][3]
    corrected = model.soft_labels(x).argmax(-1)
    assert (corrected == y).mean() > 0.95 > (noisy == y).mean() + 0.2


def test_phase_2_does_not_see_the_given_labels(images):
    """Permuting them after warm-up changes nothing, bit for bit, but the agreement with them."""
    x, y = images(40)
    ends = []
    for labels in (y, np.random.default_rng(5).permutation(y)):
        keras.utils.set_random_seed(0)
        model = compiled(conv_net([layers.BatchNormalization(), layers.Dropout(0.2)]))
        model.fit((x, y), epochs=1, batch_size=8, verbose=0)
        history = model.fit(
            (x, labels), meta_data=images(16, seed=1), initial_epoch=1, epochs=3, batch_size=8,
            verbose=0,
        )  # fmt: skip
        ends.append((values(model.weights), history.history))
    assert_same(ends[0][0], ends[1][0])
    (_, first), (_, second) = ends
    assert first["meta_loss"] == second["meta_loss"] and first["loss"] == second["loss"]
    assert first["soft_label_agreement"] != second["soft_label_agreement"]


def test_warmup_does_not_see_the_meta_set(images):
    ends = []

    class AtTheSwitch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                ends.append(values(self.model.classifier.weights + self.model.optimizer.variables))

    for seed in (1, 2):
        keras.utils.set_random_seed(0)
        model = compiled(conv_net(), warmup_epochs=2)
        model.fit(
            images(40), meta_data=images(16, seed=seed), epochs=3, batch_size=8, verbose=0,
            callbacks=[AtTheSwitch()],
        )  # fmt: skip
    assert_same(*ends)


def test_the_extractor_is_the_warmed_up_classifier_and_stays(images):
    model = compiled(conv_net([layers.BatchNormalization()]))
    x, y = images(40)
    model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    warmed_up = values(model.classifier.weights)
    last_layer_input = keras.Model(
        model.classifier.inputs[0], model.classifier.layers[-1].input
    )
    features = last_layer_input(x.astype("float32"), training=False).numpy()
    model.fit(
        (x, y), meta_data=images(16, seed=1), initial_epoch=1, epochs=4, batch_size=8, verbose=0
    )
    wanted = "epochs: expected more than 1, as this model is in phase 2, received 1"
    with pytest.raises(ArgumentError, match=f"^{wanted}$"):
        model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    assert_same(values(model.frozen_weights), warmed_up)
    assert any((a != b).any() for a, b in zip(values(model.classifier.weights), warmed_up))
    head = keras.ops.softmax(model.label_head(features)).numpy()
    np.testing.assert_allclose(model.soft_labels(x), head, atol=1e-6)


def test_label_head_can_start_from_the_classifier(images):
    model = compiled(dense_net(), label_head_init="classifier")
    model.fit(images(40), epochs=1, batch_size=8, verbose=0)
    model.begin_phase(2)
    assert_same(values(model.label_head.weights), values(model.classifier.layers[-1].weights))
    x, _ = images(8)
    np.testing.assert_allclose(model.soft_labels(x), model.predict(x, verbose=0), atol=1e-6)


def test_unlabeled_samples_train_phase_2_only(images):
    x, y = images(40)
    labels = np.where(np.arange(40) < 24, y, -1)
    seen = {"warm-up": [], "phase 2": []}

    class Spy(layers.Layer):
        def call(self, images, training=False):
            name = "warm-up" if int(model.phase.numpy()) == 1 else "phase 2"
            seen[name] += [images.numpy()]
            return images

    model = compiled(
        dense_net(), augmentation=Spy(), compile_options={"run_eagerly": True}, warmup_epochs=2
    )
    model.fit((x, labels), meta_data=images(16, seed=1), epochs=3, batch_size=8, verbose=0)
    rows = {name: np.concatenate(parts).reshape(-1, 64) for name, parts in seen.items()}
    assert all(len(batch) == 8 for parts in seen.values() for batch in parts)
    labeled = {row.tobytes() for row in x[:24].reshape(-1, 64)}
    assert {row.tobytes() for row in rows["warm-up"]} == labeled and len(rows["warm-up"]) == 48
    assert {row.tobytes() for row in rows["phase 2"]} == {r.tobytes() for r in x.reshape(-1, 64)}


@keras.saving.register_keras_serializable("test_model")
def more_where_bright(features, given_labels):
    return tf.where(features[:, 0] > 0, 0.75, 0.25)


@pytest.mark.parametrize("weight", [0.4, more_where_bright])
def test_soft_labels_take_in_the_given_ones(images, tmp_path, weight):
    x, y = images(16)
    y[:4] = -1
    model = compiled(dense_net(), given_label_weight=weight)
    model.fit(x, np.maximum(y, 0), meta_data=images(8, seed=1), epochs=2, batch_size=8, verbose=0)
    head, mixed = model.soft_labels(x), model.soft_labels(x, given_labels=y, batch_size=5)
    a = 0.4
    if callable(weight):
        a = np.array(weight(model._extract_features(x), y))[:, None]
    expected = a * np.eye(head.shape[1])[y] + (1 - a) * head
    np.testing.assert_allclose(mixed[4:], expected[4:], atol=1e-6)
    np.testing.assert_allclose(mixed[:4], head[:4], atol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.soft_labels(x, given_labels=y, batch_size=5), mixed)


@pytest.mark.parametrize("as_dataset", [False, True])
def test_unlabeled_data_as_an_argument(images, as_dataset):
    (x, y), (more, _) = images(24), images(16, seed=4)
    meta = images(8, seed=1)
    if as_dataset:
        data = dict(
            x=batched((x, y.astype(np.uint8))), unlabeled_data=batched(more),
            meta_data=batched(meta),
        )  # fmt: skip
        steps = 3 + 2
    else:
        data, steps = dict(x=x, y=y, unlabeled_data=more, meta_data=meta), 5
    model = compiled(dense_net())
    model.fit(**data, epochs=1 + 1, batch_size=8, verbose=0)
    assert model.optimizer.iterations.numpy() == 3 + steps
    assert model.meta_optimizer.iterations.numpy() == steps


def test_phase_2_needs_no_label_at_all(images):
    x, y = images(40)
    meta = images(16, seed=1)
    model = compiled(dense_net())
    model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    ends = []
    for labels in (np.full(40, -1), y):
        later = keras.models.clone_model(model.classifier)
        later.set_weights(model.classifier.get_weights())
        keras.utils.set_random_seed(0)
        phase_2 = compiled(later)
        phase_2.fit(
            (x, labels), meta_data=meta, initial_epoch=1, epochs=3, batch_size=8, verbose=0
        )
        ends.append(values(phase_2.weights))
    assert_same(*ends)


def meta_images_seen(model, monkeypatch):
    """The list to which a model run eagerly will add its meta batches."""
    logits_at, seen = model.logits_at, []

    def spy(θ_hat, images, moves_batch_norm):
        seen.append(images.numpy())
        return logits_at(θ_hat, images, moves_batch_norm)

    monkeypatch.setattr(model, "logits_at", spy)
    return seen


def test_meta_batches_come_in_order_and_on_across_epochs(images, monkeypatch):
    x, _ = data = images(16)
    meta = images(42, seed=1)
    model = compiled(dense_net(), shuffle_meta=False, compile_options={"run_eagerly": True})
    seen = meta_images_seen(model, monkeypatch)
    model.fit(data, meta_data=meta, epochs=6, batch_size=8, verbose=0)
    begin = 2  # of five meta batches; warm-up took two steps
    for i, batch in enumerate(seen):
        at = (begin + i) % 5 * 8
        np.testing.assert_array_equal(batch, meta[0][at : at + 8])
    assert len(seen) == 10


def test_meta_batches_of_arrays_sorted_by_class_are_mixed_and_leave_nothing_out(
    images, monkeypatch
):
    x, y = images(42, seed=1)
    meta = x[np.argsort(y)], np.sort(y)
    model = compiled(dense_net(), compile_options={"run_eagerly": True})
    seen = meta_images_seen(model, monkeypatch)
    model.fit(images(16), meta_data=meta, epochs=11, batch_size=8, verbose=0)
    label_of = {image.tobytes(): label for image, label in zip(*meta)}
    classes = [{label_of[image.tobytes()] for image in batch} for batch in seen]
    assert len(seen) == 20 and np.mean([len(some) for some in classes]) > 3
    assert {image.tobytes() for batch in seen for image in batch} == set(label_of)


def test_accuracy_is_that_of_the_labeled_samples(images):
    model = compiled(dense_net())
    labels = np.array([0, 1, 2, -1, -1, -1], np.int32)
    predicted = np.array([0, 1, 1, 0, 3, 3])
    model.update_metrics(1.0, labels, tf.one_hot(predicted, 4) * 9)
    assert float(model.get_metrics_result()["accuracy"]) == pytest.approx(2 / 3)


def test_metrics_of_phase_2_are_those_of_the_soft_labels(images):
    x, _ = images(16)
    model = compiled(dense_net(), warmup_epochs=0)
    model.begin_phase(2)
    labels = np.where(np.arange(16) < 6, model.soft_labels(x).argmax(-1), -1)
    labels[:2] = (labels[:2] + 1) % 4
    history = model.fit(
        (x, labels), meta_data=images(16, seed=1), batch_size=16, epochs=1, verbose=0
    ).history
    soft = model.soft_labels(x)
    agreement = (soft.argmax(-1) == labels)[:6].mean()
    assert 0.3 < agreement < 1 and history["soft_label_agreement"] == pytest.approx([agreement])
    entropy = -(soft * np.log(soft)).sum(-1).mean()
    assert history["soft_label_entropy"] == pytest.approx([entropy], rel=1e-5)


def test_a_model_in_phase_2_needs_no_labels_for_the_warm_up_it_leaves_out(images):
    model, (x, _) = fitted(dense_net(), images), images(40)
    message = "^fit: this model is in phase 2, so the 1 epochs before it are left out"
    with pytest.warns(UserWarning, match=message) as caught:
        history = model.fit(
            (x, np.full(40, -1)), meta_data=images(16, seed=1), epochs=3, batch_size=8, verbose=0
        )
    assert history.epoch == [1, 2] and caught[0].filename == __file__


def test_the_label_head_is_in_training_mode_in_both_passes(images):
    seen = []

    class Spy(layers.Layer):
        def call(self, features, training=False):
            seen.append(training)
            return features

    class WithSpy(MetaLabelNet):
        def build_label_head(self, num_features):
            head = super().build_label_head(num_features)
            return keras.Sequential([keras.Input((num_features,)), Spy(), head])

    model = compiled(
        dense_net(), warmup_epochs=0, model=WithSpy, compile_options={"run_eagerly": True}
    )
    seen.clear()
    model.fit(images(8), meta_data=images(8, seed=1), batch_size=8, epochs=1, verbose=0)
    assert seen == [True, True]


def test_unlabeled_images_get_the_dtype_of_the_others(images):
    seen = set()

    class Spy(layers.Layer):
        def call(self, images, training=False):
            seen.add(images.dtype.name)
            return images

    model = compiled(dense_net(), warmup_epochs=0, augmentation=Spy())
    (x, y), (meta, right), (more, _) = images(16), images(8, seed=1), images(8)
    model.fit(
        x.astype(np.float32), y, meta_data=(meta.astype(np.float32), right),
        unlabeled_data=more.astype(np.float64), batch_size=8, epochs=1, verbose=0,
    )  # fmt: skip
    assert seen == {"float32"}


def test_the_label_head_can_start_from_a_nested_classifier(images):
    net = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), dense_net()])
    model = compiled(net, label_head_init="classifier")
    model.begin_phase(2)
    assert_same(values(model.label_head.weights), values(net.layers[-1].layers[-1].weights))


# ---- how it runs --------------------------------------------------------------------------------

WAYS = (
    {"run_eagerly": True},
    {"jit_compile": False},
    {"jit_compile": False, "steps_per_execution": 5},  # in Keras' own loop
)


@pytest.mark.slow
def test_every_way_to_run_tensorflow_gives_the_same(images):
    ends = []
    for options in WAYS:
        keras.utils.set_random_seed(0)
        net = conv_net([layers.BatchNormalization(), layers.Dropout(0.3, seed=1)])
        model = fitted(net, images, compile_options=options)
        assert model.optimizer.iterations.numpy() == 10
        ends.append(values(model.classifier.weights + model.label_head.weights))
    for end in ends[1:]:
        for a, b in zip(ends[0], end, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_images_held_on_the_gpu_are_the_same_images(images, monkeypatch):
    """The CPU stands for the GPU; some samples have no label, and some images are unlabeled."""
    x, y = images(40)
    y = np.where(np.arange(40) % 5 == 0, -1, y)
    gather, gathered = tf.gather, []

    def trained(steps_per_execution):
        keras.utils.set_random_seed(0)
        by_xla = {"jit_compile": True, "steps_per_execution": steps_per_execution}
        model = compiled(conv_net([layers.BatchNormalization()]), compile_options=by_xla)
        history = model.fit(
            (x, y), meta_data=images(20, seed=1), unlabeled_data=images(8, seed=2)[0],
            batch_size=8, epochs=3, verbose=0,
        )  # fmt: skip
        assert model.image_dtype == "uint8" and model.held == (None,)
        return values(model.classifier.weights), history.history

    weights, by_epoch = trained(1)
    take_the_cpu_for_a_gpu(monkeypatch)
    monkeypatch.setattr(
        tf, "gather", lambda rows, *more: gathered.append(rows.shape) or gather(rows, *more)
    )
    weights_of_held, by_epoch_of_held = trained(6)
    assert {(48, 8, 8, 1), (20, 8, 8, 1)} <= set(map(tuple, gathered))
    for a, b in zip(weights, weights_of_held, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name, values_by_epoch in by_epoch.items():
        np.testing.assert_allclose(values_by_epoch, by_epoch_of_held[name], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.* meta_loss", "ignore:.*`meta_loss`")
def test_a_callback_that_monitors_a_metric_of_phase_2_finds_its_best_there(images, tmp_path):
    stop = keras.callbacks.EarlyStopping("meta_loss", mode="min", patience=9)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}-{meta_loss}.keras", monitor="meta_loss", mode="min", save_best_only=True
    )
    history = compiled(dense_net(), warmup_epochs=2).fit(
        images(40), meta_data=images(16, seed=1), batch_size=8, epochs=5, verbose=0,
        callbacks=[stop, best],
    )  # fmt: skip
    assert stop.best == best.best == np.nanmin(history.history["meta_loss"])
    at = np.nanargmin(history.history["meta_loss"])
    saved = keras.models.load_model(tmp_path / f"{at + 1}-{best.best}.keras")
    assert saved.phase == 2


def test_evaluation_is_whole_where_the_steps_of_a_call_change(images):
    """10 steps of warm-up are 2 a call, then 12 are 4, and then 6 are 3; Keras traces once."""
    x, y = images(32, seed=3)
    model = compiled(dense_net(), compile_options={"jit_compile": False, "steps_per_execution": 4})
    for initial_epoch, batch_size in ((0, 4), (1, 8)):
        history = model.fit(
            images(40), meta_data=images(16, seed=1), unlabeled_data=images(8, seed=2)[0],
            batch_size=batch_size, initial_epoch=initial_epoch, epochs=3, validation_data=(x, y),
            validation_batch_size=4, verbose=0,
        ).history  # fmt: skip
        whole = model.evaluate(x, y, batch_size=32, verbose=0, return_dict=True)
        assert history["val_loss"][-1] == pytest.approx(whole["loss"], rel=1e-5)
        assert history["val_accuracy"][-1] == pytest.approx(whole["accuracy"])
        assert len(model.predict(x, batch_size=4, verbose=0)) == 32


@pytest.mark.parametrize("jit_compile", [False, True])
def test_evaluation_also_counts_labels_among_the_most_probable(images, jit_compile):
    x, y = images(40, seed=3)
    y[[2, 7]] = -1
    model = compiled(dense_net(), 2, compile_options={"jit_compile": jit_compile})
    rank = (-model.predict(x, verbose=0)).argsort(1).argsort(1)[np.arange(40), y][y >= 0]
    assert set(rank) == {0, 1, 2, 3}
    for k in (1, 2, 3):
        loss, accuracy, among = model.evaluation(x, y, 16, top_k=k)()
        assert (loss, accuracy) == model.evaluation(x, y, 16)()
        assert accuracy == pytest.approx(np.mean(rank == 0))
        assert among == pytest.approx(np.mean(rank < k))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_evaluation_of_the_same_images_follows_the_weights(images, jit_compile):
    """11 images are 3 batches of 4, and one image comes twice."""
    x, y = images(11, seed=3)
    model = compiled(dense_net(), 2, compile_options={"jit_compile": jit_compile})
    sizes = {11: (3, 1), 4: (1, 0), 8: (2, 0), 1: (1, 0)}
    evaluations = {n: model.evaluation(x[:n], y[:n].astype("uint8"), 4) for n in sizes}
    for n, (count, fill) in sizes.items():
        _, labels = batches.stack(x[:n], y[:n], 4)
        assert len(labels) == count and (labels == -1).sum() == fill
    before = {}
    for epoch in range(2):
        model.fit(images(40), batch_size=8, epochs=epoch + 1, initial_epoch=epoch, verbose=0)
        for n in sizes:
            whole = model.evaluate(x[:n], y[:n], batch_size=n, verbose=0, return_dict=True)
            loss, accuracy = evaluations[n]()
            assert whole == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=1e-5)
            assert loss != before.get(n)
            before[n] = loss
    only_8 = model.evaluation(x, np.where(np.arange(11) < 8, y, -1), 4)()
    assert only_8 == pytest.approx(evaluations[8](), rel=1e-5)
    assert model._sum_up.experimental_get_tracing_count() == len(sizes)  # a program for each size


def test_samples_without_a_label_are_left_out_of_evaluation(images):
    x, y = images(11, seed=3)
    metrics = ["accuracy", keras.metrics.SparseCategoricalCrossentropy()]
    model = compiled(dense_net(), compile_options={"metrics": metrics})
    labeled = model.evaluate(x, y, batch_size=11, verbose=0, return_dict=True)
    with_one_more = np.append(x, x[:1], axis=0), np.append(y, -1)
    found = model.evaluate(*with_one_more, batch_size=12, verbose=0, return_dict=True)
    assert found == pytest.approx(labeled, rel=1e-5)


@keras.saving.register_keras_serializable("tests")
class WithDropoutHead(MetaLabelNet):
    def build_label_head(self, num_features):
        head = super().build_label_head(num_features)
        return keras.Sequential([keras.Input((num_features,)), layers.Dropout(0.5), head])


def test_the_random_states_of_a_label_head_are_saved(images, tmp_path):
    model = fitted(dense_net(), images, model=WithDropoutHead)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    features = np.ones((4, 16), "float32")
    drawn = [m.label_head(features, training=True) for m in (model, loaded)]
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] != model.label_head(features, training=False)).numpy().any()


class Half(layers.Layer):
    """In training, and then only, each pixel is halved."""
    def call(self, images, training=False):
        return images // 2 if training else images


def test_training_images_are_augmented(images):
    """An augmentation equals images that come augmented."""
    x, y = images(40)
    x = x // 2 * 2
    meta, ends = images(16, seed=1), []
    for augmentation, of in ((Half(), x), (None, x // 2)):
        keras.utils.set_random_seed(0)
        model = compiled(dense_net(), augmentation=augmentation)
        model.fit((of, y), meta_data=meta, epochs=3, batch_size=8, verbose=0)
        ends.append(values(model.weights))
    assert_same(*ends)


def test_evaluation_does_not_augment(images):
    model = compiled(dense_net(), augmentation=Half())
    x, y = images(16)
    expected = compiled(model.classifier)
    assert model.evaluate(x, y, verbose=0) == expected.evaluate(x, y, verbose=0)


def test_augmentation_and_features_see_the_same_images(images, monkeypatch):
    """The soft label of a training image is that of the augmented image (Eq. 3 and 4)."""
    class Invert(layers.Layer):
        def call(self, images, training=False):
            return 255 - images if training else images

    model = compiled(dense_net(), warmup_epochs=0, augmentation=Invert(),
                     compile_options={"run_eagerly": True})
    extract, seen = model._extract_features, []
    monkeypatch.setattr(model, "_extract_features", lambda x: seen.append(x.numpy()) or extract(x))
    x, y = images(8)
    model.fit((x, y), meta_data=images(8, seed=1), batch_size=8, epochs=1, verbose=0)
    assert len(seen) == 1
    assert {a.tobytes() for a in seen[0]} == {(255 - a).tobytes() for a in x}


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_stopping_in_warm_up_ends_the_training(images):
    model = compiled(dense_net(), warmup_epochs=2)
    for initial_epoch in (0, 1):  # the second one stops on the switch
        with pytest.warns(UserWarning, match="^fit: a callback .* before phase 2 beg") as caught:
            history = model.fit(
                images(40), meta_data=images(16, seed=1), initial_epoch=initial_epoch, epochs=4,
                batch_size=8, verbose=0, callbacks=[Stop()],
            )  # fmt: skip
        assert history.epoch == [initial_epoch] and model.phase == 1
        said = [warning for warning in caught if str(warning.message).startswith("fit: ")]
        assert [warning.filename for warning in said] == [__file__]


@pytest.mark.parametrize("patience", [1, 9])
def test_a_callback_that_restores_warm_up_has_not_stopped_it(images, patience):
    """With a patience of 1 it stops the training, but in phase 2."""
    model = compiled(dense_net(), warmup_epochs=1)
    restore = keras.callbacks.EarlyStopping(
        "loss", min_delta=1e9, patience=patience, restore_best_weights=True
    )
    with pytest.warns(UserWarning) as caught:
        history = model.fit(
            images(40), meta_data=images(16, seed=1), epochs=3, batch_size=8, verbose=0,
            callbacks=[restore],
        )  # fmt: skip
    assert history.epoch == list(range(min(3, 1 + patience))) and model.phase == 1
    said = [str(warning.message) for warning in caught if "fit: " in str(warning.message)]
    assert said == ["fit: a callback took the model from phase 2 back to warm-up, with its weights"]


def test_metrics_are_given_probabilities(images):
    model = compiled(
        dense_net(),
        compile_options={"metrics": [keras.metrics.SparseCategoricalCrossentropy(name="ce")]},
    )
    x, y = images(16)
    scores = model.evaluate(x, y, verbose=0, return_dict=True)
    assert scores["ce"] == pytest.approx(scores["loss"], rel=1e-5)


def test_what_was_trained_on_floats_is_exported_for_floats(images, tmp_path):
    x, y = images(16)
    x = (x / 255).astype("float32")
    model = compiled(dense_net())
    model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    model.export(tmp_path / "saved_model")
    archive = tf.saved_model.load(tmp_path / "saved_model")
    serve = archive.signatures["serving_default"]
    assert serve.structured_input_signature[1]["images"].dtype == tf.float32
    expected = model.predict(x, verbose=0)
    for found in (serve(images=x), archive.serve(x)):
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)


def test_a_loaded_model_knows_its_images_dtype(images, tmp_path):
    x, y = images(16)
    model = compiled(dense_net())
    model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="expected uint8 images, as in training, received float32"):
        loaded.predict(x / np.float32(255), verbose=0)


def test_soft_labels_are_written_in_inference_mode(images):
    class Dropping(MetaLabelNet):
        def build_label_head(self, num_features):
            dropout = layers.Dropout(0.9, seed=0)
            return keras.Sequential(
                [keras.Input((num_features,)), dropout, super().build_label_head(num_features)]
            )

    model = fitted(dense_net(), images, model=Dropping)
    x, _ = images(16, seed=2)
    expected = keras.ops.softmax(model.label_head(model._extract_features(x), training=False))
    np.testing.assert_allclose(model.soft_labels(x), expected, atol=1e-6)


def test_without_a_meta_optimizer_it_is_the_papers():
    model = MetaLabelNet(dense_net(), 1)
    model.compile(keras.optimizers.SGD(0.1))
    expected = keras.optimizers.Adam(1e-2, 0.9, 0.999, epsilon=1e-8).get_config()
    assert model.meta_optimizer.get_config() == expected | {"name": model.meta_optimizer.name}


def test_the_losses_of_phase_2_are_logged_apart(images):
    """The loss is Eq. 13, without the weight penalties; the meta loss is Eq. 9 at θ̂."""
    x, y = images(16)
    meta = images(16, seed=1)
    net = dense_net()
    penalized = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(1.0))
    net = keras.Sequential([keras.Input((8, 8, 1)), *net.layers[:-1], penalized])
    model = compiled(net, warmup_epochs=0, inner_learning_rate=1e-9)
    meta_loss = model.evaluate(*meta, batch_size=16, verbose=0)[0]
    logits = model.logits(x, training=True)
    history = model.fit((x, y), meta_data=meta, batch_size=16, epochs=1, verbose=0).history
    soft = np.log(model.soft_labels(x)).astype("float32")
    losses = mln_layers.kl_divergence(logits, soft) + mln_layers.entropy(logits)
    assert history["loss"] == pytest.approx([np.mean(losses) / 4], rel=1e-4)
    assert history["meta_loss"] == pytest.approx([meta_loss], rel=1e-4)


def test_every_seed_has_its_own_order(images, monkeypatch):
    (x, y), orders = images(40), []
    update = MetaLabelNet.update_metrics

    def note(model, loss, labels, logits):
        orders[-1] += labels.numpy().tolist()
        update(model, loss, labels, logits)

    monkeypatch.setattr(MetaLabelNet, "update_metrics", note)
    for seed in (1, 1, 2):
        orders.append([])
        model = compiled(dense_net(), compile_options={"run_eagerly": True}, seed=seed)
        model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    assert orders[0] == orders[1] != orders[2]


def test_the_meta_batch_draws_dropout_of_its_own(images):
    """Also where it may not move batch norm: each step draws two masks, one after the other."""
    drawn = []
    for meta_batch_norm in (True, False):
        keras.utils.set_random_seed(0)
        dropout = layers.Dropout(0.3, seed=1)
        net = dense_net(extra=[dropout])
        model = compiled(net, warmup_epochs=0, meta_batch_norm=meta_batch_norm)
        model.fit(images(16), meta_data=images(8, seed=1), batch_size=8, epochs=1, verbose=0)
        drawn.append(values([dropout.seed_generator.state, *model.classifier.weights]))
    assert_same(*drawn)


def test_training_goes_on_after_it_was_stopped(images):
    model, data = compiled(dense_net()), {"meta_data": images(16, seed=1), "batch_size": 8}
    model.fit(images(40), **data, epochs=5, initial_epoch=1, verbose=0, callbacks=[Stop()])
    history = model.fit(images(40), **data, epochs=5, initial_epoch=2, verbose=0)
    assert history.epoch == [2, 3, 4]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.slow
def test_batches_of_different_sizes_are_not_stacked(images, jit_compile):
    options = {"jit_compile": jit_compile, "steps_per_execution": 3}
    model = compiled(dense_net(), compile_options=options)
    model.fit(batched(images(20)), meta_data=batched(images(16, seed=1)), epochs=2, verbose=0)
    assert model.optimizer.iterations.numpy() == 6


def take_the_cpu_for_a_gpu(monkeypatch):
    cpus = tf.config.list_logical_devices("CPU")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: cpus)


def test_images_are_not_held_where_they_would_not_fit(images, monkeypatch):
    take_the_cpu_for_a_gpu(monkeypatch)
    x, _ = images(8)
    assert batches.hold(x)[0] is not None
    monkeypatch.setattr(batches, "HELD_BYTES", x.nbytes - 1)
    held, same = batches.hold(x)
    assert held is None and same is x


def test_images_are_not_held_where_memory_is_full(images, monkeypatch):
    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory left")

    take_the_cpu_for_a_gpu(monkeypatch)
    monkeypatch.setattr(tf, "convert_to_tensor", full)
    x, _ = images(8)
    held, same = batches.hold(x)
    assert held is None and same is x


def nested_pooling(*pools):
    """A nested classifier; Keras' max pooling overlaps, as in ResNet50."""
    net = [layers.Conv2D(8, 3), *pools, layers.Flatten(), layers.Dense(4)]
    nested = keras.Sequential([keras.Input((8, 8, 1)), *net])
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), nested])


@pytest.mark.parametrize("padding", [pytest.param("valid", marks=pytest.mark.slow), "same"])
def test_with_xla_the_meta_gradient_through_max_pooling_is_the_same(images, padding):
    """XLA's own second derivative takes the maximum of numbers that it has rounded."""

    def label_head(jit_compile):
        keras.utils.set_random_seed(0)
        net = nested_pooling(layers.MaxPooling2D(3, 2, padding=padding))
        model = MetaLabelNet(net, 0)
        model.compile(
            keras.optimizers.SGD(0.0), keras.optimizers.SGD(1e3), jit_compile=jit_compile
        )
        before = [w.numpy() for w in model.label_head.weights]
        model.fit(images(64), meta_data=images(64, seed=1), batch_size=64, verbose=0)
        return [w.numpy() - b for w, b in zip(model.label_head.weights, before)]

    for found, expected in zip(label_head(True), label_head(False), strict=True):
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected) != 0


@pytest.mark.slow
def test_max_pooling_is_differentiated_twice_in_bfloat16_with_xla(images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    net = nested_pooling(layers.MaxPooling2D(2))
    model = compiled(net, warmup_epochs=0, compile_options={"jit_compile": True})
    history = model.fit(
        images(16), meta_data=images(8, seed=1), batch_size=8, epochs=1, verbose=0,
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")],
    ).history  # fmt: skip
    assert np.isfinite(history["meta_loss"][0])
    loaded, x = keras.models.load_model(tmp_path / "model.keras"), images(8)[0]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@keras.saving.register_keras_serializable("tests")
class OwnPooling(layers.MaxPooling2D):
    def call(self, images):
        return -super().call(-images)


def test_max_pooling_is_as_it_was_after_an_error_and_a_layers_own_call_stays():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    net = nested_pooling(layers.MaxPooling2D(2), OwnPooling(2))
    expected, calls = net(x), []
    for layer in net.layers[1].layers[1:3]:
        calls.append(layer.call)
    with pytest.raises(RuntimeError), twice_differentiable_max_pooling(net):
        assert [layer.call == call for layer, call in zip(net.layers[1].layers[1:3], calls)] == [
            False, True,
        ]  # fmt: skip
        np.testing.assert_allclose(net(x), expected, rtol=1e-6)
        raise RuntimeError
    assert [layer.call for layer in net.layers[1].layers[1:3]] == calls


def test_of_data_without_end_the_given_steps_are_taken(images):
    class NoMore(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            assert batch < 2

    model, (x, y) = compiled(dense_net()), images(16, seed=3)
    history = model.fit(
        batched(images(40)).repeat(), meta_data=batched(images(16, seed=1)), epochs=3,
        steps_per_epoch=2, validation_data=batched((x, y)).repeat(), validation_steps=2,
        verbose=0, callbacks=[NoMore()],
    ).history  # fmt: skip
    assert model.optimizer.iterations.numpy() == 6
    expected = model.evaluate(x, y, batch_size=8, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(expected[0], rel=1e-5)


def test_validation_is_as_often_and_as_much_as_asked_for(images):
    model, sizes = compiled(dense_net()), []

    class Sizes(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            sizes[-1] += 1

        def on_test_begin(self, logs=None):
            sizes.append(0)

    options = dict(meta_data=images(16, seed=1), batch_size=8, verbose=0, callbacks=[Sizes()],
                   validation_data=images(16, seed=3), validation_batch_size=4)  # fmt: skip
    model.fit(images(40), **options, epochs=4, validation_freq=2)
    model.fit(images(40), **options, initial_epoch=4, epochs=5, validation_steps=3)
    assert sizes == [4, 4, 3]


def test_a_prediction_is_whole_where_a_call_first_was_one_step(images):
    """5 steps an epoch are 1 a call, then 4 are 4."""
    x, _ = images(32, seed=3)
    model = compiled(dense_net(), compile_options={"jit_compile": False, "steps_per_execution": 4})
    for count in (40, 32):
        model.fit(images(count), batch_size=8, epochs=1, verbose=0)
        assert len(model.predict(x, batch_size=4, verbose=0)) == 32


# ---- phases -------------------------------------------------------------------------------------

THREE = (Phase("one"), Phase("two", start=2, samples="meta"), Phase("three", start=5))


@pytest.mark.parametrize(
    ("current", "initial_epoch", "epochs", "expected"),
    [
        (1, 0, 2, [(1, range(0, 2))]),
        (1, 1, 9, [(1, range(1, 2)), (2, range(2, 5)), (3, range(5, 9))]),
        (1, 5, 6, [(3, range(5, 6))]),
        (2, 0, 4, [(2, range(2, 4))]),
        (3, 0, 5, []),
    ],
)
def test_which_epochs_are_of_which_phase(current, initial_epoch, epochs, expected):
    assert plan(THREE, current, initial_epoch, epochs) == expected


class InThreePhases(CrossEntropy):
    """The noisy data, the clean ones, and the noisy ones again."""

    def phases(self):
        return tuple(
            dataclasses.replace(phase, start=i, begin=lambda i=i: self.begun.append(i))
            for i, phase in enumerate(THREE)
        )


@pytest.mark.parametrize("initial_epoch", [0, 2])
def test_phases_begin_one_after_another_once(images, initial_epoch):
    """Those that are left out too; 5 steps are an epoch of the noisy data, 2 of the clean ones."""
    model, data = InThreePhases(dense_net()), {"meta_data": images(16, seed=1), "batch_size": 8}
    model.begun = []
    model.compile("sgd", jit_compile=False)
    model.fit(images(40), **data, initial_epoch=initial_epoch, epochs=3, verbose=0)
    assert model.begun == [1, 2] and model.phase == 3
    assert model.optimizer.iterations == (5 if initial_epoch else 5 + 2 + 5)
    with pytest.raises(ArgumentError, match="^epochs: expected more than 2, as this model is in"):
        model.fit(images(40), **data, epochs=2, verbose=0)
    model.fit(images(40), **data, initial_epoch=3, epochs=4, verbose=0)
    assert model.begun == [1, 2]


def test_a_phase_over_the_clean_data_learns_their_labels_only(images):
    x, y = images(40)
    ends = []
    for labels in (y, (y + 1) % 4):
        keras.utils.set_random_seed(0)
        model = InThreePhases(dense_net())
        model.begun = []
        model.compile("sgd", jit_compile=False)
        model.fit(
            (x, labels), meta_data=images(16, seed=1), batch_size=8, initial_epoch=1, epochs=2,
            verbose=0,
        )  # fmt: skip
        ends.append(values(model.classifier.weights))
    assert_same(*ends)


# ---- what it accepts ----------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Without a training argument, and with a body that is no graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten, self.hidden = layers.Flatten(), layers.Dense(6, activation="relu")
        self.dropout, self.top = layers.Dropout(0.2), layers.Dense(4)

    def features(self, images):
        return self.hidden(self.flatten(images) / 255)

    def call(self, images):
        return self.top(self.dropout(self.features(images)))


@keras.saving.register_keras_serializable("tests")
class WithUnused(Subclassed):
    """Has weights that its output does not depend on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.unused = layers.Dense(3)

    def call(self, images):
        self.unused(self.features(images))
        return super().call(images)


def test_weights_that_the_loss_does_not_reach_only_decay(images):
    classifier = WithUnused()
    classifier(np.zeros((1, 8, 8, 1), "float32"))
    before = classifier.unused.kernel.numpy()
    model = MetaLabelNet(classifier, 1, feature_extractor="features", weight_decay=0.1)
    model.compile(keras.optimizers.SGD(0.5), jit_compile=False)
    model.fit(images(8), meta_data=images(8, seed=1), epochs=2, batch_size=8, verbose=0)
    np.testing.assert_allclose(classifier.unused.kernel, 0.95**2 * before, rtol=1e-6)


def functional():
    images = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(images))
    x = layers.Dense(6, activation="relu", name="features")(x)
    return keras.Model(images, layers.Dropout(0.1)(layers.Dense(4)(x)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8, 8, 1), "float32"))
    return model


def application():
    return keras.applications.MobileNet(
        (32, 32, 1), alpha=0.25, weights=None, classes=4, classifier_activation=None
    )


def nested():
    body = application()
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.UpSampling2D(4), body]
    )


KINDS = {
    "functional": (functional, None, 6),
    "named layer": (functional, "features", 6),
    "sequential": (dense_net, None, 16),
    "nested application": (nested, None, 256),
    "subclassed": (subclassed, "features", 6),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if "nested" in k else ()) for k in KINDS]
)
def test_kinds_of_classifiers(images, tmp_path, kind):
    build, feature_extractor, num_features = KINDS[kind]
    model = fitted(
        build(), images, epochs=1, warmup_epochs=0, feature_extractor=feature_extractor,
        compile_options={"run_eagerly": True},
    )  # fmt: skip
    assert model.label_head.weights[0].shape == (num_features, 4)
    x, _ = images(10)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    np.testing.assert_allclose(loaded.soft_labels(x), model.soft_labels(x), atol=1e-6)


def test_resnet50_features():
    net = keras.applications.ResNet50(
        weights=None, classes=5, classifier_activation=None, input_shape=(32, 32, 3)
    )
    model = MetaLabelNet(net, 1)
    assert model.label_head.weights[0].shape == (2048, 5)


def two_inputs():
    images, more = keras.Input((8, 8, 1)), keras.Input((3,))
    x = layers.Concatenate()([layers.Flatten()(images), more])
    return keras.Model([images, more], layers.Dense(4)(x))


def wrap(layer):
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), *layer])


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: wrap([layers.Dense(4, activation="softmax")]), {}, "ends it with an activation"),
        (lambda: wrap([layers.Dense(4), layers.Softmax()]), {}, "ends it with an activation"),
        (lambda: wrap([layers.Dense(4), layers.Activation("sigmoid")]), {}, r"\(sigmoid\)"),
        (subclassed, {}, "feature_extractor: a subclassed classifier"),
        (subclassed, {"feature_extractor": "body"}, "no layer or attribute 'body'"),
        (Subclassed, {"feature_extractor": "features"}, "expected a built model"),
        (lambda: layers.Dense(3), {}, "expected a keras.Model, received Dense"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3)]), {},
            r"expected logits of shape \(N, C\), received \('N', 6, 6, 4\)",
        ),
        (dense_net, {"warmup_epochs": 1.5}, "warmup_epochs: expected an integer, at least 0"),
        (dense_net, {"inner_learning_rate": 0}, "inner_learning_rate: expected a .*above 0"),
        (dense_net, {"weight_decay": -1e-4}, "weight_decay: expected at least 0"),
        (dense_net, {"label_head_init": "zeros"}, "label_head_init: expected one of random"),
        (
            subclassed, {"feature_extractor": "top"},
            "feature_extractor: 'top' does not map images to features",
        ),
        (lambda: "resnet", {}, "classifier: expected a keras.Model, received str"),
        (two_inputs, {}, "classifier: expected one input, images; received 2 inputs"),
        (
            subclassed, {"feature_extractor": "features", "label_head_init": "classifier"},
            "label_head_init: 'classifier' needs",
        ),
        (lambda: wrap([layers.Dense(1)]), {}, "classifier: expected logits"),
        (dense_net, {"seed": -1}, "seed: expected"),
        (dense_net, {"entropy_weight": -1.0}, "entropy_weight: expected"),
        (dense_net, {"given_label_weight": 1.0}, "given_label_weight: expected at least 0, below"),
        (
            lambda: wrap([layers.Dense(4, use_bias=False)]), {"label_head_init": "classifier"},
            "with a bias",
        ),
    ],
)  # fmt: skip
def test_bad_models_are_refused(build, options, message):
    with pytest.raises(ArgumentError, match=message) as error:
        MetaLabelNet(build(), **({"warmup_epochs": 1} | options))
    assert "\n" not in str(error.value)
    assert error.value.name in ("classifier", "feature_extractor", *options)


@keras.saving.register_keras_serializable("tests")
class Watched(Subclassed):
    """Notes the batches that it is called on outside of a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, images):
        if tf.executing_eagerly():
            self.seen.append(np.array(images))
        return super().call(images)


class Probabilities(Watched):
    def call(self, images):
        return keras.ops.softmax(super().call(images))


def built(classifier):
    classifier(np.zeros((1, 8, 8, 1), "float32"))
    classifier.seen.clear()
    return classifier


def test_a_model_is_made_without_computing_anything():
    net = built(Watched())
    before = values(net.variables)
    MetaLabelNet(net, 1, feature_extractor="features")
    assert not net.seen
    assert_same(values(net.variables), before)  # the random states of dropout too


def test_fit_asks_a_classifier_for_its_logits_of_two_training_images_once(images):
    net, (x, y) = built(Watched()), images(16)
    model = compiled(net, warmup_epochs=2, feature_extractor="features")
    for epoch in range(2):
        model.fit((x, y), batch_size=8, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
    assert_same(net.seen, [x[:2]])


@pytest.mark.parametrize("make", [lambda pair: pair, batched])
def test_a_subclass_that_returns_probabilities_is_refused_before_training(images, make):
    model = compiled(built(Probabilities()), feature_extractor="features")
    message = r"^classifier: expected a model that returns logits, .*\(its outputs sum to 1\)"
    with pytest.raises(ArgumentError, match=message) as error:
        model.fit(make(images(16)), epochs=1, batch_size=8, verbose=0)
    assert "\n" not in str(error.value)
    assert model.optimizer.iterations.numpy() == 0 and model.image_dtype is None


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_a_loss_of_every_sample_is_refused(images, warmup_epochs):
    class Forgetful(MetaLabelNet):
        def classification_loss(self, logits, soft_label_logits):
            return keras.ops.sum(keras.ops.square(logits - soft_label_logits), axis=-1)

    model = compiled(dense_net(), warmup_epochs=warmup_epochs, model=Forgetful)
    with pytest.raises(ArgumentError, match=r"^classification_loss: expected a scalar.*\(8,\)"):
        model.fit(*images(16), meta_data=images(16), batch_size=8, epochs=2, verbose=0)
    assert model.optimizer.iterations == 0


def test_float16_is_refused():
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(ValueError, match="classifier: computes in float16"):
        MetaLabelNet(dense_net(), 1)


def test_what_a_callback_adds_to_the_logs_is_in_the_history(images):
    model = compiled(dense_net(), compile_options={"jit_compile": False})
    history = model.fit(
        *images(16), meta_data=images(16), batch_size=8, epochs=2, verbose=0,
        callbacks=[keras.callbacks.ReduceLROnPlateau("loss")],
    ).history  # fmt: skip
    assert len(history["learning_rate"]) == 2


def test_names_and_functions_are_taken_as_keras_takes_them(images):
    model = MetaLabelNet(dense_net(), 1)
    model.compile("adam", "adam", metrics=keras.metrics.sparse_categorical_accuracy)
    assert model.optimizer is not model.meta_optimizer
    assert "sparse_categorical_accuracy" in model.fit(*images(16), batch_size=8, verbose=0).history


BAD_DATA = {
    "label out of range": (lambda d: d | {"y": np.where(d["y"] == 3, 4, d["y"])},
                           r"x: expected labels in \[0, 4\) or -1 \(no label\), received 4"),
    "label below -1": (lambda d: d | {"y": d["y"] - 2}, "received -2"),
    "float labels": (lambda d: d | {"y": d["y"].astype(float)}, "expected integer labels"),
    "one-hot labels": (lambda d: d | {"y": np.eye(4, dtype=int)[d["y"]]}, "one an image"),
    "too few labels": (lambda d: d | {"y": d["y"][:-1]}, r"shape \(40,\)"),
    "wrong image shape": (lambda d: d | {"x": d["x"][:, :7]}, r"\('N', 8, 8, 1\), received"),
    "no labels": (lambda d: d | {"y": None}, r"x: expected \(images, labels\)"),
    "unlabeled meta": (
        lambda d: d | {"meta_data": (d["meta_data"][0], d["meta_data"][1] - 1)},
        r"meta_data: expected labels in \[0, 4\), received -1",
    ),
    "float meta images": (
        lambda d: d | {"meta_data": (d["meta_data"][0] / 255, d["meta_data"][1])},
        "meta_data: expected uint8 images, as in training, received float32",
    ),
    "float unlabeled": (
        lambda d: d | {"unlabeled_data": d["x"] / 255}, "unlabeled_data: expected uint8 images"
    ),
    "small meta set": (
        lambda d: d | {"meta_data": tuple(a[:7] for a in d["meta_data"])},
        "meta_data: expected at least one batch, batch_size=8 samples, received 7",
    ),
    "no meta set": (
        lambda d: d | {"meta_data": None},
        "meta_data: needed from epoch 1 on, where phase 2 begins; received None with epochs=2",
    ),
    "no phase 2": (lambda d: d | {"epochs": 1}, "epochs: expected more than 1, received 1"),
    "large batch": (
        lambda d: d | {"batch_size": 41, "meta_data": [np.repeat(a, 3, 0) for a in d["meta_data"]]},
        "x: expected at least one batch, batch_size=41 samples, received 40",
    ),
    "few labels": (
        lambda d: d | {"y": np.where(np.arange(40) < 7, d["y"], -1)},
        "x with labels: expected at least one batch, batch_size=8 samples, received 7",
    ),
    "no batch": (lambda d: d | {"batch_size": 0}, "batch_size: expected an integer, at least 1"),
    "empty meta data set": (
        lambda d: d | {"meta_data": batched(d["meta_data"]).take(0)},
        "meta_data: expected at least one batch, received an empty data set",
    ),
    "one-hot validation labels": (
        lambda d: d | {"validation_data": (d["x"], np.eye(4, dtype=int)[d["y"]])},
        "validation_data: expected integer labels of shape",
    ),
    "high validation labels": (
        lambda d: d | {"validation_data": (d["x"], d["y"] + 1)},
        r"validation_data: expected labels in \[0, 4\) or -1",
    ),
    "no validation labels": (
        lambda d: d | {"validation_data": (d["x"],)},
        r"validation_data: expected \(images, labels\)",
    ),
    "validation images of another shape": (
        lambda d: d | {"validation_data": batched((d["x"][:, 1:], d["y"]))},
        "validation_data: expected images of shape",
    ),
    "validation images of another scale": (
        lambda d: d | {"validation_data": (d["x"] / 255, d["y"])},
        "validation_data: expected uint8 images",
    ),
    "validation images alone": (
        lambda d: d | {"validation_data": d["x"]}, r"validation_data: expected \(images, labels\)"
    ),
    "validation without end": (
        lambda d: d | {"validation_data": batched((d["x"], d["y"])).repeat()},
        "validation_steps: needed for validation_data, a tf.data.Dataset without end",
    ),
    "steps without end": (
        lambda d: d | {"x": batched((d["x"], d["y"])).repeat(), "y": None},
        "steps_per_epoch: needed for x, a tf.data.Dataset without end",
    ),
    "some steps of all": (lambda d: d | {"steps_per_epoch": 2}, "steps_per_epoch: is for"),
    "fewer than no steps": (
        lambda d: d | {"steps_per_epoch": -1},
        "steps_per_epoch: expected an integer, at least 1, received -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_before_training(images, case):
    spoil, message = BAD_DATA[case]
    x, y = images(40)
    data = {"x": x, "y": y, "meta_data": images(16, seed=1), "epochs": 2, "batch_size": 8}
    model = compiled(dense_net())
    with pytest.raises(ArgumentError, match=message) as error:
        model.fit(**spoil(data), verbose=0)
    assert error.value.name.split()[0] in inspect.signature(model.fit).parameters
    assert "\n" not in str(error.value)
    assert model.optimizer.iterations.numpy() == 0


@pytest.mark.parametrize("name", ["x", "meta_data"])
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_of_a_data_set_are_refused_when_they_come_up(images, name, label):
    pairs = {"x": images(40), "meta_data": images(16, seed=1)}
    pairs[name][1][12] = label
    model = compiled(dense_net())
    with pytest.raises(ValueError, match=rf"^{name}: expected labels in \[0, 4\)$"):
        model.fit(**{n: batched(pair) for n, pair in pairs.items()}, epochs=2, verbose=0)


def test_labels_of_a_data_set_to_evaluate_are_refused_when_they_come_up(images):
    model, (x, y) = fitted(dense_net(), images), images(40)
    not_labeled = batched((x, np.full(40, -1)))
    assert model.evaluate(not_labeled, verbose=0, return_dict=True)["loss"] == 0
    says = r": expected labels in \[0, 4\) or -1 \(no label\)$"
    for label in (-2, 4):
        wrong = batched((x, np.where(np.arange(40) == 12, label, y)))
        with pytest.raises(ValueError, match=f"^x{says}"):
            model.evaluate(wrong, verbose=0)
        with pytest.raises(ValueError, match=f"^validation_data{says}"):
            model.fit(
                (x, y), meta_data=images(16, seed=1), validation_data=wrong, batch_size=8,
                initial_epoch=2, epochs=3, verbose=0,
            )  # fmt: skip


def test_a_meta_set_without_a_class_is_warned_of(images):
    x, y = images(40, seed=1)
    some = (x[y % 2 == 0], y[y % 2 == 0])
    with pytest.warns(UserWarning, match="holds no sample of class 1, 3, so training on") as caught:
        compiled(dense_net()).fit(images(40), meta_data=some, batch_size=8, epochs=2, verbose=0)
    assert caught[0].filename == __file__


def test_of_many_classes_without_a_meta_sample_some_are_named(images):
    with pytest.warns(UserWarning, match=" class 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 6 more,"):
        compiled(dense_net(20)).fit(
            images(40), meta_data=images(40), batch_size=8, epochs=2, verbose=0
        )


def test_labels_given_twice_are_refused(images):
    model, (x, y) = compiled(dense_net()), images(40)
    for first in ((x, y), batched((x, y))):
        for second in (y, images(16, seed=1)):
            for call in (model.fit, model.evaluate):
                with pytest.raises(ValueError, match="^y: expected None, as x, a .* meta_data="):
                    call(first, second, batch_size=8)


def test_evaluate_takes_a_pair_and_refuses_what_does_not_fit(images):
    model, (x, y) = fitted(dense_net(), images), images(40)
    expected = model.evaluate(x, y, verbose=0)
    for pair in ((x, y), batched((x, y))):
        np.testing.assert_allclose(model.evaluate(pair, verbose=0), expected, rtol=1e-5)
    assert model.evaluate(x, y, 32, 0) == expected
    for wrong in ((x, y + 1), (x[:, 1:], y), (x, np.eye(4)[y]), (x / 255, y), (x,), ((x, y, y),)):
        with pytest.raises(ValueError, match="^x: ") as error:
            model.evaluate(*wrong, verbose=0)
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_a_frozen_classifier_is_loaded_but_not_trained(images, tmp_path):
    model = fitted(dense_net(), images)
    model.classifier.trainable = False
    model.save(tmp_path / "model.keras")
    loaded, (x, y) = keras.models.load_model(tmp_path / "model.keras"), images(16)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    with pytest.raises(ValueError, match="^classifier: expected trainable weights"):
        loaded.fit((x, y), meta_data=(x, y), epochs=2, batch_size=8)


def test_soft_labels_are_traced_once(images):
    model = fitted(dense_net(), images, compile_options={"metrics": "accuracy"})
    for count in (40, 40, 36):
        assert model.soft_labels(images(count)[0], batch_size=16).shape == (count, 4)
    assert model._write_soft_labels.experimental_get_tracing_count() <= 2


def test_a_program_has_a_step():
    with pytest.raises(ValueError, match="^steps_per_execution: expected an integer, at least 1"):
        compiled(dense_net(), compile_options={"steps_per_execution": 0})


class PredictionsByClass(keras.metrics.Metric):
    """A vector, as accuracy by class would be."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight(shape=(4,), initializer="zeros")

    def update_state(self, labels, probabilities, sample_weight=None):
        self.count.assign_add(keras.ops.sum(keras.ops.one_hot(
            keras.ops.argmax(probabilities, -1), 4
        ), 0))  # fmt: skip

    def result(self):
        return 1 * self.count


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_metric_may_be_a_vector(images, run_eagerly):
    options = {"metrics": PredictionsByClass(name="by_class"), "run_eagerly": run_eagerly}
    model = compiled(dense_net(), compile_options=options)
    history = model.fit(
        images(40), meta_data=images(16, seed=1), validation_data=images(12), batch_size=8,
        epochs=2, verbose=0,
    ).history  # fmt: skip
    assert [value.sum() for value in history["by_class"]] == [40, 40]
    assert [value.sum() for value in history["val_by_class"]] == [12, 12]


def test_fit_asks_for_compile(images):
    with pytest.raises(ValueError, match="call compile"):
        MetaLabelNet(dense_net(), 1).fit(images(8))


def test_keras_augmentation_layers_serve(images):
    model = compiled(
        dense_net(),
        augmentation=keras.Sequential([layers.RandomFlip(), layers.RandomContrast(0.1)]),
    )
    model.fit(images(40), meta_data=images(16, seed=1), batch_size=8, epochs=2, verbose=0)
    assert model.image_dtype == "uint8"


def test_float_images_are_refused_after_training_on_uint8(images):
    model = fitted(dense_net(), images)
    x, y = images(8)
    for call in (model.soft_labels, lambda x: model.predict(x, verbose=0)):
        with pytest.raises(ArgumentError, match="^images: expected uint8 images, as in training"):
            call(x / np.float32(255))


def test_bfloat16_images_are_float_images():
    bfloat16 = tf.bfloat16.as_numpy_dtype
    checks.image_dtype(bfloat16, "float32")
    checks.image_dtype(tf.float32, "bfloat16")
    with pytest.raises(ValueError, match="^images: expected uint8 images, as in training"):
        checks.image_dtype(bfloat16, "uint8")


def test_training_goes_on_with_images_of_the_same_type(images):
    model = compiled(dense_net())
    x, y = images(16)
    model.fit((x, y), epochs=1, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="expected uint8 images, as in training, received float32"):
        model.fit((x / 255, y), epochs=1, batch_size=8, verbose=0)


def test_soft_labels_need_phase_2(images):
    model = compiled(dense_net())
    with pytest.raises(ValueError, match="^soft_labels: .* phase 2, not yet begun"):
        model.soft_labels(images(8)[0])


def test_a_loss_that_is_nan_stops_with_epoch_and_step(images):
    model = compiled(dense_net())
    model.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match=r"epoch 1, step [2-5]: the loss is (nan|inf)"):
        model.fit(images(40), meta_data=images(16), epochs=2, batch_size=8, verbose=0)
    by_xla = {"jit_compile": True, "steps_per_execution": 5}
    model = compiled(dense_net(), compile_options=by_xla)
    model.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match="epoch 1, step 5: the loss is"):
        model.fit(images(40), epochs=1, batch_size=8, verbose=0)


def test_images_of_a_generator_have_the_dtype_of_training(images):
    model, (x, y) = fitted(dense_net(), images), images(8)
    with pytest.raises(ValueError, match="expected uint8 images, as in training, received float32"):
        model.evaluate(((x / np.float32(255), y) for _ in range(1)), verbose=0)


def test_mixing_needs_data_of_known_length(images):
    noisy, more = batched(images(40)), batched(images(16)[0])
    endless, unknown = more.repeat(), more.filter(lambda _: True)
    model = compiled(dense_net())
    for unlabeled in (endless, unknown):
        with pytest.raises(ValueError, match="^unlabeled_data: mixing needs data sets of known"):
            model.fit(noisy, meta_data=images(16, seed=1), unlabeled_data=unlabeled, epochs=2,
                      batch_size=8, verbose=0)  # fmt: skip


@pytest.mark.parametrize("name", ["unlabeled_data", "meta_data"])
def test_images_of_a_data_set_have_the_scale_of_the_others(images, name):
    x, y = images(16)
    x = x / np.float32(255)
    data = {"meta_data": batched(images(16)), name: batched((x, y) if name == "meta_data" else x)}
    model = compiled(dense_net())
    with pytest.raises(ValueError, match=f"^{name}: expected uint8 images, as in training"):
        model.fit(batched(images(40)), **data, epochs=2, verbose=0)
    assert model.optimizer.iterations.numpy() == 0


def test_one_hot_labels_of_a_data_set_are_refused(images):
    x, y = images(40)
    one_hot = batched((x, np.eye(4, dtype=int)[y]))
    with pytest.raises(ValueError, match=r"^x: expected integer labels of shape \(N,\), received"):
        compiled(dense_net()).fit(one_hot, epochs=1, verbose=0)


def test_a_classifier_of_images_of_any_size(images):
    net = keras.Sequential([
        keras.Input((None, None, 1)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(),
        layers.Dense(4),
    ])  # fmt: skip
    model = fitted(net, images)
    assert model.image_shape == (None, None, 1) and model.soft_labels(images(8)[0]).shape == (8, 4)


def test_images_of_unknown_rank_get_the_same_line(images):
    x, y = images(16)
    spec = (tf.TensorSpec(None, tf.uint8), tf.TensorSpec((None,), tf.int32))
    unknown = tf.data.Dataset.from_generator(lambda: iter([(x, y)]), output_signature=spec)
    with pytest.raises(ValueError, match=r"^x: expected images of shape \('N', 8, 8, 1\), rec"):
        compiled(dense_net()).fit(unknown, epochs=1, verbose=0)


def test_of_no_images_there_are_no_soft_labels(images):
    model = fitted(dense_net(), images)
    assert model.soft_labels(images(8)[0][:0]).shape == (0, 4)


# ---- what leaves it -----------------------------------------------------------------------------

SERVE = """
import sys, numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
assert serve.structured_input_signature[1]["images"].dtype == tf.uint8
images = np.load(sys.argv[2])
out = [serve(images=tf.constant(images[:n]))["probabilities"].numpy() for n in (1, 7, 1000)]
assert not {"mln_keras", "layers", "data"} & set(sys.modules)
np.savez(sys.argv[3], *out)
"""


def test_saved_model_in_plain_tensorflow(images, tmp_path):
    model = fitted(conv_net([layers.BatchNormalization(), layers.Dropout(0.3)]), images)
    x, _ = images(1000, seed=7)
    model.export(tmp_path / "saved_model")
    np.save(tmp_path / "images.npy", x)
    command = [sys.executable, "-c", SERVE, "saved_model", "images.npy", "out.npz"]
    subprocess.run(command, cwd=tmp_path, check=True)
    expected = model.predict(x, verbose=0)
    with np.load(tmp_path / "out.npz") as out:
        for n, found in zip((1, 7, 1000), out.values(), strict=True):
            np.testing.assert_allclose(found, expected[:n], atol=1e-5)
            assert found.dtype == np.float32


def test_metrics_and_steps_of_a_call_are_saved_with_the_model(images, tmp_path):
    options = {"metrics": ["sparse_top_k_categorical_accuracy"], "steps_per_execution": 5,
               "jit_compile": False}  # fmt: skip
    model = fitted(dense_net(), images, compile_options=options)
    model.save(tmp_path / "model.keras")
    loaded, (x, y) = keras.models.load_model(tmp_path / "model.keras"), images(16)
    assert loaded.get_compile_config() == model.get_compile_config()
    found, expected = (m.evaluate(x, y, verbose=0, return_dict=True) for m in (loaded, model))
    assert found == expected and set(found) == {"loss", options["metrics"][0]}
    assert loaded.jit_compile is False
    loaded.fit(images(40), meta_data=images(16, seed=1), initial_epoch=2, epochs=3, batch_size=8,
               verbose=0)  # fmt: skip
    assert loaded.steps_per_execution == 5


def test_a_config_serves_twice(images):
    config = compiled(dense_net(), entropy_weight=0.5).get_config()
    for _ in range(2):
        assert MetaLabelNet.from_config(config).entropy_weight == 0.5

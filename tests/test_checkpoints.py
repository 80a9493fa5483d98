"""What is kept of each epoch, when, and which epoch is the best."""

import types

import numpy as np
import pytest
import tensorflow as tf
from runs import SHORT, model_of, names, splits_of

from mln_keras.command import checkpoints, results
from mln_keras.command.files import read_csv
from mln_keras.data.checks import ArgumentError
from mln_keras.training.phases import Phase

LOGS = {"learning_rate": 0.1, "loss": 0.2, "accuracy": 0.3}


def recorder_of(directory, meta, state=None, metrics=(), epochs=1):
    """A `RunRecorder` of a stand-in for a model: one of a single weight, `number`.

    Args:
        directory: the run's.
        meta: what measuring the meta set returns, (loss, accuracy), an epoch each.
        state: a checkpoint's.
        metrics: of its only phase.
        epochs: after how many of them it ends.
    """
    meta, number = iter(meta), tf.Variable(0)
    model = types.SimpleNamespace(
        number=number,
        phase=tf.constant(1),
        phases=lambda: (Phase("training", metrics=metrics),),
        phase_metrics=lambda: list(metrics),
        training_state=lambda: [number],
        save_weights=lambda path: path.write_text(str(int(number))),
        loop_length=6,
        chosen_from=1,
    )
    held_out = {"meta": lambda: next(meta), "test": lambda: (1.0, 0.5)}
    recorder = checkpoints.RunRecorder(directory, {"method": "any"}, held_out, state)
    recorder.set_model(model)
    recorder.set_params({"epochs": epochs, "steps": 3})
    return recorder


def train(directory, meta_accuracies, state=None, more_epochs=0):
    """Records epochs with these meta accuracies, whose weights are their number.

    Args:
        directory: the run's.
        meta_accuracies: an epoch each.
        state: a checkpoint's, to continue from.
        more_epochs: how many epochs are left to do after these.
    """
    done = len(state["rows"]) if state else 0
    end = done + len(meta_accuracies)
    meta = [(1.0, accuracy) for accuracy in meta_accuracies]
    recorder = recorder_of(directory, meta, state, epochs=end + more_epochs)
    for epoch in range(done, end):
        recorder.model.number.assign(epoch + 1)
        recorder.on_epoch_end(epoch, LOGS)


def test_the_columns_of_the_history_are_those_of_keras(tmp_path):
    recorder = recorder_of(tmp_path, [(0.6, 0.7)], metrics=("meta_loss",))
    recorder.on_epoch_end(0, LOGS | {"meta_loss": 0.4})
    assert recorder.rows == [
        {"epoch": 1, "phase": 1, "learning_rate": 0.1, "loss": 0.2, "accuracy": 0.3,
         "meta_loss": 0.4, "meta_set_loss": 0.6, "meta_accuracy": 0.7, "test_loss": 1.0,
         "test_accuracy": 0.5}
    ]  # fmt: skip


@pytest.mark.parametrize("keeps_samples", [False, True])
def test_soft_labels_change_by_the_mean_and_variance_of_their_differences(keeps_samples):
    """Also of a method that keeps the soft label of each sample."""
    counted = iter([(0.5, 0.5), (0.7, 0.6), (0.6, 0.6)])  # and of the first half
    images, labels = np.arange(5000)[:, None] * np.ones(4), np.arange(5000)

    def soft_labels(x, given_labels):
        if model.phase < 3:
            raise ArgumentError("soft_labels", "not yet begun")
        np.testing.assert_array_equal(x[:, 0], given_labels)
        value, half = next(counted)
        return np.where(x < 2500, half, value)

    model = types.SimpleNamespace(keeps_samples=keeps_samples)
    if keeps_samples:
        model.sample_soft_labels = lambda: soft_labels(images, labels)
    else:
        model.soft_labels = soft_labels
    callback = checkpoints.SoftLabelChange(images, labels)
    callback.set_model(model)
    found = []
    for epoch, number in enumerate((2, 3, 3)):
        model.phase = number
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, logs := {})
        found += logs["soft_label_change"], logs["soft_label_change_variance"]
    assert found == [None, None, *map(pytest.approx, (0.15, 0.05**2, 0.05, 0.05**2))]
    assert callback._before.shape == (2000, 4)


def test_the_best_epoch_survives_that_training_goes_on_later(tmp_path):
    before = []
    for meta_accuracies, last, best in (
        ([0.5, 0.9, 0.6], 3, 2),
        ([0.7, 0.9], 5, 2),  # a tie is no better
        ([0.1], 6, 2),
        ([0.95, 0.2], 8, 7),
    ):
        state, _ = checkpoints.load_checkpoint(tmp_path)
        train(tmp_path, meta_accuracies, state)
        before += meta_accuracies
        state, path = checkpoints.load_checkpoint(tmp_path)
        assert (state["epoch"], state["best_epoch"], path.read_text()) == (last, best, str(last))
        assert checkpoints.best_weights(tmp_path, best).read_text() == str(best)
        assert names(tmp_path / "checkpoint") == {path.parent.name, f"best-{best:04d}.weights.h5"}
        assert [row["meta_accuracy"] for row in state["rows"]] == before
        assert [row["epoch"] for row in state["rows"]] == [*range(1, last + 1)]
        assert results.summarize(state["rows"], None)["best_epoch"] == best


@pytest.mark.parametrize(("seconds", "saved", "best"), [(0, 4, 3), (1000, 1, 1)])
def test_between_two_checkpoints_are_seconds(tmp_path, monkeypatch, seconds, saved, best):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", seconds)
    train(tmp_path, [0.4, 0.5, 0.6, 0.3], more_epochs=1)
    state, _ = checkpoints.load_checkpoint(tmp_path)
    assert (state["epoch"], state["best_epoch"], len(state["rows"])) == (saved, best, saved)
    assert checkpoints.best_weights(tmp_path, best).read_text() == str(best)
    assert len(read_csv(tmp_path / "history.csv")) == 4


def test_of_several_best_epochs_between_two_checkpoints_the_last_is_saved(tmp_path):
    train(tmp_path, [0.1, 0.5, 0.9, 0.6])
    assert checkpoints.load_checkpoint(tmp_path)[0]["best_epoch"] == 3
    assert checkpoints.best_weights(tmp_path, 3).read_text() == "3"


def test_an_older_best_epoch_is_not_written_over_a_newer_one(tmp_path, monkeypatch):
    """Epoch 2 is kept in memory, 3 and 4 are better and have a checkpoint, and so has 5."""
    clock = iter([0, 1, 2, 100, 200, 300])
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(clock))
    train(tmp_path, [0.4, 0.5, 0.6, 0.7, 0.3])
    state, _ = checkpoints.load_checkpoint(tmp_path)
    assert (state["epoch"], state["best_epoch"]) == (5, 4)
    assert checkpoints.best_weights(tmp_path, 4).read_text() == "4"


def test_a_best_epoch_between_two_checkpoints_is_saved_whole(tmp_path):
    """With its optimizers, while the training that goes on keeps its own."""
    splits, model = splits_of(*SHORT), model_of(*SHORT)

    def state():
        parts = (model, model.optimizer, model.meta_optimizer)
        return [variable.numpy() for part in parts for variable in part.variables]

    states = []
    for epoch in (0, 1):
        model.fit(
            splits.train_images[:128], splits.given_labels[:128], epochs=epoch + 1,
            meta_data=(splits.meta_images, splits.meta_labels) if epoch else None,
            initial_epoch=epoch, batch_size=64, verbose=0,
        )  # fmt: skip
        states.append(state())
        if epoch == 0:
            best = checkpoints.values(model)
    assert sum((a != b).any() for a, b in zip(*states)) > 20
    checkpoints.save_checkpoint(tmp_path, model, {"epoch": 2, "best_epoch": 1}, best)
    np.testing.assert_equal(state(), states[1])
    _, last = checkpoints.load_checkpoint(tmp_path)
    for path, expected in zip((checkpoints.best_weights(tmp_path, 1), last), states):
        model.load_weights(path)
        np.testing.assert_equal(state(), expected)


def test_the_seconds_before_a_kill_count(tmp_path):
    train(tmp_path, [0.5])
    state, _ = checkpoints.load_checkpoint(tmp_path)
    assert state["seconds"] > 0
    train(tmp_path, [0.5], state | {"seconds": 1000.0})
    state, _ = checkpoints.load_checkpoint(tmp_path)
    assert 1000 < state["seconds"] < 2000


def test_the_step_that_spoils_weights_is_counted_in_steps_not_in_programs(tmp_path):
    recorder = recorder_of(tmp_path, [(np.nan, 1.0)])
    with pytest.raises(FloatingPointError, match="epoch 1, step 18, its last: the meta_set_loss"):
        recorder.on_epoch_end(0, LOGS)

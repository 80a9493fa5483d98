"""A run that is interrupted or killed goes on as if it had not been."""

import contextlib
import multiprocessing.forkserver
import os
import re
import signal
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from runs import (
    EPOCHS,
    FILES,
    OF_SOFT_LABELS,
    RUN,
    SHORT,
    main,
    names,
    read_history,
    read_result,
    splits_of,
    stamps,
    tree,
)

from mln_keras import MetaLabelNet
from mln_keras.command import checkpoints
from mln_keras.command.recipes import Recipe

# Each run gets a process of its own, forked from one that has imported TensorFlow and done nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tensorflow", "keras", "sklearn.datasets", "matplotlib.figure"])


@pytest.fixture(scope="module", autouse=True)
def processes():
    multiprocessing.forkserver.ensure_running()  # it imports TensorFlow while other tests run


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_resume_finishes_the_run(tmp_path, capsys, monkeypatch):
    """The last epoch, after the interruption, is the worst: the best one lies before it."""
    rates = (1e-2, 1e-2, 10.0)
    monkeypatch.setattr(Recipe, "learning_rate_at", lambda _, epoch: rates[epoch])
    flags = ("--dataset", "digits", "--epochs", 3, "--method", "cross_entropy")
    flags += ("--output_dir", tmp_path)

    def interrupt(recorder, batch, logs=None):
        if (len(recorder.rows), batch) == (2, 5):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.RunRecorder, "on_train_batch_end", interrupt)
        patch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0)
        try:
            status = main(*flags)
        except KeyboardInterrupt:  # which would end pytest
            pytest.fail("the interruption came through")
    assert status == 130
    err = capsys.readouterr().err
    assert re.fullmatch(r"\n?mln_keras.py: interrupted; .*--resume.*\n", err)
    assert names(tmp_path) == {"checkpoint", "history.csv"}
    before = read_history(tmp_path)
    assert len(before) == 2 and main(*flags) == 2

    capsys.readouterr()
    assert main(*flags, "--resume") == 0
    assert f"{tmp_path}, from epoch 3 to 3\n" in capsys.readouterr().out
    rows, result = read_history(tmp_path), read_result(tmp_path)
    assert rows[:2] == before and len(rows) == 3
    meta = [float(row["meta_accuracy"]) for row in rows]
    assert meta[2] < max(meta) == result["meta_accuracy"] and result["best_epoch"] < 3
    model, splits = keras.models.load_model(tmp_path / "model.keras"), splits_of(*flags)
    scores = model.evaluate(
        splits.test_images, splits.test_labels, batch_size=1000, verbose=0, return_dict=True
    )
    assert scores["accuracy"] == result["test_accuracy"] != result["last_test_accuracy"]


# ---- SIGKILL ------------------------------------------------------------------------------------


def kill_in(owner, name, when, do=lambda original, *arguments: None):
    """Arranges a SIGKILL in the calls of a function for which `when` holds, after `do`."""
    original = getattr(owner, name)

    def function(*arguments, **keywords):
        if when(*arguments):
            do(original, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, function)


def at_step(epoch, step):
    def when(recorder, batch):
        return (len(recorder.rows) + 1, batch + 1) == (epoch, step)

    kill_in(checkpoints.RunRecorder, "on_train_batch_end", when)


def at_weights(epoch, **options):
    def when(model, path):
        return f"{epoch:04d}" in str(path)

    kill_in(keras.Model, "save_weights", when, **options)


def at_renaming(name, **options):
    kill_in(os, "replace", lambda _, target: Path(target).name == name, **options)


def at_phase_2():
    kill_in(MetaLabelNet, "begin_phase", lambda model, number: number == 2)


def complete(original, *arguments):
    original(*arguments)


def write_half(save_weights, model, path):
    save_weights(model, path)
    os.truncate(path, path.stat().st_size // 2)


# While the first checkpoint is written.
FIRST_KILLS = {
    "half way through the first weights": lambda: at_weights(1, do=write_half),
    "after the first best weights are written": lambda: at_renaming(
        "best-0001.weights.h5", do=complete
    ),
    "before the first checkpoint is in place": lambda: at_renaming("epoch-0001"),
}
# In the order in which they come, and the epochs that the checkpoint then holds.
LATER_KILLS = {
    "in warm-up": (0, lambda: at_step(1, 5)),
    "before the weights are written": (1, lambda: at_weights(2)),
    "after the best weights are written": (
        1, lambda: at_renaming("best-0002.weights.h5", do=complete)
    ),
    "half way through the weights": (2, lambda: at_weights(3, do=write_half)),
    "on the switch": (3, at_phase_2),
    "in phase 2": (3, lambda: at_step(4, 5)),
    "between writing and renaming": (3, lambda: at_renaming("epoch-0004")),
    "before the history is written and older checkpoints are removed": (
        6, lambda: at_renaming("epoch-0006", do=complete)
    ),
    "before the last file is in place": (6, lambda: at_renaming("saved_model")),
    "before the result is in place": (6, lambda: at_renaming("result.json")),
}  # fmt: skip
KILLS = FIRST_KILLS | {name: kill for name, (_, kill) in LATER_KILLS.items()}


def in_a_process(flags, kill=None):
    """Runs the command line in a new process; returns its exit status, -9 for SIGKILL."""
    process = PROCESSES.Process(target=_child, args=([str(f) for f in flags], kill))
    process.start()
    process.join()
    return process.exitcode


def _child(flags, kill):
    checkpoints.CHECKPOINT_SECONDS = 0
    if kill:
        KILLS[kill]()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        sys.exit(main(*flags))


def weights(path):
    """Every array of an .h5 file by its name."""
    arrays = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return arrays


def assert_checkpoint(directory, epochs_done, rows):
    """Asserts that it holds that many epochs, whole, with their rows of the history."""
    state, path = checkpoints.load_checkpoint(directory)
    assert (state["epoch"] if state else 0) == epochs_done
    if state:
        weights(path)
        weights(checkpoints.best_weights(directory, state["best_epoch"]))
        kept = [{n: "" if v is None else str(v) for n, v in row.items()} for row in state["rows"]]
        assert kept == rows[:epochs_done]


def assert_same_run(directory, expected):
    """Asserts that two directories hold the same run, to the last bit."""
    assert tree(directory) == tree(expected)  # nothing half written stays
    for name in ("history.csv", "curves.png"):
        assert (directory / name).read_bytes() == (expected / name).read_bytes(), name
    last = Path("checkpoint", f"epoch-{EPOCHS:04d}", "model.weights.h5")
    best = Path("checkpoint", f"best-{read_result(expected)['best_epoch']:04d}.weights.h5")
    parts = ("classifier/", "label_head/", "optimizer/vars/2", "meta_optimizer/vars/2")
    for file in (last, best):
        found = weights(directory / file)
        assert all(any(name.startswith(part) for name in found) for part in parts)
        np.testing.assert_equal(found, weights(expected / file))
    for name, array in np.load(expected / "soft_labels.npz").items():
        np.testing.assert_array_equal(np.load(directory / "soft_labels.npz")[name], array)
    test_images = splits_of(*RUN).test_images
    predictions, expected_predictions = (
        keras.models.load_model(path / "model.keras").predict(test_images, verbose=0)
        for path in (directory, expected)
    )
    np.testing.assert_array_equal(predictions, expected_predictions)
    result, expected_result = (
        {n: value for n, value in read_result(path).items() if n not in ("flags", "seconds")}
        for path in (directory, expected)
    )
    assert result == expected_result


@pytest.mark.slow
def test_killed_at_every_moment_it_ends_as_the_unbroken_run(finished_run, tmp_path):
    directory = tmp_path / "run"
    flags = (*RUN, "--output_dir", directory, "--resume")
    rows = read_history(finished_run.directory)
    for kill, (epochs_done, _) in LATER_KILLS.items():
        assert in_a_process(flags, kill) == -signal.SIGKILL, f"never came: {kill}"
        assert not (directory / "result.json").exists(), kill
        assert_checkpoint(directory, epochs_done, rows)
    seconds = checkpoints.load_checkpoint(directory)[0]["seconds"]
    assert in_a_process(flags) == 0
    assert_same_run(directory, finished_run.directory)
    assert read_result(directory)["seconds"] == seconds  # no epoch was left to do


@pytest.mark.slow
def test_killed_at_its_first_checkpoint_it_can_begin_again_without_resume(tmp_path):
    flags = ("--dataset", "digits", "--epochs", 1, "--method", "cross_entropy")
    flags += ("--output_dir", tmp_path)
    for kill in FIRST_KILLS:
        assert in_a_process(flags, kill) == -signal.SIGKILL, f"never came: {kill}"
        assert names(tmp_path) == {"checkpoint"} and names(tmp_path / "checkpoint"), kill
    assert main(*flags) == 0
    assert names(tmp_path) == FILES - OF_SOFT_LABELS
    assert names(tmp_path / "checkpoint") == {"epoch-0001", "best-0001.weights.h5"}


@pytest.mark.slow
def test_killed_at_its_end_cross_entropy_only_writes_what_is_missing(tmp_path):
    flags = (*SHORT[:4], "--method", "cross_entropy", "--resume", "--output_dir", tmp_path)
    assert in_a_process(flags, "before the result is in place") == -signal.SIGKILL
    before = stamps(tmp_path / "checkpoint")
    assert in_a_process(flags) == 0
    assert stamps(tmp_path / "checkpoint") == before
    assert names(tmp_path) == FILES - OF_SOFT_LABELS
    assert len(read_history(tmp_path)) == 2 == read_result(tmp_path)["epochs"]

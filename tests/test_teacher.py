"""The teacher's probabilities: trained, cached, read from a file, and refused."""

import dataclasses
import os
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from mln_keras.data import digits, teacher
from mln_keras.data.checks import ArgumentError


def quick_classifier(calls=None):
    if calls is not None:
        calls.append(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype="uint8"),
            keras.layers.Rescaling(1 / 64),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


@pytest.mark.slow
def test_teacher_learns_the_clean_labels_is_reproducible_and_is_trained_once(tmp_path):
    source, calls = digits.load(), []

    def teach(folder, **options):
        return teacher.teacher_probabilities(
            source, lambda: quick_classifier(calls), tmp_path / folder, epochs=20, **options
        )

    first = teach("a/b")
    assert first.shape == (1197, 10) and first.dtype == np.float32
    np.testing.assert_allclose(first.sum(axis=1), 1, atol=1e-5)
    assert (first.argmax(axis=1) == source.train_labels).mean() > 0.85
    np.testing.assert_array_equal(teach("a/b"), first)
    assert len(calls) == 1
    np.testing.assert_array_equal(teach("c"), first)
    assert len(calls) == 2
    assert (teach("a/b", seed=1) != first).any()
    cold = teach("a/b", temperature=1.0)
    # Division of the logits by 4 raises each probability to 1/4, up to the row's sum.
    np.testing.assert_allclose(cold**0.25 / (cold**0.25).sum(1, keepdims=True), first, atol=1e-4)
    assert len(calls) == 4
    assert len(list((tmp_path / "a" / "b").iterdir())) == 3


def test_all_that_is_said_goes_where_the_caller_says(tmp_path, capfd):
    told = []
    for _ in range(2):
        teacher.teacher_probabilities(
            digits.load(), quick_classifier, tmp_path, epochs=2, say=told.append
        )
    (path,) = tmp_path.iterdir()
    assert told[0] == f"teacher: 2 epochs on the clean labels; {path} will keep its probabilities"
    assert [line.partition(", loss ")[0] for line in told[1:3]] == [
        "teacher: epoch 1", "teacher: epoch 2"
    ]  # fmt: skip
    assert told[3:] == [f"teacher: its probabilities are those of {path}"]
    assert capfd.readouterr().out == ""


def test_a_teacher_that_fails_leaves_no_cache(tmp_path, monkeypatch):
    def half(file, array):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(teacher.np, "save", half)
    with pytest.raises(ValueError, match=r"cannot be kept there \(disk full\); set KERAS_HOME"):
        teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [{"epochs": 0}, {"temperature": 0.0}])
def test_bad_teacher_options_are_refused_by_name(tmp_path, option):
    (name,) = option
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, **option)


def test_another_number_of_epochs_is_another_teacher(tmp_path):
    source = digits.load()
    first, second = (
        teacher.teacher_probabilities(source, quick_classifier, tmp_path, epochs=epochs)
        for epochs in (1, 2)
    )
    assert (first != second).any()
    assert len(list(tmp_path.iterdir())) == 2


def no_classifier():
    raise AssertionError("a teacher was trained")


def test_other_pixels_are_another_cache_file(tmp_path, capsys):
    source = digits.load()
    images = source.train_images.copy()
    images[-1, -1, -1, 0] ^= 1
    other = dataclasses.replace(source, train_images=images)
    written = []
    for one in (source, other):
        teacher.teacher_probabilities(one, quick_classifier, tmp_path, epochs=1)
        (new,) = set(tmp_path.iterdir()) - set(written)
        written.append(new)
        assert f"teacher: 1 epochs on the clean labels; {new} will" in capsys.readouterr().out
    for one, path in zip((source, other), written):
        found = teacher.teacher_probabilities(one, no_classifier, tmp_path, epochs=1)
        np.testing.assert_array_equal(found, np.load(path))
        assert capsys.readouterr().out == f"teacher: its probabilities are those of {path}\n"
    same = dataclasses.replace(source, train_images=np.asfortranarray(source.train_images))
    teacher.teacher_probabilities(same, no_classifier, tmp_path, epochs=1)


def test_a_damaged_cache_file_is_to_be_deleted(tmp_path):
    teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)
    (path,) = tmp_path.iterdir()
    os.truncate(path, 900)
    with pytest.raises(ValueError, match="not a whole .npy.*; delete it, ") as error:
        teacher.teacher_probabilities(digits.load(), no_classifier, tmp_path, epochs=1)
    assert str(error.value).startswith(f"{path} ") and "\n" not in str(error.value)
    path.unlink()
    teacher.teacher_probabilities(digits.load(), quick_classifier, tmp_path, epochs=1)


@pytest.mark.parametrize("folder", ["file", "file/below", "locked"])
def test_a_cache_that_cannot_be_written_is_refused_before_the_teacher_is_trained(
    tmp_path, monkeypatch, folder
):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(teacher.os, "access", lambda path, mode: Path(path).name != "locked")
    with pytest.raises(ValueError, match="cannot be kept there .*KERAS_HOME") as error:
        teacher.teacher_probabilities(digits.load(), no_classifier, tmp_path / folder, epochs=1)
    assert str(error.value).startswith(f"{tmp_path / folder}: ") and "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def write_npy(array, **options):
    return lambda path: np.save(path, array, **options)


SOURCE = types.SimpleNamespace(train_labels=np.zeros(60, np.int32), num_classes=4)
GOOD = np.full((60, 4), 0.25, np.float64)


def test_probabilities_are_read_from_a_file(tmp_path):
    expected = np.random.default_rng(0).dirichlet(np.ones(4), 60)
    np.save(tmp_path / "p.npy", expected)
    probabilities = teacher.load_probabilities(tmp_path / "p.npy", SOURCE)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_text("a,b\n1,2\n"), "not a whole .npy"),
        (lambda path: path.write_bytes(b""), "not a whole .npy"),
        (lambda path: np.savez(path.open("wb"), GOOD), "not a whole .npy"),
        (write_npy(GOOD.astype(object), allow_pickle=True), "not a whole .npy"),
        (lambda path: (np.save(path, GOOD), os.truncate(path, 700)), "not a whole .npy"),
        (write_npy(GOOD[:59]), r"shape \(60, 4\), received \(59, 4\)"),
        (write_npy(GOOD[:, :3]), r"shape \(60, 4\), received \(60, 3\)"),
        (write_npy(GOOD.ravel()), r"shape \(60, 4\), received \(240,\)"),
        (write_npy(np.ones((60, 4), int)), "floats, received int64"),
        (write_npy(GOOD * np.nan), "finite"),
        (write_npy(GOOD + [0.5, -0.5, 0, 0]), "below 0"),
        (write_npy(GOOD * 2), "sum to 1"),
    ],
)
def test_files_without_probabilities_get_one_line_that_names_them(tmp_path, write, message):
    path = tmp_path / "p.npy"
    write(path)
    with pytest.raises(ArgumentError, match=message) as error:
        teacher.load_probabilities(path, SOURCE)
    assert str(error.value).startswith(f"noise_probs: {path}") and "\n" not in str(error.value)

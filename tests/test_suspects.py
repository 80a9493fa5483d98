"""Which labels are wrong, how many, and the corrections of a person who has looked."""

import csv
import sys

import numpy as np
import pytest
from runs import SHORT, main, read_result, splits_of

from mln_keras.data import corrections, suspects
from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles

PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.0, 0.9, 0.1]],
    np.float32,
)
LABELS = np.array([1, 1, 0, -1, 0])
NAMES = ("cat", "dog", "owl")


def test_the_least_likely_given_label_comes_first_and_no_label_is_left_out():
    paths = [f"{i}.png" for i in range(5)]
    found = suspects.find(PROBABILITIES, LABELS, NAMES, paths)
    assert found[["index", "file", "given", "suggested"]].tolist() == [
        (4, "4.png", "cat", "dog"), (2, "2.png", "cat", "dog"),
        (0, "0.png", "dog", "cat"), (1, "1.png", "dog", "owl"),
    ]  # fmt: skip
    np.testing.assert_array_equal(found["given_probability"], np.float32([0, 0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(found["suggested_probability"], np.float32([0.9, 0.8, 0.7, 0.6]))


def test_ties_go_by_the_suggested_probability_then_by_index():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.2, 0.7, 0.1], [0.2, 0.5, 0.3]])
    found = suspects.find(probabilities, [0, 0, 0])
    assert found["index"].tolist() == [1, 0, 2] and found["given"].tolist() == ["0"] * 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"probabilities": PROBABILITIES * 2}, "probabilities"),
        ({"given_labels": LABELS[:4]}, "probabilities"),
        ({"given_labels": LABELS + 1.5}, "given_labels"),
        ({"given_labels": LABELS + 2}, "given_labels"),
        ({"given_labels": np.full(5, -1)}, "given_labels"),
        ({"class_names": ("cat", "cat", "owl")}, "class_names"),
        ({"class_names": ("cat", "owl")}, "class_names"),
        ({"paths": ["a"]}, "paths"),
    ],
)
def test_what_does_not_fit_is_refused(change, name):
    with pytest.raises(ArgumentError) as error:
        suspects.find(**({"probabilities": PROBABILITIES, "given_labels": LABELS} | change))
    assert error.value.name == name and "\n" not in str(error.value)


class Predicts:
    def predict(self, images, verbose):
        return PROBABILITIES[: len(images)]


def test_one_call_takes_a_model_and_image_files_with_their_names():
    files = ImageFiles(["a.png", "b.png"], size=(8, 8))
    found = suspects.of_model(Predicts(), files, LABELS[:2], NAMES)
    assert found["file"].tolist() == ["a.png", "b.png"]
    found = suspects.of_model(Predicts(), np.zeros((2, 8, 8, 1)), LABELS[:2])
    assert found["file"].tolist() == ["", ""]


def test_the_share_of_wrong_labels_by_counting():
    joint = suspects.counted_joint(PROBABILITIES, LABELS)
    np.testing.assert_array_equal(joint, np.array([[0, 2, 0], [1, 0, 1], [0, 0, 0]]) / 4)
    assert suspects.share_of_wrong(joint) == 1
    expected = [[0, 1, 0], [1, 0, 1], [0, 0, 0]]  # P(given | right): a column a right label
    np.testing.assert_array_equal(suspects.noise_matrix(joint), expected)


def test_the_joint_by_confident_learning():
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, 3000)
    flips = rng.random(3000) < 0.3
    given = np.where(flips, (right + 1) % 3, right)
    probabilities = np.full((3000, 3), 0.05) + 0.85 * np.eye(3)[right]
    given[:100] = -1
    found = suspects.noise_matrix(suspects.confident_joint(probabilities, given))
    expected = 0.7 * np.eye(3) + 0.3 * np.roll(np.eye(3), 1, axis=0)
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_confident_learning_needs_cleanlab(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(ImportError):
        suspects.confident_joint(PROBABILITIES, LABELS)


# ---- corrections ----------------------------------------------------------------------------


def written(path, *lines, header="index,file,given,action,label"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_corrections_keep_relabel_and_drop(tmp_path):
    lines = ("0,,dog,keep,", "1,x.png,dog,relabel,owl", "2,,cat,drop,", "2,,cat,drop,")
    path = written(tmp_path / "c.csv", *lines)
    labels = corrections.apply(path, LABELS, NAMES)
    np.testing.assert_array_equal(labels, np.int32([1, 2, -1, -1, 0]), strict=True)
    np.testing.assert_array_equal(LABELS, [1, 1, 0, -1, 0])


def test_corrections_name_the_files_of_the_data_where_they_name_any(tmp_path):
    files = [f"/here/{name}.png" for name in "abcde"]
    path = written(tmp_path / "c.csv", "0,/there/a.png,dog,drop,", "1,,dog,relabel,owl")
    assert corrections.apply(path, LABELS, NAMES, files)[:2].tolist() == [-1, 2]
    path = written(tmp_path / "c.csv", "1,,dog,keep,", "0,/here/b.png,dog,drop,")
    with pytest.raises(ArgumentError, match="line 3: the file of index 0 is .*b.png, in .*a.png$"):
        corrections.apply(path, LABELS, NAMES, files)


WRONG = {
    "twice": (["0,,dog,keep,", "0,,dog,drop,"], "line 3: index 0 comes twice"),
    "given": (["0,,cat,keep,"], "the given label of index 0 is cat, in the data dog"),
    "no label": (["3,,cat,keep,"], "the given label of index 3 is cat, in the data none"),
    "class": (["0,,dog,relabel,bee"], "one of the classes 'cat', 'dog', 'owl'; found 'bee'"),
    "no class": (["0,,dog,relabel,"], "one of the classes 'cat', 'dog', 'owl'; found ''"),
    "outside": (["5,,dog,keep,"], "expected an index in [0, 5), found '5'"),
    "negative": (["-1,,dog,keep,"], "expected an index in [0, 5), found '-1'"),
    "action": (["0,,dog,burn,"], "expected an action of keep, relabel, drop, found 'burn'"),
    "short": (["0"], "one of the classes 'cat', 'dog', 'owl'; found ''"),
}


@pytest.mark.parametrize(("lines", "text"), WRONG.values(), ids=WRONG)
def test_contradictions_are_one_line(tmp_path, lines, text):
    path = written(tmp_path / "c.csv", *lines)
    with pytest.raises(ArgumentError) as error:
        corrections.apply(path, LABELS, NAMES)
    line = str(error.value)
    assert line.startswith(f"corrections: {path}") and text in line and "\n" not in line


def test_a_file_that_is_none_is_refused_before_training(refused, tmp_path):
    assert "cannot be read: No such file" in refused(*SHORT, "--corrections", tmp_path / "none.csv")
    path = written(tmp_path / "c.csv", header="index,action,label")
    assert "--corrections: " in (line := refused(*SHORT, "--corrections", path))
    assert "found no given" in line
    path.write_bytes(b"\xff\xfe\x00")
    assert "no CSV file in UTF-8" in refused(*SHORT, "--corrections", path)


def review(directory, count, path):
    """Plays a reviewer who knows the right labels and looks at the worst `count` of a run."""
    right = splits_of(*SHORT).clean_labels
    with open(directory / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    decided = []
    for row in rows:
        label = str(right[int(row["index"])])
        action = "keep," if label == row["given"] else f"relabel,{label}"
        decided.append(f"{row['index']},,{row['given']},{action}")
    return written(path, *decided)


def test_the_whole_circle(tmp_path, capsys):
    first = tmp_path / "first"
    assert main(*SHORT, "--output_dir", first) == 0
    with open(first / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    splits = splits_of(*SHORT)
    assert [int(row["rank"]) for row in rows] == list(range(1, 1198))
    assert sorted(int(row["index"]) for row in rows) == list(range(1197))
    before = read_result(first)
    wrong = np.mean([row["given"] != row["suggested"] for row in rows])
    assert before["noise_ratio_estimated"] == pytest.approx(wrong)

    path = review(first, 200, tmp_path / "corrections.csv")
    flags = (*SHORT, "--corrections", path, "--output_dir", tmp_path / "second")
    assert main(*flags) == 0
    after = read_result(tmp_path / "second")
    seen = [int(row["index"]) for row in rows[:200]]
    mended = np.sum(splits.given_labels[seen] != splits.clean_labels[seen])
    assert mended > 80
    expected = before["noise_ratio_actual"] - mended / 1197
    assert after["noise_ratio_actual"] == pytest.approx(expected)

    path.write_text(path.read_text() + f"{rows[200]['index']},,{rows[200]['given']},drop,\n")
    assert main(*flags) == 2  # other decisions are another run
    assert "holds another run (--corrections was" in capsys.readouterr().err

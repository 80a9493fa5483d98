"""Noise models, alone and by name: exact counts, who is hit, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mln_keras.data import corruption, digits, noise, teacher

AUTHORS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def fresh_keras():
    """In place of conftest's, which takes time: nothing here computes with Keras."""


def flip_counts(clean, noisy, num_classes):
    """Returns (C, C) counts of clean label i, noisy label j."""
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (clean, noisy), 1)
    return counts


def shuffled_labels(class_sizes):
    return np.random.default_rng(7).permutation(np.repeat(np.arange(len(class_sizes)), class_sizes))


def probabilities_for(labels, num_classes):
    return np.random.default_rng(5).dirichlet(np.ones(num_classes), len(labels))


BALANCED, IMBALANCED = shuffled_labels([500] * 10), shuffled_labels([999, 50, 3, 1, 0, 401])
PAIR_FLIP = noise.transition_matrix({i: (i + 1) % 10 for i in range(10)}, 0.4, 10)
MODELS = {
    "uniform": lambda labels, seed: noise.uniform(labels, 0.4, 10, seed),
    "class_dependent": lambda labels, seed: noise.class_dependent(labels, PAIR_FLIP, seed),
    "feature_dependent": lambda labels, seed: noise.feature_dependent(
        labels, 0.4, np.eye(10)[labels], seed
    ),
}


# Per ordered pair, by hand: floor(n_i * r / (C - 1)).
@pytest.mark.parametrize(
    ("ratio", "per_pair"), [(0.0, 0), (0.2, 11), (0.4, 22), (0.54, 30), (0.63, 35), (1.0, 55)]
)
def test_uniform_flips_each_ordered_pair_equally(ratio, per_pair):
    counts = flip_counts(BALANCED, noise.uniform(BALANCED, ratio, 10, seed=3), 10)
    expected = np.full((10, 10), per_pair)
    np.fill_diagonal(expected, 500 - 9 * per_pair)
    np.testing.assert_array_equal(counts, expected)


def test_uniform_counts_follow_the_size_of_each_class():
    counts = flip_counts(IMBALANCED, noise.uniform(IMBALANCED, 0.5, 6, seed=3), 6)
    off_diagonal = counts.sum(axis=1) - np.diag(counts)
    np.testing.assert_array_equal(off_diagonal, [5 * 99, 5 * 5, 0, 0, 0, 5 * 40])
    assert {counts[0, j] for j in range(1, 6)} == {99}


@pytest.mark.parametrize(
    ("ratio", "flipped"), [(0.0, 0), (0.29, 29), (0.57, 57), (0.58, 58), (0.999, 99), (1.0, 100)]
)
def test_a_whole_count_survives_floating_point(ratio, flipped):
    labels = np.zeros(100, int)
    noisy = noise.class_dependent(labels, noise.transition_matrix({0: 2}, ratio, 3), seed=0)
    np.testing.assert_array_equal(np.bincount(noisy, minlength=3), [100 - flipped, 0, flipped])
    noisy = noise.uniform(labels, ratio, 2, seed=0)
    assert np.count_nonzero(noisy) == flipped
    noisy = noise.feature_dependent(labels, ratio, np.full((100, 2), 0.5), seed=0)
    assert np.count_nonzero(noisy) == flipped


def test_class_dependent_follows_the_matrix():
    transition = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.999, 0.0, 0.001]])
    labels = shuffled_labels([11, 400, 77])
    counts = flip_counts(labels, noise.class_dependent(labels, transition, seed=1), 3)
    np.testing.assert_array_equal(counts, [[6, 3, 2], [0, 400, 0], [76, 0, 1]])


def test_transition_matrix_of_a_class_map_leaves_other_classes_clean():
    np.testing.assert_allclose(
        noise.transition_matrix({0: 2, 2: 1}, 0.25, 3),
        [[0.75, 0, 0.25], [0, 1, 0], [0, 0.25, 0.75]],
    )


def test_class_dependent_hits_samples_without_regard_to_their_position():
    labels = np.zeros(10_000, int)
    noisy = noise.class_dependent(labels, noise.transition_matrix({0: 1}, 0.4, 2), seed=0)
    # 4000 of 10000 without replacement: the first half holds 2000 +- 24.5 of them.
    assert abs(np.count_nonzero(noisy[:5000]) - 2000) < 6 * 24.5


@pytest.mark.parametrize("model", MODELS)
def test_models_are_pure_functions_of_their_arguments(model):
    labels = BALANCED.astype(np.uint8)
    before = labels.copy()
    np.random.seed(0)
    first = MODELS[model](labels, 11)
    np.random.seed(1)
    np.testing.assert_array_equal(MODELS[model](labels, 11), first)
    np.testing.assert_array_equal(labels, before)
    assert first.dtype == np.int32 and not np.shares_memory(first, labels)
    assert (MODELS[model](labels, 12) != first).any()
    assert (first != labels).any()


# Labels are 0 0 1 1 2 2 0; the teacher is wrong about samples 1 (says 2), 3 (0) and 4 (1).
HAND_LABELS = np.array([0, 0, 1, 1, 2, 2, 0])
HAND_PROBABILITIES = np.array(
    [
        [0.60, 0.10, 0.30],  # right, second class 2 at .30
        [0.35, 0.25, 0.40],  # wrong at .40, less than sample 2's second class
        [0.45, 0.50, 0.05],  # right, second class 0 at .45
        [0.90, 0.05, 0.05],  # wrong at .90
        [0.10, 0.70, 0.20],  # wrong at .70
        [0.05, 0.15, 0.80],  # right, second class 1 at .15
        [0.60, 0.30, 0.10],  # right, second class 1 at .30, a tie with sample 0
    ]
)
HAND_ORDER = [(3, 0), (4, 1), (1, 2), (2, 0), (6, 1), (0, 2), (5, 1)]


# Of tied classes the highest number, of tied samples the last.
TIED_LABELS = np.array([0, 2, 0, 1, 0, 1])
TIED_PROBABILITIES = np.array(
    [
        [0.50, 0.25, 0.25, 0.00],  # right, second class 1 or 2 at .25
        [0.50, 0.00, 0.25, 0.25],  # wrong at .50
        [0.50, 0.00, 0.25, 0.25],  # right, second class 2 or 3 at .25, a tie with sample 0
        [0.50, 0.25, 0.25, 0.00],  # wrong at .50, a tie with sample 1
        [0.50, 0.50, 0.00, 0.00],  # predicted 0 or 1: 1, so wrong at .50, a tie with 1 and 3
        [0.50, 0.50, 0.00, 0.00],  # predicted 0 or 1: 1, so right, second class 0 at .50
    ]
)
TIED_ORDER = [(4, 1), (3, 0), (1, 0), (5, 0), (2, 3), (0, 2)]


@pytest.mark.parametrize(
    ("labels", "probabilities", "order", "count"),
    [(HAND_LABELS, HAND_PROBABILITIES, HAND_ORDER, count) for count in range(8)]
    + [(TIED_LABELS, TIED_PROBABILITIES, TIED_ORDER, count) for count in range(7)],
)
def test_feature_dependent_flips_in_the_order_worked_out_by_hand(
    labels, probabilities, order, count
):
    before = probabilities.copy()
    expected = labels.copy()
    for sample, target in order[:count]:
        expected[sample] = target
    noisy = noise.feature_dependent(labels, count / len(labels), probabilities, seed=0)
    np.testing.assert_array_equal(noisy, expected)
    np.testing.assert_array_equal(probabilities, before)


@pytest.mark.parametrize("label", [0, 2])  # the teacher is right, wrong
def test_feature_dependent_takes_tied_samples_from_the_end(label):
    labels = np.full(1000, label)
    probabilities = np.tile([0.6, 0.2, 0.0, 0.2], (1000, 1))
    noisy = noise.feature_dependent(labels, 0.4, probabilities, seed=0)
    target = 3 if label == 0 else 0
    np.testing.assert_array_equal(noisy, np.repeat([label, target], [600, 400]))


def test_feature_dependent_sends_a_zero_second_probability_to_a_random_other_class():
    labels = np.repeat([1, 3], 2000)
    certain = np.eye(5)[labels]
    certain[7] = [0.4, 0.6, 0, 0, 0]
    noisy = noise.feature_dependent(labels, 1.0, certain, seed=0)
    assert noisy[7] == 0
    counts = flip_counts(labels, noisy, 5)
    assert counts[1, 1] == counts[3, 3] == 0
    others = np.concatenate([counts[1, [0, 2, 3, 4]], counts[3, [0, 1, 2, 4]]])
    assert (abs(others - 500) < 6 * np.sqrt(2000 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.55, 1.0])
def test_feature_dependent_count_is_exact_on_imbalanced_labels(ratio):
    probabilities = probabilities_for(IMBALANCED, 6).astype(np.float32)
    noisy = noise.feature_dependent(IMBALANCED, ratio, probabilities, seed=0)
    assert np.count_nonzero(noisy != IMBALANCED) == int(1454 * ratio)


# Flipped labels by their new class 0..9, as the authors' program has them with stable sorts.
AUTHORS_COUNTS = {
    0.2: [997, 734, 1273, 1400, 728, 1934, 1130, 558, 752, 494],
    0.4: [2333, 977, 1970, 1861, 940, 2945, 1265, 1534, 3056, 3119],
    0.6: [2584, 981, 2034, 1868, 975, 3071, 1331, 1696, 4369, 11091],
    0.8: [2590, 982, 2035, 1873, 975, 3145, 1331, 1696, 5203, 20170],
}


@pytest.mark.skipif(not AUTHORS.exists(), reason=f"the authors' probabilities are not at {AUTHORS}")
@pytest.mark.parametrize(("ratio", "counts"), AUTHORS_COUNTS.items())
def test_the_authors_probabilities_give_their_count_of_each_class(ratio, counts):
    probabilities = np.load(AUTHORS / "cifar10_student_probs.npy")
    with np.load(AUTHORS / "cifar10n_labels.npz") as labels:
        clean = labels["clean_label"]
    noisy = noise.feature_dependent(clean, ratio, probabilities, seed=0)
    flipped = noisy[noisy != clean]
    np.testing.assert_array_equal(np.bincount(flipped, minlength=10), counts)
    # Their teacher is 89.4 % right, so from 20 % on every sample that it gets wrong is flipped.
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != clean
    np.testing.assert_array_equal(noisy[wrong], predicted[wrong])


LABELS = np.array([0, 1, 2])
UNSURE = np.full((3, 3), 1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.uniform(LABELS, 1.01, 3, 0), r"noise_ratio: .*\[0, 1\].* 1.01"),
        (lambda: noise.uniform(LABELS, np.nan, 3, 0), r"noise_ratio: .*\[0, 1\].* nan"),
        (lambda: noise.uniform(LABELS, 0.2, 2, 0), r"labels: .*\[0, 2\).* 2"),
        (lambda: noise.uniform(-LABELS, 0.2, 3, 0), r"labels: .*\[0, 3\).* -1"),
        (lambda: noise.uniform(LABELS / 1, 0.2, 3, 0), "labels: .*float64"),
        (lambda: noise.uniform(LABELS[:, None], 0.2, 3, 0), r"labels: .*\(3, 1\)"),
        (lambda: noise.uniform(LABELS * 0, 0.2, 1, 0), "num_classes: expected at least 2"),
        (lambda: noise.transition_matrix({0: 1}, -0.1, 3), r"noise_ratio: .*-0.1"),
        (lambda: noise.transition_matrix({0: 3}, 0.1, 3), r"flips: .*\[0, 3\).* 0 -> 3"),
        (lambda: noise.transition_matrix({1: 1}, 0.1, 3), r"flips: .* 1 -> 1"),
        (lambda: noise.class_dependent(LABELS, np.eye(3)[:2], 0), r"transition: .*\(2, 3\)"),
        (lambda: noise.class_dependent(LABELS, np.eye(2), 0), r"labels: .*\[0, 2\)"),
        (
            lambda: noise.class_dependent(LABELS, np.eye(3) + np.diag([0, 0, 0.01]), 0),
            "transition: .*sum to 1.* 1.01 in row 2",
        ),
        (
            lambda: noise.class_dependent(LABELS, [[2, -1, 0], [0, 1, 0], [0, 0, 1]], 0),
            "transition: .*below 0",
        ),
        (lambda: noise.feature_dependent(LABELS, -0.5, UNSURE, 0), "noise_ratio: .*-0.5"),
        (lambda: noise.feature_dependent(LABELS + 1, 0.5, UNSURE, 0), r"labels: .*\[0, 3\).* 3"),
        (
            lambda: noise.feature_dependent(LABELS, 0.5, UNSURE[:2], 0),
            r"probabilities: expected shape \(3, C >= 2\), received \(2, 3\)",
        ),
        (
            lambda: noise.feature_dependent(LABELS, 0.5, np.ones((3, 1)), 0),
            r"probabilities: .*shape",
        ),
        (lambda: noise.feature_dependent(LABELS, 0.5, np.eye(3, dtype=int), 0), "floats.* int64"),
        (lambda: noise.feature_dependent(LABELS, 0.5, UNSURE * np.inf, 0), "finite"),
        (
            lambda: noise.feature_dependent(LABELS, 0.5, UNSURE + [0.5, -0.5, 0], 0),
            "probabilities: expected none below 0",
        ),
        (
            lambda: noise.feature_dependent(LABELS, 0.5, UNSURE * [[1], [1.02], [1]], 0),
            "probabilities: .*sum to 1.* 1.02 in row 1",
        ),
    ],
)
def test_bad_arguments_get_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_rows_that_are_off_by_rounding_are_probabilities():
    noise.check_probabilities((UNSURE * 1.009).astype(np.float16), 3, 3)


# --- from the name of a noise to noisy labels


def corrupt(source, name, ratio, seed=0, **options):
    return corruption.corrupt(source, name, ratio, seed, **({"build_teacher": None} | options))


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("none", 0.0), ("uniform", 0.2), ("uniform", 0.55), ("class_dependent", 0.2),
     ("class_dependent", 0.55)],
)  # fmt: skip
def test_noise_by_name_makes_the_right_number_wrong(name, ratio):
    source = digits.load()
    clean = source.train_labels.copy()
    noisy = corrupt(source, name, ratio, seed=3)
    wrong = noisy != clean
    ways = 9 if name == "uniform" else 1
    expected = ways * (np.bincount(clean) * ratio / ways + 1e-6).astype(int)
    np.testing.assert_array_equal(np.bincount(clean[wrong], minlength=10), expected)
    if name == "class_dependent":
        np.testing.assert_array_equal(noisy[wrong], (clean[wrong] + 1) % 10)
    elif name == "uniform":
        assert set((noisy - clean)[wrong] % 10) == set(range(1, 10))
    assert noisy.dtype == np.int32 and not np.shares_memory(noisy, source.train_labels)
    np.testing.assert_array_equal(source.train_labels, clean)


@pytest.mark.parametrize("name", ["uniform", "class_dependent"])
def test_noise_by_name_is_a_function_of_the_seed(name):
    source = digits.load()
    first, same, other = (corrupt(source, name, 0.4, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert ((first != source.train_labels) != (other != source.train_labels)).any()


def test_feature_dependent_noise_by_name_follows_the_file(tmp_path):
    source = digits.load()
    clean = source.train_labels
    second = np.random.default_rng(0).uniform(0.1, 0.4, len(clean)).astype(np.float32)
    probabilities = np.zeros((len(clean), 10), np.float32)
    probabilities[np.arange(len(clean)), clean] = 1 - second
    probabilities[np.arange(len(clean)), (clean + 3) % 10] = second
    np.save(tmp_path / "p.npy", probabilities)
    for ratio, count in ((0.2, 239), (0.55, 658)):
        noisy = corrupt(source, "feature_dependent", ratio, probabilities_file=tmp_path / "p.npy")
        nearest = np.argsort(-second, kind="stable")[:count]
        expected = clean.copy()
        expected[nearest] = (clean[nearest] + 3) % 10
        np.testing.assert_array_equal(noisy, expected)


def test_the_seed_reaches_feature_dependent_noise(tmp_path):
    source = digits.load()
    np.save(tmp_path / "p.npy", np.eye(10)[source.train_labels])
    first, same, other = (
        corrupt(source, "feature_dependent", 0.4, seed, probabilities_file=tmp_path / "p.npy")
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("keras_home", ["set", None])
def test_without_a_file_a_teacher_of_the_seed_is_asked(tmp_path, monkeypatch, keras_home):
    source, calls = digits.load(), []

    def probabilities(*arguments, say):
        calls.append((*arguments, say))
        return np.eye(10)[(source.train_labels + 4) % 10]

    monkeypatch.setattr(teacher, "teacher_probabilities", probabilities)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_HOME", raising=False)
    home = tmp_path / ".keras"
    if keras_home:
        home = tmp_path / keras_home
        monkeypatch.setenv("KERAS_HOME", str(home))
    noisy = corrupt(
        source, "feature_dependent", 1.0, seed=5, build_teacher=lambda *of: of, network="tiny",
        say=repr,
    )  # fmt: skip
    np.testing.assert_array_equal(noisy, (source.train_labels + 4) % 10)
    ((given, build, *rest),) = calls
    assert given is source and build() == (10, (8, 8, 1))
    assert rest == [str(home / "mln_keras_teachers" / "tiny"), 5, repr]


def with_human_labels(change):
    """The digits with human labels at 0.17 and 0.4, `change` of the right ones and of a folder."""
    source = digits.load()
    human = {ratio: lambda folder, r=ratio: change(source.train_labels, folder, r)
             for ratio in (0.17, 0.4)}  # fmt: skip
    return dataclasses.replace(source, human_labels=human)


def test_human_noise_is_the_label_set_of_that_ratio():
    source = with_human_labels(lambda right, *given: np.roll(right, {("there", 0.17): 1}[given]))
    found = corrupt(source, "human", 0.17, data_dir="there")
    np.testing.assert_array_equal(found, np.roll(source.train_labels, 1))


def test_human_labels_of_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match=r"^human labels: expected .* \(1197,\)"):
        corrupt(with_human_labels(lambda right, *_: right[1:]), "human", 0.4)


@pytest.mark.parametrize(
    ("name", "ratio", "message"),
    [("salt", 0.4, "^noise: expected one of none, uniform, .*, received 'salt'$"),
     ("human", 0.2, "^noise_ratio: human labels exist for 0.17, 0.4, received 0.2$"),
     ("own", None, "^noise: digits has right labels; expected none, uniform, .* human$")],
)  # fmt: skip
def test_noise_that_does_not_exist_gets_one_line(name, ratio, message):
    with pytest.raises(ValueError, match=message):
        corrupt(with_human_labels(None), name, ratio)


def test_a_data_set_without_human_labels_has_no_such_noise():
    with pytest.raises(ValueError, match="^noise: digits has no human labels$"):
        corrupt(digits.load(), "human", 0.4)


@pytest.mark.parametrize("name", corruption.MADE)
def test_wrong_labels_are_not_made_wrong_again(name):
    source = dataclasses.replace(digits.load(), has_right_labels=False)
    with pytest.raises(ValueError, match=f"^noise: digits has .*; expected own, received {name}$"):
        corrupt(source, name, 0.4)
    np.testing.assert_array_equal(corrupt(source, "own", None), source.train_labels)


def test_a_data_set_without_flips_has_no_class_dependent_noise():
    with pytest.raises(ValueError, match="^noise: digits has no class-dependent one"):
        corrupt(dataclasses.replace(digits.load(), flips={}), "class_dependent", 0.4)

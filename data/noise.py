"""Label noise as pure functions of their arguments: clean labels in, noisy labels out.

Every count is exact, not drawn: a share r of n samples means int(n * r) of them. Which samples are
hit is drawn from `numpy.random.default_rng(seed)`. `uniform` and `feature_dependent` are those of
Section IV-A; `class_dependent` is what the field uses besides, the paper does not.
"""

import numpy as np

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError

# int(100 * 0.29) is 28 in floating point; no meant fraction is this close below an integer.
_ROUNDING = 1e-6


def uniform(labels, ratio, num_classes, seed):
    """Flips labels to any other class, each ordered pair of classes equally (Section IV-A).

    Args:
        labels: clean labels, integers (N,) in [0, num_classes).
        ratio: share of labels to flip, in [0, 1].
        num_classes: C, at least 2.
        seed: non-negative integer.

    Returns:
        int32 (N,). Of the n_i samples of class i exactly int(n_i * ratio / (C - 1)) get label j,
        for each j != i; so up to C - 1 flips a class are rounded off.

    Raises:
        ArgumentError: where an argument is outside what is said above.
    """
    _check_ratio(ratio)
    checks.at_least("num_classes", num_classes, 2)
    transition = np.full((num_classes, num_classes), ratio / (num_classes - 1))
    np.fill_diagonal(transition, 1 - ratio)
    return class_dependent(labels, transition, seed)


def transition_matrix(flips, ratio, num_classes):
    """Returns the float64 (C, C) transition matrix of a class map, for `class_dependent`.

    Args:
        flips: dict of class -> the other class that a share `ratio` of it turns into. A class that
            is not in it stays clean. `{i: (i + 1) % C for i in range(C)}` is pair-flip noise.
        ratio: share of the labels of each mapped class to flip, in [0, 1].
        num_classes: C.

    Raises:
        ArgumentError: where the ratio is outside [0, 1], or a class is outside [0, C) or turns into
            itself.
    """
    _check_ratio(ratio)
    transition = np.eye(num_classes)
    for source, target in flips.items():
        if source == target or not {source, target} <= set(range(num_classes)):
            raise ArgumentError(
                "flips",
                f"expected a class to turn into another one in [0, {num_classes}), "
                f"received {source} -> {target}",
            )
        transition[source, source] = 1 - ratio
        transition[source, target] = ratio
    return transition


def class_dependent(labels, transition, seed):
    """Flips labels by a class transition matrix.

    Args:
        labels: clean labels, integers (N,) in [0, C).
        transition: floats (C, C), T[i, j] the share of class i that gets label j; rows sum to 1.
        seed: non-negative integer.

    Returns:
        int32 (N,). Of the n_i samples of class i exactly int(n_i * T[i, j]) get label j != i.

    Raises:
        ArgumentError: where the labels or the matrix are outside what is said above.
    """
    transition = np.asarray(transition, np.float64)
    if transition.ndim != 2 or transition.shape[0] != transition.shape[1]:
        raise ArgumentError("transition", f"expected shape (C, C), received {transition.shape}")
    if not (transition >= 0).all():
        raise ArgumentError("transition", "expected no entry below 0, received one, or NaN")
    if not np.allclose(transition.sum(axis=1), 1, rtol=0, atol=1e-6):
        worst = np.abs(transition.sum(axis=1) - 1).argmax()
        raise ArgumentError(
            "transition",
            f"expected rows that sum to 1, received {transition[worst].sum():.6g} in row {worst}",
        )
    num_classes = len(transition)
    labels = checks.labels("labels", labels, np.size(labels), num_classes)

    rng = np.random.default_rng(seed)
    noisy = labels.copy()
    for source in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == source))
        counts = (len(members) * transition[source] + _ROUNDING).astype(int)
        counts[source] = 0
        noisy[members[: counts.sum()]] = np.repeat(np.arange(num_classes), counts)
    return noisy


def feature_dependent(labels, ratio, probabilities, seed):
    """Flips the samples nearest to a teacher's decision boundary (Section IV-A).

    The order is that of the authors' program. First come the samples that the teacher gets wrong,
    most confident first; they get its prediction. Then come the others, largest probability of the
    teacher's second class first; they get that class.

    Ties go to the end, as in a stable ascending sort that is read backwards: of tied classes the
    highest number is predicted, and the next one is second; of tied samples the last come first.
    In the authors' file the second class is tied in two rows of three, so this shapes the noise.
    Their program leaves the kind of sort to NumPy, whose default orders ties by machine.

    Args:
        labels: clean labels, integers (N,) in [0, C).
        ratio: share of labels to flip, in [0, 1].
        probabilities: the teacher's class probabilities, floating (N, C).
        seed: non-negative integer; matters only where the second class has probability 0: such a
            sample goes to a random other class.

    Returns:
        int32 (N,) of which exactly int(N * ratio) differ from `labels`.

    Raises:
        ArgumentError: where an argument is outside what is said above.
    """
    _check_ratio(ratio)
    probabilities = np.asarray(probabilities)
    check_probabilities(probabilities, num_samples=len(labels))
    num_classes = probabilities.shape[1]
    labels = checks.labels("labels", labels, np.size(labels), num_classes)

    second, predicted = probabilities.argsort(axis=1, kind="stable")[:, -2:].T
    teacher_wrong = predicted != labels
    target = np.where(teacher_wrong, predicted, second)
    target_probability = probabilities[np.arange(len(labels)), target]
    count = int(len(labels) * ratio + _ROUNDING)
    chosen = np.lexsort((target_probability, teacher_wrong))[::-1][:count]

    shift = np.random.default_rng(seed).integers(1, num_classes, len(labels))
    target = np.where(target_probability == 0, (labels + shift) % num_classes, target)
    noisy = labels.copy()
    noisy[chosen] = target[chosen]
    return noisy


def check_probabilities(probabilities, num_samples, num_classes=None):
    """Checks class probabilities: a floating array (N, C), finite, not negative, rows summing to 1.

    Args:
        probabilities: the array to check; rows may be off 1 by 1e-2.
        num_samples: the N that is expected.
        num_classes: the C that is expected; None allows any from 2.

    Raises:
        ArgumentError: for the first of these that does not hold, in one line.
    """
    name, probabilities = "probabilities", np.asarray(probabilities)
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise ArgumentError(name, f"expected floats, received {probabilities.dtype}")
    shape = probabilities.shape
    if len(shape) != 2 or shape != (num_samples, num_classes or max(shape[1], 2)):
        expected = f"({num_samples}, {num_classes or 'C >= 2'})"
        raise ArgumentError(name, f"expected shape {expected}, received {shape}")
    if not np.isfinite(probabilities).all():
        raise ArgumentError(name, "expected finite numbers, received NaN or infinity")
    if (probabilities < 0).any():
        raise ArgumentError(name, f"expected none below 0, received {probabilities.min()}")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if not np.allclose(sums, 1, rtol=0, atol=1e-2):
        worst = np.abs(sums - 1).argmax()
        raise ArgumentError(
            name, f"expected rows that sum to 1, received {sums[worst]:.4g} in row {worst}"
        )


def _check_ratio(ratio):
    if not 0 <= ratio <= 1:
        raise ArgumentError("noise_ratio", f"expected a number in [0, 1], received {ratio}")

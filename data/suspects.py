"""Which given labels are wrong, and how many, by the class probabilities of a trained model."""

import numpy as np

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.data.noise import check_probabilities


def find(probabilities, given_labels, class_names=None, paths=None):
    """Ranks the labeled samples, the least likely given label first.

    Args:
        probabilities: of any model, floating (N, C), rows sum to 1. A row of NaN, as of a file that
            could not be read, is left out.
        given_labels: integers (N,) in [0, C); -1 for a sample without a label, which is left out.
        class_names: C different names; None is the classes' numbers.
        paths: N file names, or None.

    Returns:
        A structured array, one row a labeled sample, with the fields `index` int64, `file` (a
        string, empty without paths), `given` (the class name), `given_probability` float32,
        `suggested` (the name of the most probable class; it may be the given one) and
        `suggested_probability` float32. Of equal probabilities of the given label the larger
        suggested one comes first, then the smaller index.

    Raises:
        ArgumentError: for arguments of another form than these.
    """
    probabilities, labels = _checked(probabilities, given_labels)
    names = names_of(class_names, probabilities.shape[1])
    if paths is not None and np.shape(paths) != labels.shape:
        raise ArgumentError(
            "paths", f"expected shape {labels.shape}, one an image, received {np.shape(paths)}"
        )
    index = np.flatnonzero(labels >= 0)
    given, suggested = labels[index], probabilities[index].argmax(1)
    of_given, of_suggested = (probabilities[index, label] for label in (given, suggested))
    order = np.lexsort((index, -of_suggested, of_given))
    files = np.full(labels.shape, "", object) if paths is None else np.array(paths, object)
    columns = {
        "index": index,
        "file": files[index],
        "given": names[given],
        "given_probability": of_given.astype(np.float32),
        "suggested": names[suggested],
        "suggested_probability": of_suggested.astype(np.float32),
    }
    found = np.empty(len(index), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        found[name] = column[order]
    return found


def of_model(model, images, given_labels, class_names=None):
    """As `find`, of what a model predicts.

    Args:
        model: with `predict(images)`, which returns class probabilities (N, C): any method of this
            project, or a Keras model that ends in a softmax.
        images: (N, H, W, channels) or `ImageFiles`, whose file names are then the field `file`.
        given_labels, class_names: as `find`.
    """
    probabilities = model.predict(images, verbose=0)
    return find(probabilities, given_labels, class_names, getattr(images, "paths", None))


def counted_joint(probabilities, given_labels):
    """How often each given label meets each most probable class.

    Args:
        probabilities, given_labels: as `find`.

    Returns:
        float64 (C, C), [given, most probable], which sums to 1: an estimate of the joint
        distribution of given and right labels. `share_of_wrong` and `noise_matrix` take it.
    """
    probabilities, labels = _checked(probabilities, given_labels)
    joint = np.zeros(2 * probabilities.shape[1:])
    np.add.at(joint, (labels[labels >= 0], probabilities[labels >= 0].argmax(1)), 1)
    return joint / joint.sum()


def confident_joint(probabilities, given_labels):
    """As `counted_joint`, by confident learning (Northcutt et al., 2021), as cleanlab computes it.

    A sample counts for a class where its probability reaches the mean probability of that class
    among the samples that have it as given label.

    Raises:
        ImportError: without cleanlab: `pip install "mln_keras[cleanlab]"`.
    """
    probabilities, labels = _checked(probabilities, given_labels)
    from cleanlab import count  # an extra, and slow to import

    labeled = labels >= 0
    return count.estimate_joint(labels[labeled], probabilities[labeled].astype(np.float64))


def share_of_wrong(joint):
    """The share of wrong labels, in [0, 1], of a joint distribution [given, right]."""
    return float(1 - np.trace(joint))


def noise_matrix(joint):
    """P(given label | right label), (C, C) with columns that sum to 1 (NaN for an absent class)."""
    totals = joint.sum(0)
    return joint / np.where(totals > 0, totals, np.nan)


def names_of(class_names, num_classes):
    """As `checks.class_names`, a string array (C,); the classes' numbers where there are none."""
    names = range(num_classes) if class_names is None else class_names
    return np.array(checks.class_names(names, num_classes))


def _checked(probabilities, given_labels):
    probabilities, labels = np.array(probabilities), np.array(given_labels)
    if probabilities.ndim == 2 and labels.shape == probabilities.shape[:1]:
        is_missing = np.isnan(probabilities).all(1)
        probabilities[is_missing], labels[is_missing] = 1 / probabilities.shape[1], -1
    check_probabilities(probabilities, labels.size)
    count, num_classes = probabilities.shape
    labels = checks.labels("given_labels", labels, count, num_classes, allow_unlabeled=True)
    if not (labels >= 0).any():
        raise ArgumentError("given_labels", "expected at least one label, received -1 only")
    return probabilities, labels

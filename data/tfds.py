"""Data sets of images that fit into memory, read through TensorFlow Datasets (TFDS)."""

import contextlib
import functools
import io
import os
import tempfile
from pathlib import Path

import numpy as np

from mln_keras.data.checks import ArgumentError
from mln_keras.data.source import Source
from mln_keras.data.tensorflow_errors import short


def source(name, data_dir, class_names, flips, human_labels):
    """A data set of TFDS as a `Source`; its test images are held out, and half of them are test.

    Args:
        name, data_dir: as `load`.
        class_names: one a class, in label order.
        flips: dict from the name of a class to that which it turns into by class-dependent noise.
        human_labels: dict from a noise ratio to the feature of TFDS' `{name}_n` with such labels.

    Raises:
        ValueError: as `load`.
    """
    (train_images, train_labels), (test_images, test_labels) = load(name, data_dir)
    return Source(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        held_out_images=test_images,
        held_out_labels=test_labels,
        test_size=len(test_labels) // 2,
        class_names=class_names,
        flips={class_names.index(a): class_names.index(b) for a, b in flips.items()},
        human_labels={
            ratio: functools.partial(load_human_labels, f"{name}_n", feature)
            for ratio, feature in human_labels.items()
        },
    )


def load(name, data_dir):
    """The training and the test images of a data set, and their labels.

    Row i is the sample with the TFDS id `train_{i:05d}` or `test_{i:05d}`, the original file order,
    so that per-index files of labels or probabilities line up with it and noise does not depend on
    the reading order.

    Args:
        name: TFDS' name of the data set, which has the features id, image and label.
        data_dir: TFDS directory, the one that holds the folder of this name; None for TFDS's own
            default. Where the data set is not prepared in it, it is downloaded.

    Returns:
        (images uint8 (N, H, W, channels), labels int32 (N,)) of the training images, and the same
        of the test images.

    Raises:
        ArgumentError: in one line that names `data_dir`, where it can be neither read nor filled. A
            download that fails leaves nothing behind.
    """
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        builder = _download(builder)
    splits = (_read(builder, split, "image", "label") for split in ("train", "test"))
    return tuple((found["image"], found["label"].astype(np.int32)) for found in splits)


def load_human_labels(name, feature, data_dir):
    """Labels of the training images that people gave, int32 (N,), in the row order of `load`.

    Args:
        name: TFDS' name of the data set of these labels, which TFDS cannot download.
        feature: which of its labels.
        data_dir: TFDS directory, the one that holds the folder of this name; None for TFDS's own
            default.

    Raises:
        ArgumentError: in one line that names `data_dir`, where they are not prepared there.
    """
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        root = builder.data_dir_root
        raise _unusable(
            root,
            f"{name} is not prepared there",
            f"put the files that https://www.tensorflow.org/datasets/catalog/{name} asks for in "
            f"{root}/downloads/manual and run tfds.load('{name}', data_dir='{root}')",
        )
    return _read(builder, "train", feature)[feature].astype(np.int32)


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # slow to import, and few callers load this data set

    data_dir = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if data_dir.exists() and not data_dir.is_dir():
        raise _unusable(data_dir, "it is not a folder", f"name the folder that is to hold {name}/")
    try:
        with _quiet():
            return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # of a damaged dataset_info.json, for one; of no common class
        raise _unusable(
            data_dir, f"{name} cannot be read ({short(error)})", f"delete {data_dir / name}"
        ) from error


def _is_prepared(builder):
    with _quiet():
        return builder.is_prepared()


def _read(builder, split, *features):
    """Returns a dict of the features as arrays, row i the sample with the id `{split}_{i:05d}`."""
    import tensorflow_datasets as tfds

    mend = f"delete {builder.data_dir} and prepare it again"
    decoders = tfds.decode.PartialDecoding(dict.fromkeys(("id", *features), True))
    try:
        with _quiet():
            count = builder.info.splits[split].num_examples
            whole = builder.as_dataset(split=split, batch_size=-1, decoders=decoders)
            columns = tfds.as_numpy(whole)
    except Exception as error:  # TFDS and TensorFlow raise many kinds here, of no common class
        what = f"{builder.name} {split} cannot be read ({short(error)})"
        raise _unusable(builder.data_dir_root, what, mend) from error
    order = np.argsort(columns["id"])
    if columns["id"][order].tolist() != [f"{split}_{i:05d}".encode() for i in range(count)]:
        what = f"{builder.name} {split} does not hold each id from 0 to {count - 1} once"
        raise _unusable(builder.data_dir_root, what, mend)
    return {feature: columns[feature][order] for feature in features}


def _download(builder):
    """Downloads beside `data_dir` and moves the prepared data in when it is whole."""
    import requests
    import tensorflow_datasets as tfds

    root, target = Path(builder.data_dir_root), Path(builder.data_dir)
    if target.exists():
        raise _unusable(root, f"{target} holds no prepared data", f"delete {target}")
    parent = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    url = next(iter(builder.url_infos))
    try:
        with tempfile.TemporaryDirectory(prefix=f"{builder.name}-download-", dir=parent) as staging:
            # TFDS would try a host that is not there ten times, for over three minutes.
            requests.head(url, timeout=10, allow_redirects=True).raise_for_status()
            staged = tfds.builder(builder.name, data_dir=staging)
            with _quiet():
                staged.download_and_prepare()
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged.data_dir, target)
    except Exception as error:  # of the network, the disk or the archive; of no common class
        raise _unusable(
            root,
            f"{builder.name} is not prepared there and its download failed ({short(error)})",
            f"run tfds.load('{builder.name}') where there is a network and copy the folder to "
            f"{root}",
        ) from error
    return _builder(builder.name, root)


@contextlib.contextmanager
def _quiet():
    """Keeps back what TFDS logs and prints; failures come as exceptions, and progress bars stay."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _unusable(data_dir, what, mend):
    return ArgumentError("data_dir", f"{data_dir}: {what}; to mend it, {mend}")

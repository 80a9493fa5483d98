"""CIFAR-10 (Section IV-A) and its human labels (CIFAR-10N), read through TensorFlow Datasets."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.data.source import Source
from mln_keras.data.tensorflow_errors import short

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FLIPS = {
    "truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat",
}  # fmt: skip
HUMAN_LABELS = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")


def load(data_dir=None):
    """Returns CIFAR-10 as a `Source`; the test images are held out, and half of them are test.

    Row i is the sample with the TFDS id `train_{i:05d}`, the original file order, so that per-index
    files of labels or probabilities line up with it and noise does not depend on the reading order.
    The customary flips are those of Patrini et al. (2017): truck to automobile, bird to airplane,
    deer to horse, cat to dog and dog to cat.

    Args:
        data_dir: TFDS directory, the one that holds `cifar10/`; None for TFDS's own default. Where
            CIFAR-10 is not prepared in it, it is downloaded (162 MiB).

    Returns:
        `Source` with images uint8 (N, 32, 32, 3). A directory that was prepared with fewer images
        gives fewer.

    Raises:
        ValueError: in one line that names `data_dir`, where it can be neither read nor filled. A
            download that fails leaves nothing behind.
    """
    builder = _builder("cifar10", data_dir)
    if not _is_prepared(builder):
        builder = _download(builder)
    train = _read(builder, "train", "image", "label")
    held_out = _read(builder, "test", "image", "label")
    return Source(
        name="cifar10",
        train_images=train["image"],
        train_labels=train["label"].astype(np.int32),
        held_out_images=held_out["image"],
        held_out_labels=held_out["label"].astype(np.int32),
        test_size=len(held_out["label"]) // 2,
        class_names=CLASS_NAMES,
        flips={CLASS_NAMES.index(a): CLASS_NAMES.index(b) for a, b in FLIPS.items()},
    )


def human_labels(data_dir, name):
    """Returns the CIFAR-10N human labels (Wei et al., 2022) of the CIFAR-10 training set.

    Args:
        data_dir: TFDS directory, the one that holds `cifar10_n/`; None for TFDS's own default.
        name: one of `HUMAN_LABELS`.

    Returns:
        int32 (N,) in [0, 10), in the row order of `load`.

    Raises:
        ValueError: in one line, where the name is another or `cifar10_n` is not prepared there.
    """
    checks.one_of("human labels", name, HUMAN_LABELS)
    builder = _builder("cifar10_n", data_dir)
    if not _is_prepared(builder):
        root = builder.data_dir_root
        raise _unusable(
            root,
            "cifar10_n is not prepared there",
            f"put the files that https://www.tensorflow.org/datasets/catalog/cifar10_n asks for in "
            f"{root}/downloads/manual and run tfds.load('cifar10_n', data_dir='{root}')",
        )
    return _read(builder, "train", name)[name].astype(np.int32)


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # slow to import, and few callers load this data set

    data_dir = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if data_dir.exists() and not data_dir.is_dir():
        raise _unusable(data_dir, "it is not a folder", "name the folder that is to hold cifar10/")
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
        with tempfile.TemporaryDirectory(prefix="cifar10-download-", dir=parent) as staging:
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
            f"cifar10 is not prepared there and its download failed ({short(error)})",
            f"run tfds.load('cifar10') where there is a network and copy the folder to {root}",
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

"""Your own images in folders, one for each class."""


import numpy as np

from mln_keras.data import image_files, lists
from mln_keras.data.checks import ArgumentError
from mln_keras.data.source import Source


def load(data_dir, size, resize):
    """Returns the images below a folder as a `Source`.

    Args:
        data_dir: folder with `noisy/CLASS/*`, whose folders are the classes, by name; with
            `meta/CLASS/*` and `test/CLASS/*`, images whose labels are right; and perhaps with
            `unlabeled/*`, images to train on that have no label. Files are taken by the endings of
            their names (`image_files.ENDINGS`).
        size, resize: as `ImageFiles`.

    Raises:
        ArgumentError: naming `data_dir` and the folder: see `image_files.from_directory`.

    Warns:
        UserWarning: of what is left out in these folders.
    """
    root = lists.folder(data_dir, "your images", "noisy", "meta", "test")
    try:
        images, labels, names = image_files.from_directory(root / "noisy", size, resize)
        held_out, test = (
            image_files.from_directory(root / name, size, resize, names)[:2]
            for name in ("meta", "test")
        )
        if (root / "unlabeled").exists():
            paths = image_files.images_in(root / "unlabeled")
            images = images.joined(image_files.ImageFiles(paths, size, resize))
            labels = np.concatenate([labels, np.full(len(paths), -1, np.int32)])
    except (ValueError, OSError) as error:
        raise ArgumentError("data_dir", str(error)) from None
    return Source(
        name="folders",
        train_images=images,
        train_labels=labels,
        held_out_images=held_out[0],
        held_out_labels=held_out[1],
        test=test,
        class_names=names,
        has_right_labels=False,
    )

"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels, in the package, no download."""

import numpy as np

from mln_keras.data.source import Source

NUM_TRAIN, NUM_TEST = 1197, 300


def load(data_dir=None):
    """Returns the digits as a `Source`: 1197 training samples, 600 held out, 300 of them test.

    Args:
        data_dir: not used, as nothing is read from disk.

    Returns:
        `Source` with images uint8 (N, 8, 8, 1), the original 0..16 scaled to 0..255. The customary
        flips turn each digit into the next, 9 into 0.
    """
    del data_dir
    from sklearn.datasets import load_digits  # slow to import, and few callers load this data set

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    return Source(
        name="digits",
        train_images=images[:NUM_TRAIN],
        train_labels=labels[:NUM_TRAIN],
        held_out_images=images[NUM_TRAIN:],
        held_out_labels=labels[NUM_TRAIN:],
        test_size=NUM_TEST,
        class_names=tuple("0123456789"),
        flips={digit: (digit + 1) % 10 for digit in range(10)},
    )

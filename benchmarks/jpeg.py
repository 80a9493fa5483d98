"""How far JPEG encodings move the pixels of small images: of CIFAR-10's, and of photographs.

    python benchmarks/jpeg.py [--data_dir DIRECTORY] [--table_only]

Where CIFAR-10's images have been through JPEG at quality 75, these are what further encodings do to
them, but what the first one did cannot be seen any more. Photographs shrunk to 32×32 show it: two
that come with scikit-learn, in squares of 96 to 384 pixels, through the same encodings. Kept in
results/jpeg.csv, and printed, are root mean squares over pixels and colours, of 255.
"""

import argparse
import pathlib
import sys

import differences
import grid
import numpy as np
import tensorflow as tf

import data

HEADER = ("encoding", "CIFAR-10, from before", "photographs, from before", "from the original")


def shrunk_photographs(number):
    """Squares of the photographs, uint8 (10·number, 32, 32, 3)."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    squares = []
    for photograph in load_sample_images().images:
        height, width, _ = photograph.shape
        for side in (96, 128, 192, 256, 384):
            for _ in range(number):
                y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
                square = photograph[y : y + side, x : x + side]
                squares.append(tf.image.resize(square, (32, 32), antialias=True))
    return tf.saturate_cast(tf.round(tf.stack(squares)), tf.uint8).numpy()


def distance(images, others):
    """Root mean square of the difference of two uint8 arrays."""
    return np.sqrt(np.mean((images.astype(np.float32) - others.astype(np.float32)) ** 2))


def measure(cifar10, photographs):
    """A row an encoding. CIFAR-10's images are taken as encoded, photographs are not."""
    encoded = differences.re_encode(75, photographs)
    first = distance(encoded, photographs)
    rows = [("JPEG quality 75, the first", "", f"{first:.1f}", f"{first:.1f}")]
    for name, encode in differences.ENCODINGS.items():
        further = encode(encoded)
        columns = (
            distance(encode(cifar10), cifar10),
            distance(further, encoded),
            distance(further, photographs),
        )
        rows.append((f"then {name}", *(f"{value:.1f}" for value in columns)))
    return rows


def table(rows):
    """Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (HEADER, ("---",) * len(HEADER), *rows))


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", help="TensorFlow Datasets directory")
    parser.add_argument("--results", type=pathlib.Path, default="results/jpeg.csv")
    parser.add_argument("--table_only", action="store_true", help="print the table of --results")
    arguments = parser.parse_args(argv)
    if not arguments.table_only:
        images = data.LOADERS["cifar10"](arguments.data_dir).held_out_images
        rows = measure(images, shrunk_photographs(60))
        grid.write_csv(arguments.results, HEADER, rows)
    print(table(grid.read_csv(arguments.results)), end="")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Images a second out of JPEG files: `ImageFiles` beside bare decoding and resizing.

    python benchmarks/input_pipeline.py

Made-up photographs of 500×375 pixels in class folders are resized to 256×256, and their central
224×224 taken, in batches of 32, on all cores; the files are in the page cache. Median and range of
epochs, without the first one, in which tf.data finds out how many calls to run at a time. Then what
the number of files costs (the same ones are named again and again): time to the first batch, time
of a batch, memory.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf

from mln_keras.command import files
from mln_keras.command.versions import versions
from mln_keras.data import batches, image_files

SIZE, RESIZE, BATCH = (224, 224), (256, 256), 32


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--images", type=int, default=800, help="JPEG files")
    add("--epochs", type=int, default=5, help="counted epochs of each kind")
    add("--numbers", type=int, nargs="*", default=[10_000, 50_000, 500_000], help="of files")
    add("--json", help="file to write the figures to")
    return parser.parse_args(argv)


def make_photographs(directory, count):
    """JPEG files, quality 90, of about 95 kB: smooth colours and grain; 10 classes in turn."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = (375, 500) if i % 3 else (500, 375)
        colours = rng.uniform(0, 255, (height // 8, width // 8, 3))
        image = tf.image.resize(colours, (height, width), "bicubic")
        image = tf.saturate_cast(image + rng.normal(0, 12, image.shape), tf.uint8)
        folder = pathlib.Path(directory) / f"class_{i % 10}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i:06d}.jpg").write_bytes(tf.io.encode_jpeg(image, quality=90).numpy())


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def bare(paths, antialias):
    def decode(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, RESIZE, antialias=antialias)

    decoded = tf.data.Dataset.from_tensor_slices(paths).repeat()
    decoded = decoded.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return decoded.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def seconds(stream, count):
    """How long the next `count` batches take."""
    since = time.perf_counter()
    for _ in range(count):
        next(stream)
    return time.perf_counter() - since


def compare(images, labels, epochs):
    """Prints and returns the images a second of each way, a dict of `spread`."""
    print(f"{'':<34}{'images/s':>10}{'range':>18}")
    steps, found = len(images) // BATCH, {}
    for name, dataset in (
        ("decode_jpeg + resize", bare(images.paths, antialias=False)),
        ("decode_jpeg + resize(antialias)", bare(images.paths, antialias=True)),
        ("ImageFiles, shuffled and cropped",
         batches.batches(images, labels, BATCH, epochs=range(epochs + 2), seed=0)),
    ):  # fmt: skip
        stream = iter(dataset)
        _, *rates = (steps * BATCH / seconds(stream, steps) for _ in range(epochs + 1))
        found[name] = spread(rates)
        between = "{min:.0f} to {max:.0f}".format(**found[name])
        print(f"{name:<34}{found[name]['median']:>10.0f}{between:>18}")
    return found


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cost(images, labels):
    """Prints and returns what batches of so many images cost, a dict."""
    before, since = resident_mb(), time.perf_counter()
    stream = iter(batches.batches(images, labels, BATCH, seed=0))
    next(stream)
    first = time.perf_counter() - since
    count = min(20, len(images) // BATCH // 2)
    seconds(stream, count)
    each, memory = 1e3 * seconds(stream, count - 1) / (count - 1), resident_mb() - before
    print(f"{len(images):<18}{first:>18.2f}{each:>14.1f}{memory:>18.0f}")
    return {"first_s": first, "batch_ms": each, "more_mb": memory}


def main(argv):
    arguments = parse(argv)
    figures = {"flags": vars(arguments) | {"json": None}, "cores": len(os.sched_getaffinity(0))}
    figures |= {"versions": versions()}
    with tempfile.TemporaryDirectory() as directory:
        make_photographs(directory, arguments.images)
        images, labels, _ = image_files.from_directory(directory, SIZE, RESIZE)
        figures |= compare(images, labels, arguments.epochs)
        print(f"\n{'files':<18}{'first batch, s':>18}{'ms a batch':>14}{'more memory, MB':>18}")
        for number in arguments.numbers:
            rows = np.arange(number) % len(images)
            figures[f"{number} files"] = cost(images[rows], labels[rows])
    print(f"\n{figures['cores']} cores; {figures['versions']}")
    if arguments.json:
        files.write_json(arguments.json, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

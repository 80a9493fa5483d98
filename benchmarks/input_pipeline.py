"""Images a second out of JPEG files: this project's pipeline beside bare decoding and resizing.

    python benchmarks/input_pipeline.py [--images 800] [--epochs 5] [--json FILE]

Made-up photographs of 500×375 pixels in a class-folder layout, resized to 256×256, their central
224×224 taken, in batches of 32, on all cores; files are in the page cache. Each kind is one stream
of batches, as in a training; the median and the range of its epochs are given, the first one left
out, in which tf.data finds out how many calls to run at a time. Then how the time of a batch, the
time to the first one and the memory that it takes depend on the number of images: of files (the
same ones, named again and again) and of arrays of CIFAR-10's size, in batches of 128.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mln_keras.command import files as outputs
from mln_keras.data import image_files, pipeline

SIZE, RESIZE, BATCH = (224, 224), (256, 256), 32


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--images", type=int, default=800, help="JPEG files")
    add("--epochs", type=int, default=5, help="counted epochs of each kind")
    add("--batches", type=int, default=20, help="batches timed for each number of images")
    add("--numbers", type=int, nargs="*", default=[10_000, 50_000, 500_000],
        help="numbers of images")
    add("--json", help="file to write the figures to")
    return parser.parse_args(argv)


def make_photographs(directory, count):
    """JPEG files, quality 90, of about 95 kB: smooth colours and grain; 4 classes in turn."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = (375, 500) if i % 3 else (500, 375)
        colours = rng.uniform(0, 255, (height // 8, width // 8, 3))
        image = tf.image.resize(colours, (height, width), "bicubic")
        image = tf.saturate_cast(image + rng.normal(0, 12, image.shape), tf.uint8)
        folder = directory / f"class_{i % 4}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i:06d}.jpg").write_bytes(tf.io.encode_jpeg(image, quality=90).numpy())


def bare(paths, antialias):
    def decode(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, RESIZE, antialias=antialias)

    files = tf.data.Dataset.from_tensor_slices(paths).repeat()
    decoded = files.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return decoded.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def images_a_second(dataset, epochs, steps):
    batches, rates = iter(dataset), []
    for _ in range(epochs + 1):
        since = time.perf_counter()
        for _ in range(steps):
            next(batches)
        rates.append(steps * BATCH / (time.perf_counter() - since))
    return rates[1:]


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def by_number(name, images, batch_size, timed):
    before, since = resident_mb(), time.perf_counter()
    labels = np.zeros(len(images), np.int32)
    batches = iter(pipeline.batches(images, labels, batch_size, seed=0))
    next(batches)
    first = time.perf_counter() - since
    for _ in range(timed):
        next(batches)
    since = time.perf_counter()
    for _ in range(timed):
        next(batches)
    each = 1e3 * (time.perf_counter() - since) / timed
    memory = resident_mb() - before
    print(f"{name:<18}{first:>18.2f}{each:>14.1f}{memory:>18.0f}")
    return {"first_s": first, "batch_ms": each, "more_mb": memory}


def main(argv):
    arguments = parse(argv)
    figures = {"flags": vars(arguments) | {"json": None}, "cores": len(os.sched_getaffinity(0))}
    figures |= {"versions": outputs.versions()}
    with tempfile.TemporaryDirectory() as directory:
        make_photographs(pathlib.Path(directory), arguments.images)
        images, labels, _ = image_files.from_directory(directory, SIZE, RESIZE)
        epochs, steps = arguments.epochs, arguments.images // BATCH
        kinds = {
            "decode_jpeg + resize": bare(images.paths, antialias=False),
            "decode_jpeg + resize(antialias)": bare(images.paths, antialias=True),
            "ImageFiles, shuffled and cropped": pipeline.batches(
                images, labels, BATCH, epochs=range(epochs + 2), seed=0
            ),
        }
        print(f"{'':<34}{'images/s':>10}{'range':>18}")
        for name, dataset in kinds.items():
            values = images_a_second(dataset, epochs, steps)
            median, low, high = statistics.median(values), min(values), max(values)
            figures[name] = {"median": median, "min": low, "max": high}
            print(f"{name:<34}{median:>10.0f}{f'{low:.0f} to {high:.0f}':>18}")
        ours = figures["ImageFiles, shuffled and cropped"]["median"]
        for name in list(kinds)[:2]:
            print(f"ImageFiles over {name}: {ours / figures[name]['median']:.2f}")

        print(f"\n{'images':<18}{'first batch, s':>18}{'ms a batch':>14}{'more memory, MB':>18}")
        for number in arguments.numbers:
            name, many = f"{number} files", images[np.arange(number) % len(images)]
            figures[name] = by_number(name, many, BATCH, arguments.batches)
        for number in arguments.numbers:
            name, many = f"{number} in arrays", np.full((number, 32, 32, 3), 127, np.uint8)
            figures[name] = by_number(name, many, 128, arguments.batches)
    print(f"\n{figures['cores']} cores, {arguments.epochs} epochs, {arguments.images} files, "
          f"batch {BATCH}")
    print(figures["versions"])
    if arguments.json:
        outputs.write_json(arguments.json, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

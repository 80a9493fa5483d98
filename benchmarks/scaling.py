"""Images a second on 1, 2, 4 ... GPUs of one machine, and how many times one GPU that is.

    python benchmarks/scaling.py --gpus 1 2 4 8 --mixed_precision
    python benchmarks/scaling.py --gpus 1 2 --virtual --networks cnn8 --steps 2 --epochs 1  # a CPU
    python benchmarks/scaling.py --gpus 2 4 8 --agreement

Each row is a process that trains a MetaLabelNet through `fit`, on made-up images that lie on the
GPUs: cross-entropy is its warm-up. The first epoch of each phase compiles and is not counted; of
the others the median counts. The batch is so many images a GPU, in the meta batch too.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from step_time import Clock, build_model

from mln_keras import MetaLabelNet
from mln_keras.command.versions import versions
from mln_keras.command.xla import configure_xla

# Images a GPU in a batch, and steps an epoch: what 8 GPUs take in these is below a GiB.
SIZES = {"cnn8": ((128, 512), 80)}
OTHER = ((64,), 10)
PHASES = ("cross-entropy", "phase 2")
AGREEMENT = "agreement"


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    switch = {"action": argparse.BooleanOptionalAction}
    add = parser.add_argument
    add("--gpus", nargs="+", type=int, default=[1], help="numbers of GPUs, the first one first")
    add("--networks", nargs="+", default=["cnn8", "ResNet50"],
        help="cnn8, or networks of keras.applications")  # fmt: skip
    add("--batch_sizes", nargs="+", type=int, help="images a GPU; default: 128, 512; ResNet50: 64")
    add("--steps", type=int, help="an epoch, all in one call; default: 80; ResNet50: 10")
    add("--epochs", type=int, default=5, help="counted epochs of each phase")
    add("--mixed_precision", default=False, help="compute in bfloat16", **switch)
    add("--jit_compile", default=True, help="compile with XLA", **switch)
    add("--virtual", action="store_true", help="divide one GPU, or the CPU, among the replicas")
    add("--agreement", action="store_true", help="compare what one and several GPUs compute")
    add("--results", type=pathlib.Path, help="file to add a JSON line a row to")
    add("--row", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def rows_of(arguments):
    """What is measured: (network, images a GPU, steps, GPUs), row by row."""
    if arguments.agreement:
        yield from ((AGREEMENT, 128, 20, gpus) for gpus in arguments.gpus if gpus > 1)
        return
    for network in arguments.networks:
        sizes, steps = SIZES.get(network, OTHER)
        for size in arguments.batch_sizes or sizes:
            for gpus in arguments.gpus:
                yield network, size, arguments.steps or steps, gpus


def devices_of(gpus, virtual):
    """Names of as many devices; of virtual ones each has its part of the memory."""
    found = tf.config.list_physical_devices("GPU")
    kind = "GPU" if found else "CPU"
    found = found or tf.config.list_physical_devices("CPU")
    if virtual:
        part = 100_000 // gpus if kind == "GPU" else None  # MB
        one = tf.config.LogicalDeviceConfiguration(memory_limit=part)
        tf.config.set_logical_device_configuration(found[0], [one] * gpus)
    elif gpus > len(found):
        raise SystemExit(f"scaling.py: --gpus: expected at most {len(found)}, received {gpus}")
    return [f"{kind}:{i}" for i in range(gpus)]


def measure(arguments, network, size, steps, gpus):
    """Images a second of both phases, a dict."""
    if arguments.jit_compile:
        configure_xla()
    devices = devices_of(gpus, arguments.virtual)
    strategy = tf.distribute.get_strategy()
    if gpus > 1:
        strategy = tf.distribute.MirroredStrategy(devices)
    epochs, batch_size = 1 + arguments.epochs, size * gpus
    side = 32 if network == "cnn8" else 224
    with strategy.scope():
        model = build_model(
            network, side, epochs, mixed_precision=arguments.mixed_precision,
            jit_compile=arguments.jit_compile, steps_per_execution=steps,
        )  # fmt: skip
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size * steps, side, side, 3), np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    clock = Clock([])
    history = model.fit(
        (images, labels), meta_data=(images[:batch_size], labels[:batch_size]),
        batch_size=batch_size, epochs=2 * epochs, callbacks=[clock], verbose=0,
    )  # fmt: skip
    counted = {"cross-entropy": clock.seconds[1:epochs], "phase 2": clock.seconds[epochs + 1 :]}
    return {
        "images_a_second": {p: len(images) / statistics.median(s) for p, s in counted.items()},
        "seconds": counted, "last_loss": history.history["loss"][-1],
    }  # fmt: skip


def compare(arguments, _, size, steps, gpus):
    """How far weights are apart after `steps` steps on one and on several GPUs.

    Returns:
        {"differences": dict, θ and φ -> the largest difference over the largest weight}.
    """
    devices = devices_of(gpus, arguments.virtual)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size * steps, 32, 32, 3), np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    found = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(devices)):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            classifier = keras.Sequential([
                keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255),
                *(keras.layers.Conv2D(n, 3, 2, activation="relu") for n in (32, 64, 128)),
                keras.layers.Flatten(), keras.layers.Dense(10),
            ])  # fmt: skip
            model = MetaLabelNet(classifier, warmup_epochs=0)
            model.compile(
                keras.optimizers.SGD(1e-2, momentum=0.9),
                jit_compile=arguments.jit_compile, steps_per_execution=steps,
            )  # fmt: skip
        meta = (images[:size], labels[:size])
        model.fit((images, labels), meta_data=meta, batch_size=size, epochs=1, verbose=0)
        weights = {"θ": classifier.trainable_variables, "φ": model.label_head.trainable_variables}
        found.append({
            name: np.concatenate([np.ravel(w.numpy()) for w in of]) for name, of in weights.items()
        })  # fmt: skip
    one, several = found
    apart = {n: float(abs(one[n] - several[n]).max() / abs(one[n]).max()) for n in one}
    return {"differences": apart}


def line_of(row, ones):
    """A row of the table; `ones` has the rows of one GPU.

    Adds to the row `over_one`, times one GPU's images a second; None where that is not measured.
    What several GPUs differ by is a sentence.
    """
    if "differences" in row:
        apart = ", ".join(f"{n} by {d:.1e}" for n, d in row["differences"].items())
        return f"{row['gpus']} GPUs differ from one: {apart} of the largest weight"
    one = ones.get((row["network"], row["size"]))
    speeds, cells = row["images_a_second"], ""
    row["over_one"] = one and {p: speeds[p] / one["images_a_second"][p] for p in PHASES}
    for phase in PHASES:
        over = f"{row['over_one'][phase]:.2f}" if one else ""
        cells += f"{speeds[phase]:>26,.0f}{over:>7}"
    return f"{row['network']:<12}{row['size']:>6}{row['gpus']:>6}{cells}"


def run_row(argv, row):
    """The figures of a row, measured in a process of its own; None where that failed."""
    command = [sys.executable, __file__, *argv, "--row", json.dumps(row)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def main(argv):
    """Returns the exit status: 1 where a row failed."""
    arguments = parse(argv)
    if arguments.row:
        row = json.loads(arguments.row)
        setting = dict(zip(("network", "size", "steps", "gpus"), row, strict=True)) | {
            "mixed_precision": arguments.mixed_precision, "jit_compile": arguments.jit_compile,
            "virtual": arguments.virtual, "versions": versions(),
        }  # fmt: skip
        of_row = compare if arguments.agreement else measure
        print(json.dumps(setting | of_row(arguments, *row)), flush=True)
        return 0
    columns = "".join(f"{phase + ', images/s':>26}{'x':>7}" for phase in PHASES)
    if not arguments.agreement:
        print(f"{'network':<12}{'a GPU':>6}{'GPUs':>6}{columns}", flush=True)
    ones, status = {}, 0
    for wanted in rows_of(arguments):
        row = run_row(argv, wanted)
        if row is None:
            print(f"scaling.py: failed: {wanted}", file=sys.stderr)
            status = 1
            continue
        if row["gpus"] == 1:
            ones[row["network"], row["size"]] = row
        print(line_of(row, ones), flush=True)
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

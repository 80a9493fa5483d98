"""Milliseconds a training step, cross-entropy beside phase 2, in one run through `fit`.

    python benchmarks/step_time.py [--mixed_precision] [--no-jit_compile] [--profile]
    python benchmarks/step_time.py --network ResNet50 --batch_size 32 --files 1600

A network on made-up images, augmentation and input pipeline included: the paper's 8-layer CNN on
images of CIFAR-10's size, or a network of keras.applications at its own size. The first epoch of
each phase compiles and is not counted; of the others the median and the range are given, and the
peak of a GPU's memory. With --files the images are JPEG files, after as many epochs that repeat a
batch in memory: the difference is what steps wait for their input, the first epoch that reads not
counted. --profile lists the ten kernels that take most of a step on a GPU.
"""

import argparse
import collections
import glob
import pathlib
import statistics
import sys
import tempfile
import time

import input_pipeline
import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mln_keras.command import flags as command_line
from mln_keras import layers
from mln_keras.command import files as outputs
from mln_keras.data import image_files, pipeline
from mln_keras import MetaLabelNet

PHASES = ("cross-entropy", "phase 2")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    switch = {"action": argparse.BooleanOptionalAction}
    add = parser.add_argument
    add("--network", default="cnn8", help="cnn8, or a network of keras.applications")
    add("--images", type=int, default=49920, help="training images")
    add("--files", type=int, default=0, help="train from JPEG files instead, of 400 made-up ones")
    add("--batch_size", type=int, default=128, help="of training and meta batches")
    add("--epochs", type=int, default=5, help="counted epochs of each phase and kind of input")
    add("--steps_per_execution", type=int, default=390, help="steps a call, at most")
    add("--mixed_precision", default=False, help="compute in bfloat16", **switch)
    add("--jit_compile", default=True, help="compile the step with XLA", **switch)
    add("--profile", action="store_true", help="list the ten largest GPU kernels")
    add("--json", help="file to write the figures to")
    return parser.parse_args(argv)


def build_classifier(network):
    if network == "cnn8":
        return layers.cnn8()
    backbone = getattr(keras.applications, network)(
        weights=None, classes=10, classifier_activation=None
    )
    normalize = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")
    return keras.Sequential([keras.Input(backbone.input_shape[1:]), normalize, backbone])


def forward_pass(classifier):
    """Arithmetic (FLOP) of one image's forward pass, and the numbers its layers read and write.

    `Conv2D` and `Dense` layers are counted, a multiplication and an addition each as one
    operation; the rest could be computed on the way. A cross-entropy step is 3 such passes, a
    phase-2 step 11: g(x), f(x) and f at θ̂, three backward passes of 2 each, and the 2 of the
    gradient through θ̂.
    """
    operations = moved = 0
    for layer in classifier._flatten_layers():
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = np.prod(layer.output.shape[1:-1])
            operations += 2 * positions * np.prod(layer.kernel.shape)
            moved += np.prod(layer.input.shape[1:]) + np.prod(layer.output.shape[1:])
    return int(operations), int(moved)


class Clock(keras.callbacks.Callback):
    """Seconds and peak memory of each epoch; profiles the last one of each phase where asked."""

    def __init__(self, profiled):
        super().__init__()
        self.profiled = profiled
        self.seconds, self.peaks, self.kernels = [], [], {}

    def on_epoch_begin(self, epoch, logs=None):
        if tf.config.list_physical_devices("GPU"):
            tf.config.experimental.reset_memory_stats("GPU:0")
        if epoch in self.profiled:
            self.directory = tempfile.TemporaryDirectory()
            options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=0)
            tf.profiler.experimental.start(self.directory.name, options)
        self.since = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.since)
        if tf.config.list_physical_devices("GPU"):
            self.peaks.append(tf.config.experimental.get_memory_info("GPU:0")["peak"])
        if epoch in self.profiled:
            tf.profiler.experimental.stop()
            self.kernels[epoch] = read_profile(self.directory.name)


def read_profile(directory):
    """(Number, nanoseconds) of each kernel's runs on the GPU, a dict by name."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    kernels = collections.defaultdict(lambda: [0, 0])
    for path in glob.glob(f"{directory}/**/*.xplane.pb", recursive=True):
        space = xplane_pb2.XSpace.FromString(pathlib.Path(path).read_bytes())
        for plane in space.planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                for event in line.events if line.name.startswith("Stream") else ():
                    kernel = kernels[plane.event_metadata[event.metadata_id].name]
                    kernel[0] += 1
                    kernel[1] += event.duration_ps / 1e3
    return dict(kernels)


def print_profile(phase, kernels, steps):
    """Prints and returns the time that the GPU computes, and the ten largest kernels: name, number
    and microseconds a step."""
    total = sum(nanoseconds for _, nanoseconds in kernels.values())
    largest = sorted(kernels.items(), key=lambda item: -item[1][1])[:10]
    profile = {
        "busy_ms": total / steps / 1e6,
        "kernels": sum(number for number, _ in kernels.values()) / steps,
        "largest": [(name, number / steps, ns / steps / 1e3) for name, (number, ns) in largest],
    }
    print(f"\n{phase}: the GPU computes {profile['busy_ms']:.2f} ms a step, in "
          f"{profile['kernels']:.0f} kernels; the ten largest:\n"
          f"{'kernel':<70}{'a step':>8}{'µs a step':>12}{'share':>8}")
    for name, number, µs in profile["largest"]:
        share = µs / 1e3 / profile["busy_ms"]
        print(f"{name[:68]:<70}{number:>8.1f}{µs:>12.1f}{share:>8.1%}")
    return profile


def made_up(count, side):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return images, rng.integers(0, 10, count, np.int32)


def held_then_read(files, labels, batch_size, steps, epochs):
    """Without end: `epochs` epochs of a batch that is in memory, and the next ones read."""
    read = pipeline.batches(files, labels, batch_size, epochs=range(epochs), seed=0)
    held = tf.data.Dataset.from_tensors(next(iter(read))).repeat(steps * epochs)
    return held.concatenate(read).repeat().prefetch(2)


def main(argv):
    arguments = parse(argv)
    if arguments.jit_compile:
        command_line.configure_xla()
    if arguments.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    epochs = (1 + arguments.epochs) * (2 if arguments.files else 1)
    classifier = build_classifier(arguments.network)
    side = classifier.input_shape[1]
    model = MetaLabelNet(
        classifier, epochs + arguments.profile,
        augmentation=layers.RandomFlipCrop(4) if side == 32
        else layers.RandomFlipCrop(0, vertical_flip=False),
    )  # fmt: skip
    model.compile(
        keras.optimizers.SGD(1e-2, momentum=0.9),
        jit_compile=arguments.jit_compile,
        steps_per_execution=arguments.steps_per_execution,
    )
    with tempfile.TemporaryDirectory() as directory:
        if arguments.files:
            input_pipeline.make_photographs(pathlib.Path(directory), min(arguments.files, 400))
            resize = (side * 8 // 7, side * 8 // 7)
            files, labels, _ = image_files.from_directory(directory, (side, side), resize)
            many = np.arange(arguments.files) % len(files)
            steps = arguments.files // arguments.batch_size
            noisy = held_then_read(
                files[many], labels[many], arguments.batch_size, steps, 1 + arguments.epochs
            )
            meta = (files, labels)
        else:
            noisy = made_up(arguments.images, side)
            meta = made_up(max(arguments.batch_size, arguments.images // 10), side)
            steps = arguments.images // arguments.batch_size
        of_a_phase = epochs + arguments.profile
        profiled = {of_a_phase - 1, 2 * of_a_phase - 1} if arguments.profile else ()
        clock = Clock(profiled)
        model.fit(
            noisy, meta_data=meta, batch_size=arguments.batch_size, epochs=2 * of_a_phase,
            callbacks=[clock], verbose=0, steps_per_epoch=steps if arguments.files else None,
        )  # fmt: skip
    report(arguments, clock, epochs, of_a_phase, steps, forward_pass(classifier))


def report(arguments, clock, epochs, of_a_phase, steps, counts):
    """Prints the table, and writes it as JSON."""
    figures = {"flags": vars(arguments) | {"json": None}, "steps": steps}
    figures |= {"versions": outputs.versions()}
    figures |= dict(zip(("operations_an_image", "numbers_moved_an_image"), counts))
    print(f"{'':<28}{'ms a step':>10}{'range':>22}{'first epoch, s':>18}{'peak, GB':>12}")
    for number, phase in enumerate(PHASES):
        since = number * of_a_phase
        counted = range(since + 1, since + epochs)
        peak = max(clock.peaks[since : since + epochs], default=0) / 1e9
        kinds = {phase: counted}
        if arguments.files:
            kinds = {
                phase: counted[: arguments.epochs],
                f"{phase}, from files": counted[arguments.epochs + 1 :],
            }
        for name, which in kinds.items():
            values = [1e3 * clock.seconds[i] / steps for i in which]
            median, low, high = statistics.median(values), min(values), max(values)
            figures[name] = {"median_ms": median, "min_ms": low, "max_ms": high}
            figures[name] |= {"first_s": clock.seconds[since], "peak_gb": peak}
            print(f"{name:<28}{median:>10.2f}{f'{low:.2f} to {high:.2f}':>22}"
                  f"{clock.seconds[since]:>18.1f}{peak or '':>12.4}")
        if arguments.files:
            whole = figures[f"{phase}, from files"]["median_ms"]
            figures[f"{phase}, input wait"] = 1 - figures[phase]["median_ms"] / whole
            print(f"{phase} waits for its input: {figures[f'{phase}, input wait']:.1%} of a step")
    figures["ratio"] = figures["phase 2"]["median_ms"] / figures["cross-entropy"]["median_ms"]
    print(f"phase 2 over cross-entropy: {figures['ratio']:.2f}; {steps} steps an epoch, "
          f"{arguments.epochs} epochs")
    flop, moved = (arguments.batch_size * count / 1e9 for count in counts)
    width = 2 if arguments.mixed_precision else 4
    for phase, passes in zip(PHASES, (3, 11)):
        print(f"{phase}: at least {passes} forward passes, {passes * flop:.0f} GFLOP and "
              f"{passes * moved * width:.2f} GB")
    print(figures["versions"])
    for epoch, kernels in clock.kernels.items():
        phase = PHASES[epoch >= of_a_phase]
        figures[f"{phase}, kernels"] = print_profile(phase, kernels, steps)
    if arguments.json:
        outputs.write_json(arguments.json, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

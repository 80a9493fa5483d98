"""Milliseconds a training step, cross-entropy beside phase 2, in one run through `fit`.

    python benchmarks/step_time.py [--mixed_precision] [--no-jit_compile] [--profile]
    python benchmarks/step_time.py --network ResNet50 --side 224 --batch_size 32 --files 1600

Cross-entropy is MetaLabelNet's warm-up. The images are made up; augmentation and input pipeline are
included. The first epoch of each phase compiles and is not counted; of the others the median and
the range are given, and the peak of a GPU's memory. --files has further epochs, out of JPEG files:
the difference is what steps wait for their input. --profile lists the ten kernels that take most of
a step on a GPU.
"""

import argparse
import collections
import pathlib
import sys
import tempfile
import time

import input_pipeline
import keras
import numpy as np
import tensorflow as tf

from mln_keras import MetaLabelNet, layers
from mln_keras.command import files
from mln_keras.command.versions import versions
from mln_keras.command.xla import configure_xla
from mln_keras.data import batches, image_files
from mln_keras.training.keras_private import all_layers

RESIZED = {224: 256, 299: 320}  # before the centre is taken, Section IV-B
# The arithmetic of a step in forward passes, a backward pass being 2: f(x) and its gradient; in
# phase 2 forward passes of g(x), f(x) and f at θ̂, three backward, and 2 for the gradient through θ̂.
PASSES = {"cross-entropy": 3, "phase 2": 11}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    switch = {"action": argparse.BooleanOptionalAction}
    add = parser.add_argument
    add("--network", default="cnn8", help="cnn8, or a network of keras.applications")
    add("--side", type=int, default=32, help="of the images, in pixels; the paper's: 224, 299")
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


def epochs_of(arguments):
    """What is measured -> its epochs, a range whose first one compiles, or begins to read."""
    spans, start = {}, 0
    for phase in PASSES:
        for kind in ("", ", from files") if arguments.files else ("",):
            spans[phase + kind] = range(start, start + 1 + arguments.epochs)
            start += 1 + arguments.epochs
        if arguments.profile:
            spans[f"{phase}, profile"] = range(start, start + 1)
            start += 1
    return spans


def build_model(network, side, warmup_epochs, *, mixed_precision, **of_steps):
    """A MetaLabelNet for ten classes; `of_steps` are further arguments of its `compile`."""
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed_precision else "float32")
    keras.utils.set_random_seed(0)
    classifier = layers.backbone(network, 10, (side, side, 3))
    is_small = side <= 32
    augmentation = layers.RandomFlipCrop(4 if is_small else 0, vertical_flip=is_small)
    model = MetaLabelNet(classifier, warmup_epochs, augmentation=augmentation)
    model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), **of_steps)
    return model


def data(arguments, directory):
    """(Noisy data, meta data) for `fit`, as --files says; files are made in the directory."""
    side = arguments.side
    if not arguments.files:
        rng = np.random.default_rng(0)
        noisy, meta = arguments.images, max(arguments.batch_size, arguments.images // 10)
        return tuple(
            (rng.integers(0, 256, (n, side, side, 3), np.uint8), rng.integers(0, 10, n, np.int32))
            for n in (noisy, meta)
        )
    input_pipeline.make_photographs(directory, min(arguments.files, 400))
    resize = RESIZED.get(side, side * 8 // 7)
    images, labels, _ = image_files.from_directory(directory, (side, side), (resize, resize))
    many = np.arange(arguments.files) % len(images)
    steps, epochs = arguments.files // arguments.batch_size, 1 + arguments.epochs
    noisy = held_then_read(images[many], labels[many], arguments.batch_size, steps, epochs)
    return noisy, (images, labels)


def held_then_read(images, labels, batch_size, steps, epochs):
    """Without end: `epochs` epochs of a batch that is in memory, and the next ones read."""
    read = batches.batches(images, labels, batch_size, epochs=range(epochs), seed=0)
    held = tf.data.Dataset.from_tensors(next(iter(read))).repeat(steps * epochs)
    return held.concatenate(read).repeat().prefetch(2)


class Clock(keras.callbacks.Callback):
    """Seconds and peak memory of each epoch; the kernels of the epochs that are `profiled`."""

    def __init__(self, profiled):
        super().__init__()
        self.profiled = profiled
        self.seconds, self.peaks, self.kernels = [], [], {}
        self.has_gpu = bool(tf.config.list_physical_devices("GPU"))

    def on_epoch_begin(self, epoch, logs=None):
        if self.has_gpu:
            tf.config.experimental.reset_memory_stats("GPU:0")
        if epoch in self.profiled:
            self.directory = tempfile.TemporaryDirectory()
            options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=0)
            tf.profiler.experimental.start(self.directory.name, options)
        self.since = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.since)
        if self.has_gpu:
            self.peaks.append(tf.config.experimental.get_memory_info("GPU:0")["peak"])
        if epoch in self.profiled:
            tf.profiler.experimental.stop()
            self.kernels[epoch] = read_profile(self.directory.name)


def read_profile(directory):
    """(Number, nanoseconds) of each kernel's runs on the GPU, a dict by name."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    kernels = collections.defaultdict(lambda: [0, 0])
    for path in pathlib.Path(directory).rglob("*.xplane.pb"):
        for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
            streams = [line for line in plane.lines if line.name.startswith("Stream")]
            for line in streams if plane.name.startswith("/device:GPU") else ():
                for event in line.events:
                    kernel = kernels[plane.event_metadata[event.metadata_id].name]
                    kernel[0] += 1
                    kernel[1] += event.duration_ps / 1e3
    return dict(kernels)


def report_kernels(name, kernels, steps):
    """Prints and returns how long the GPU computes, and the ten largest kernels, by the step."""
    busy = sum(nanoseconds for _, nanoseconds in kernels.values()) / steps / 1e6
    count = sum(number for number, _ in kernels.values()) / steps
    largest = sorted(kernels.items(), key=lambda item: -item[1][1])[:10]
    largest = [(kernel, number / steps, ns / steps / 1e3) for kernel, (number, ns) in largest]
    print(f"\n{name}: the GPU computes {busy:.2f} ms a step, in {count:.0f} kernels; the largest:")
    print(f"{'kernel':<70}{'a step':>8}{'µs a step':>12}{'share':>8}")
    for kernel, number, µs in largest:
        print(f"{kernel[:68]:<70}{number:>8.1f}{µs:>12.1f}{µs / 1e3 / busy:>8.1%}")
    return {"busy_ms": busy, "kernels": count, "largest": largest}


def forward_pass(classifier):
    """Arithmetic (FLOP) of one image's forward pass, and the numbers its layers read and write, of
    `Conv2D` and `Dense` layers: the rest could be computed on the way."""
    operations = moved = 0
    for layer in all_layers(classifier):
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = np.prod(layer.output.shape[1:-1])
            operations += 2 * positions * np.prod(layer.kernel.shape)
            moved += np.prod(layer.input.shape[1:]) + np.prod(layer.output.shape[1:])
    return int(operations), int(moved)


def report(arguments, clock, steps, counts):
    """Prints the tables, and returns their figures."""
    figures = {"flags": vars(arguments) | {"json": None}, "steps": steps, "versions": versions()}
    print(f"{'':<28}{'ms a step':>10}{'range':>22}{'first epoch, s':>18}{'peak, GB':>12}")
    for name, span in epochs_of(arguments).items():
        if span.start in clock.profiled:
            continue
        first, *counted = clock.seconds[span.start : span.stop]
        one = input_pipeline.spread([1e3 * seconds / steps for seconds in counted])
        peak = max(clock.peaks[span.start : span.stop], default=0) / 1e9
        figures[name] = one | {"first_s": first, "peak_gb": peak}
        between = f"{one['min']:.2f} to {one['max']:.2f}"
        print(f"{name:<28}{one['median']:>10.2f}{between:>22}{first:>18.1f}{peak or '':>12.4}")
    figures["ratio"] = figures["phase 2"]["median"] / figures["cross-entropy"]["median"]
    print(f"phase 2 over cross-entropy: {figures['ratio']:.2f}; {steps} steps an epoch")
    width = 2 if arguments.mixed_precision else 4
    for phase, passes in PASSES.items():
        if arguments.files:
            whole = figures[f"{phase}, from files"]["median"]
            figures[f"{phase}, input wait"] = wait = 1 - figures[phase]["median"] / whole
            print(f"{phase} waits for its input: {wait:.1%} of a step")
        flop, moved = (passes * arguments.batch_size * count / 1e9 for count in counts)
        print(f"{phase} takes at least {flop:.0f} GFLOP and {moved * width:.2f} GB a step")
    print(figures["versions"])
    for name, span in epochs_of(arguments).items():
        if span.start in clock.profiled:
            figures[name] = report_kernels(name, clock.kernels[span.start], steps)
    return figures


def main(argv):
    arguments = parse(argv)
    spans = epochs_of(arguments)
    epochs = max(span.stop for span in spans.values())
    if arguments.jit_compile:
        configure_xla()
    model = build_model(
        arguments.network, arguments.side, epochs // 2, mixed_precision=arguments.mixed_precision,
        jit_compile=arguments.jit_compile, steps_per_execution=arguments.steps_per_execution,
    )  # fmt: skip
    clock = Clock([span.start for name, span in spans.items() if name.endswith("profile")])
    steps = (arguments.files or arguments.images) // arguments.batch_size
    with tempfile.TemporaryDirectory() as directory:
        noisy, meta = data(arguments, directory)
        model.fit(
            noisy, meta_data=meta, batch_size=arguments.batch_size, epochs=epochs,
            callbacks=[clock], verbose=0, steps_per_epoch=steps if arguments.files else None,
        )  # fmt: skip
    figures = report(arguments, clock, steps, forward_pass(model.classifier))
    if arguments.json:
        files.write_json(arguments.json, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

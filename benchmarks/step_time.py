"""Milliseconds a training step, cross-entropy beside phase 2, in one run through `fit`.

    python benchmarks/step_time.py [--mixed_precision] [--nojit_compile] [--images 50048] ...

The paper's 8-layer CNN on made-up images of CIFAR-10's size, batch 128, augmentation and input
pipeline included. The first epoch of each phase compiles and is not counted; of the others the
median and the range are given.
"""

import json
import pathlib
import statistics
import sys
import time

import keras
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import layers
import outputs
from mln_keras import MetaLabelNet

FLAGS = flags.FLAGS
flags.DEFINE_integer("images", 49920, "Training images.")
flags.DEFINE_integer("batch_size", 128, "Of training and meta batches.")
flags.DEFINE_integer("epochs", 5, "Counted epochs of each phase.")
flags.DEFINE_integer("steps_per_execution", 30, "Steps a call, at most.")
flags.DEFINE_bool("mixed_precision", False, "Compute in bfloat16.")
flags.DEFINE_bool("jit_compile", True, "Compile the step with XLA.")
flags.DEFINE_string("json", None, "File to write the figures to.")


SETTINGS = (
    "images", "batch_size", "epochs", "steps_per_execution", "mixed_precision", "jit_compile",
)  # fmt: skip


class EpochSeconds(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._since = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._since)


def main(_):
    if FLAGS.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)

    def made_up(n):
        return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n, np.int32)

    model = MetaLabelNet(
        layers.cnn8(), FLAGS.epochs + 1, augmentation=layers.RandomFlipCrop(4)
    )
    model.compile(
        keras.optimizers.SGD(1e-2, momentum=0.9),
        jit_compile=FLAGS.jit_compile,
        steps_per_execution=FLAGS.steps_per_execution,
    )
    clock = EpochSeconds()
    model.fit(
        made_up(FLAGS.images), meta_data=made_up(5000), batch_size=FLAGS.batch_size,
        epochs=2 * FLAGS.epochs + 2, callbacks=[clock], verbose=0,
    )  # fmt: skip
    steps = FLAGS.images // FLAGS.batch_size
    milliseconds = [1e3 * s / steps for s in clock.seconds]
    phases = {
        "cross-entropy": milliseconds[: FLAGS.epochs + 1],
        "phase 2": milliseconds[FLAGS.epochs + 1 :],
    }
    figures = {"flags": {n: FLAGS[n].value for n in SETTINGS}, "versions": outputs.versions()}
    print(f"{'':<16}{'ms a step':>10}{'range':>22}{'first epoch, s':>18}")
    for name, values in phases.items():
        first, counted = values[0] * steps / 1e3, values[1:]
        median, low, high = statistics.median(counted), min(counted), max(counted)
        figures[name] = {"median_ms": median, "min_ms": low, "max_ms": high, "first_s": first}
        print(f"{name:<16}{median:>10.2f}{f'{low:.2f} to {high:.2f}':>22}{first:>18.1f}")
    ratio = figures["phase 2"]["median_ms"] / figures["cross-entropy"]["median_ms"]
    print(f"phase 2 over cross-entropy: {ratio:.2f}; {steps} steps an epoch, {FLAGS.epochs} epochs")
    print(figures["versions"])
    if FLAGS.json:
        pathlib.Path(FLAGS.json).write_text(json.dumps(figures | {"ratio": ratio}, indent=1))


if __name__ == "__main__":
    app.run(main)

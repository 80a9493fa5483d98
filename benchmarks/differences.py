"""What decides the accuracy: each way in which a program may differ from the recipe, alone.

    python benchmarks/differences.py --noise_probs cifar10_student_probs.npy
    python benchmarks/differences.py --table_only

Runs MetaLabelNet on CIFAR-10 at 40 % noise with the recipe and with each difference from it, as
benchmarks/table1.py runs its grid. `DIFFERENCES` says what each one changes.
"""

import dataclasses
import functools
import itertools
import re
import sys

import grid
import keras
import numpy as np
import tensorflow as tf
from grid import quote
from keras import ops

import data
import data.noise
import layers
import mln_keras
from data import corruption


def with_model(change):
    """A difference made by changing the compiled model before it is trained."""

    def apply():
        build = mln_keras.build_model

        def build_and_change(settings, recipe):
            model = build(settings, recipe)
            change(model)
            return model

        mln_keras.build_model = build_and_change

    return apply


def with_attributes(**values):
    def change(model):
        for name, value in values.items():
            setattr(model, name, value)

    return with_model(change)


def change_recipes(**changes):
    for name, recipe in mln_keras.RECIPES.items():
        mln_keras.RECIPES[name] = dataclasses.replace(recipe, **changes)


def draw_uniform_noise():
    """Every label flips with the probability of the ratio, to any other class."""

    def uniform(labels, ratio, num_classes, seed):
        rng = np.random.default_rng(seed)
        other = (labels + rng.integers(1, num_classes, len(labels))) % num_classes
        return np.where(rng.random(len(labels)) < ratio, other, labels).astype(np.int32)

    data.noise.uniform = uniform


def add_1e_10():
    """`log(p + 1e-10)` of all probabilities; the authors' program has it for the soft labels'."""

    def log(logits):
        return ops.log(ops.softmax(ops.cast(logits, "float32")) + 1e-10)

    def kl_divergence(logits, soft_label_logits):
        return ops.sum(ops.softmax(logits) * (log(logits) - log(soft_label_logits)), axis=-1)

    def entropy(logits):
        return -ops.sum(ops.softmax(logits) * log(logits), axis=-1)

    layers.kl_divergence, layers.entropy = kl_divergence, entropy


@with_model
def forget_momentum(model):
    begin_phase_2 = model.begin_phase_2

    def begin_and_forget():
        begin_phase_2()
        for momentum in model.optimizer.momentums:
            momentum.assign(ops.zeros_like(momentum))

    model.begin_phase_2 = begin_and_forget


def with_initial_kernels(kinds, change):
    """A difference in the kernels of all layers of these kinds; biases then start from 0."""

    @with_model
    def apply(model):
        for layer in model.classifier.layers:
            if isinstance(layer, kinds):
                layer.kernel.assign(change(layer.kernel))
                if layer.use_bias:
                    layer.bias.assign(ops.zeros_like(layer.bias))

    return apply


@with_model
def augment_meta_batches(model):
    logits_at = model._logits_at
    model._logits_at = lambda θ_hat, images: logits_at(θ_hat, model._augment(images))


@with_model
def take_features_before_batch_norm(model):
    name = next(layer.name for layer in model.classifier.layers
                if isinstance(layer, keras.layers.Dense))  # fmt: skip
    model._features, _ = layers.find_features(model.classifier, name, model.image_shape)


@with_model
def spare_the_label_head(model):
    apply_gradients = model._apply_gradients

    def without_decay(optimizer, gradients, weights):
        if optimizer is model.meta_optimizer:
            optimizer.apply(gradients, weights)
        else:
            apply_gradients(optimizer, gradients, weights)

    model._apply_gradients = without_decay


@with_model
def average_weights(model):
    """Measured are the means of the weights over about the last 500 steps."""
    weights, evaluation = model.classifier.trainable_variables, model.evaluation
    averaging = {"use_ema": True, "ema_momentum": 0.998}
    optimizer = keras.optimizers.SGD.from_config(model.optimizer.get_config() | averaging)
    optimizer.build(weights)
    optimizer.finalize_variable_values = lambda weights: None  # it would train on from the means
    model.optimizer = optimizer

    def swap():
        averages = optimizer._model_variables_moving_average
        for weight, average in zip(weights, averages, strict=True):
            value = weight.numpy()
            weight.assign(average)
            average.assign(value)

    def evaluation_of_averages(*arguments):
        evaluate = evaluation(*arguments)

        def evaluate_averages():
            swap()
            result = evaluate()
            swap()
            return result

        return evaluate_averages

    model.evaluation = evaluation_of_averages


def with_images(change):
    """A difference made by changing all images, uint8 (N, H, W, channels), of every data set."""

    def apply():
        for name, load in data.LOADERS.items():

            def load_and_change(data_dir, load=load):
                source = load(data_dir)
                return dataclasses.replace(
                    source,
                    train_images=change(source.train_images),
                    held_out_images=change(source.held_out_images),
                )

            data.LOADERS[name] = load_and_change

    return apply


def re_encode(quality, images):
    encoded = (tf.io.encode_jpeg(image, quality=quality) for image in images)
    return np.stack([tf.io.decode_jpeg(jpeg) for jpeg in encoded])


def re_encode_shifted(quality, images):
    """As `re_encode`, with other 8×8 blocks than those of an encoding that the images may have.

    Where the blocks are the same, a second encoding at one quality changes next to nothing.
    """
    mirrored = np.pad(images, ((0, 0), (5, 3), (5, 3), (0, 0)), mode="symmetric")
    return re_encode(quality, mirrored)[:, 5:-3, 5:-3]


def blur_colour(images):
    """As a JPEG with a sample of the colours for 4×4 pixels, not 2×2, would have it."""
    yuv = tf.image.rgb_to_yuv(images / np.float32(255))
    blocks = tf.nn.avg_pool2d(yuv[..., 1:], 4, 4, "VALID")
    colour = tf.repeat(tf.repeat(blocks, 4, axis=1), 4, axis=2)
    rgb = tf.image.yuv_to_rgb(tf.concat([yuv[..., :1], colour], axis=-1))
    return tf.saturate_cast(tf.round(255 * rgb), tf.uint8).numpy()


def with_mlp_head(*between):
    """Section V-C: a hidden layer of as many units as there are features, and what follows it."""

    def build_label_head(self, num_features):
        return keras.Sequential(
            [keras.Input((num_features,)), keras.layers.Dense(num_features)]
            + [layer() for layer in between]
            + [keras.layers.ReLU(), layers.LabelHead(self.num_classes, num_features)],
            name="label_head",
        )

    def apply():
        mln_keras.MetaLabelNet.build_label_head = build_label_head

    return apply


ENCODINGS = {
    "JPEG quality 75 on shifted blocks": functools.partial(re_encode_shifted, 75),
    "JPEG quality 50": functools.partial(re_encode, 50),
    "JPEG quality 25": functools.partial(re_encode, 25),
}
# name -> what makes the difference in the program, or the flags that do
DIFFERENCES = {
    "recipe": [],
    "meta batch leaves the running averages alone": with_attributes(meta_batch_norm=False),
    "training batches in one order": with_attributes(seed=None),
    "meta batches shuffled": with_attributes(shuffle_meta=True),
    "meta batches augmented": augment_meta_batches,
    "batches of 125 that leave no image over": ["--batch_size=125"],
    "uniform noise drawn instead of counted": draw_uniform_noise,
    "initial weights of the authors' program": with_initial_kernels(
        keras.layers.Conv2D,
        lambda kernel: keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        )(kernel.shape),
    ),
    "Keras' initial weights": with_initial_kernels(
        keras.layers.Conv2D | keras.layers.Dense,
        lambda kernel: keras.initializers.GlorotUniform()(kernel.shape),
    ),
    "initial weights of the convolutions halved": with_initial_kernels(
        keras.layers.Conv2D, lambda kernel: kernel / 2
    ),
    "label head starts from the last layer": with_attributes(label_head_init="classifier"),
    "1e-10 in the logarithms": add_1e_10,
    "λ drops an epoch earlier": lambda: change_recipes(learning_rate_drops=(40, 80)),
    "no weight decay on the label head": spare_the_label_head,
    "averaged weights": average_weights,
    "sum over the classes": with_attributes(average_over_classes=False),
    "sum over the classes with α = 0.1":
        with_attributes(average_over_classes=False, inner_learning_rate=0.1),
    "α = 0.3": ["--inner_learning_rate=0.3"],
    "α = 3": ["--inner_learning_rate=3"],
    "momentum forgotten at the switch": forget_momentum,
    "features before batch norm and ReLU": take_features_before_batch_norm,
    "bfloat16": ["--mixed_precision"],
    "180 epochs": ["--epochs=180"],
    "no vertical flip": ["--novertical_flip"],
    **{f"images re-encoded at {name}": with_images(encode) for name, encode in ENCODINGS.items()},
    "colour averaged over 4×4 pixels": with_images(blur_colour),
    "MLP head": with_mlp_head(),
    "MLP head with batch norm": with_mlp_head(keras.layers.BatchNormalization),
    "MLP head with batch norm and dropout": with_mlp_head(
        keras.layers.BatchNormalization, functools.partial(keras.layers.Dropout, 0.5, seed=0)
    ),
}  # fmt: skip


def in_a_path(name):
    return re.sub(r"\W+", "_", name)


def runs_of(arguments):
    """Name, and program with flags, of every run in the order of running."""
    runs = {}
    for seed, name, noise in itertools.product(
        arguments.seeds, arguments.differences, arguments.noises
    ):
        difference = DIFFERENCES[name]
        runs[f"{noise}-{in_a_path(name)}-seed{seed}"] = grid.command(
            arguments, [__file__, "run", name], noise, 0.4, seed,
            more=difference if isinstance(difference, list) else (),
        )  # fmt: skip
    return runs


def table(results):
    """Markdown: a row a difference, test accuracy best by meta and what it gains on the recipe."""
    noises = list(dict.fromkeys(result["noise"] for result in results))
    lines = [f"| difference | {' | '.join(f'{noise} | gain' for noise in noises)} |",
             f"| --- {'| --- | --- ' * len(noises)}|"]  # fmt: skip
    accuracy = {}
    for result in results:
        cell = accuracy.setdefault((result["run"].split("-")[1], result["noise"]), {})
        cell[result["seed"]] = result["test_accuracy"]
    for name in DIFFERENCES:
        columns = []
        for noise in noises:
            mine, recipe = (accuracy.get((in_a_path(n), noise), {}) for n in (name, "recipe"))
            gains = [mine[s] - recipe[s] for s in mine if name != "recipe" and s in recipe]
            columns += [quote(mine.values()), quote(gains)]
        if any(columns):
            lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def parse(argv):
    def define(add):
        add("--noises", type=grid.names(corruption.NAMES), default=list(grid.NOISES))
        add("--differences", type=grid.names(DIFFERENCES), default=list(DIFFERENCES))

    return grid.name_files(grid.parse(__doc__, argv, define, seeds=[0, 1]), "differences")


def main(argv):
    """Returns the exit status: 1 where a run failed."""
    if argv[:1] == ["run"]:
        difference = DIFFERENCES[argv[1]]
        if callable(difference):
            difference()
        return mln_keras.main([__file__, *argv[2:]])
    arguments = parse(argv)
    return grid.main(arguments, runs_of(arguments), table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""MetaLabelNet: train an image classifier on wrong labels, with a few right ones to steer by.

Phase 1 warms the classifier up on the noisy labels. Phase 2 needs no labels: batch by batch, a
single-layer label head learns, by gradients through gradients, to write the soft labels on which
one step of the classifier does best on a small clean meta set; then the classifier takes that step.

    python mln_keras.py                                       # a demonstration, under a minute
    python mln_keras.py --dataset cifar10 --noise uniform     # the paper's recipe

Read from top to bottom: the model, the recipes (Section IV-B), the command line.

Reference: G. Algan and I. Ulusoy, "MetaLabelNet: Learning to Generate Soft-Labels from
Noisy-Labels". Symbols: θ classifier f, φ label head m, g the frozen feature extractor, α the inner
learning rate, λ and β the learning rates of the classifier and of the label head.
"""

import contextlib
import dataclasses
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import data.corruption
import data.source
import layers
import outputs
from command_line import METHODS, configure_xla, parse_settings
from data import checks, pipeline
from two_phase import TwoPhaseModel

# ---------------------------------------------------------------------------------------------
# The algorithm
# ---------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("mln_keras")
class MetaLabelNet(TwoPhaseModel):
    """A classifier together with the label head that writes its soft labels.

    Args:
        classifier: Keras model, images to logits (N, C), built. A subclassed model needs
            `feature_extractor`. Images reach it as float32, so uint8 ones in 0..255: begin it
            with a `keras.layers.Rescaling`. Its max-pooling layers are made to compute in float32.
        warmup_epochs: epochs of phase 1, cross-entropy on the labeled samples; phase 2 begins
            with the epoch of this (0-based) number.
        augmentation: layer applied to the training images, never to the meta images.
        feature_extractor: name of what gives the features (Eq. 3): a layer of a functional model,
            or the attribute (layer or method) of a subclassed one that maps images to features.
            None finds the input of the last layer with weights.
        inner_learning_rate: α, the step of Eq. 5, which the paper writes without a rate: 1.
        average_over_classes: divide Eq. 6, 11 and 12 by C, as the authors ran it; False is the
            sum over the classes that the paper writes.
        entropy_weight: factor of the entropy loss in Eq. 13.
        weight_decay: coupled L2, added as weight_decay·w to the gradient of every weight of the
            classifier and the label head. (An optimizer's own `weight_decay` is decoupled.)
        label_head_init: "random", or "classifier" to start phase 2 from the classifier's last
            layer.
        meta_batch_norm: whether the meta batch also moves the running averages of batch norm.
        shuffle_meta: whether meta batches made from arrays are drawn anew each time that the meta
            data have come round; False keeps their order, as the authors' program does.
        seed: integer, at least 0; with the epoch it decides the order of batches made from arrays.

    Raises:
        ValueError: for a classifier without logits of shape (N, C), without findable features or in
            float16, and for an argument outside its range.

    Example:

        model = MetaLabelNet(classifier, warmup_epochs=44)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), keras.optimizers.Adam(1e-2))
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=120)

    Reference: MetaLabelNet, Algorithm 1.
    """

    phase_2_metrics = ("meta_loss", "soft_label_entropy", "soft_label_agreement")
    config_names = (
        "warmup_epochs", "feature_extractor", "inner_learning_rate", "average_over_classes",
        "entropy_weight", "weight_decay", "label_head_init", "meta_batch_norm", "shuffle_meta",
        "seed",
    )  # fmt: skip

    def __init__(
        self,
        classifier,
        warmup_epochs,
        augmentation=None,
        feature_extractor=None,
        inner_learning_rate=1.0,
        average_over_classes=True,
        entropy_weight=1.0,
        weight_decay=1e-4,
        label_head_init="random",
        meta_batch_norm=True,
        shuffle_meta=True,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.integer("warmup_epochs", warmup_epochs, 0)
        checks.integer("seed", seed, 0)
        checks.positive("inner_learning_rate", inner_learning_rate)
        checks.at_least("entropy_weight", entropy_weight, 0)
        checks.at_least("weight_decay", weight_decay, 0)
        checks.one_of("label_head_init", label_head_init, ("random", "classifier"))
        self.classifier = classifier
        self.warmup_epochs = warmup_epochs
        self.augmentation = augmentation
        self.feature_extractor = feature_extractor
        self.inner_learning_rate = inner_learning_rate
        self.average_over_classes = average_over_classes
        self.entropy_weight = entropy_weight
        self.weight_decay = weight_decay
        self.label_head_init = label_head_init
        self.meta_batch_norm = meta_batch_norm
        self.shuffle_meta = shuffle_meta
        self.seed = seed

        self.image_shape, self.num_classes = layers.classifier_shapes(classifier)
        if classifier.compute_dtype == "float16":
            raise ValueError(
                "classifier: computes in float16, in which small gradients are 0, as no loss is "
                "scaled here; use mixed_bfloat16"
            )
        layers.set_max_pooling_float32(classifier)
        self._features, num_features = layers.find_features(
            classifier, feature_extractor, self.image_shape
        )
        self.label_head = self.build_label_head(num_features)
        shapes = [w.shape for w in getattr(layers.last_dense(classifier), "weights", [])]
        if label_head_init == "classifier" and shapes != [w.shape for w in self.label_head.weights]:
            raise ValueError(
                "label_head_init: 'classifier' needs a functional or Sequential classifier whose "
                "last layer is Dense, with a bias, on the features; use 'random'"
            )

        # All that training changes is a Keras variable, so that saving saves it.
        self.phase = self.add_weight(
            shape=(), dtype="int32", initializer="ones", trainable=False, name="phase"
        )
        self.frozen_weights = [
            self.add_weight(
                shape=w.shape, dtype=w.dtype, initializer="zeros", trainable=False,
                name="frozen_" + w.path.replace("/", "_"),
            )
            for w in classifier.weights
        ]
        self._write_soft_labels = tf.function(
            lambda x: ops.softmax(self.label_head(self._extract_features(x))), reduce_retracing=True
        )
        self.meta_loss = keras.metrics.Mean("meta_loss")
        self.soft_label_entropy = keras.metrics.Mean("soft_label_entropy")
        self.soft_label_agreement = keras.metrics.Mean("soft_label_agreement")
        self.built = True

    def build_label_head(self, num_features):
        """m_φ, a built layer: features float32 (N, F) to the logits of soft labels, float32 (N, C).

        Another label head is a subclass's. The constructor calls this, so what it needs is there.
        """
        return layers.LabelHead(self.num_classes, num_features, name="label_head")

    def call(self, images, training=False):
        """Class probabilities, float32 (N, C), of images (N, H, W, channels)."""
        checks.image_dtype(images.dtype, self.image_dtype)
        return ops.softmax(self.logits(images, training))

    def logits(self, images, training):
        """f_θ(x) before its softmax, float32 (N, C), of images (N, H, W, channels)."""
        images = ops.cast(images, keras.config.floatx())
        return ops.cast(self.classifier(images, training=training), keras.config.floatx())

    def train_step(self, batch):
        warms_up = self.phase_in_training == 1
        return self.run_step(self._warmup_step if warms_up else self._phase_2_step, batch)

    def _warmup_step(self, batch):
        """Phase 1: one step on the cross-entropy with the given labels."""
        images, labels = batch
        θ = self.classifier.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.logits(self._augment(images), training=True)
            loss = tf.reduce_mean(layers.cross_entropy(labels, logits))
            objective = loss + self._regularization()
        self._apply_gradients(self.optimizer, _gradient(tape, objective, θ), θ)
        self.update_metrics(loss, labels, logits)

    def begin_phase_2(self):
        """Freezes a copy of the classifier as the feature extractor, and starts the label head."""
        for frozen, weight in zip(self.frozen_weights, self.classifier.weights, strict=True):
            frozen.assign(weight)
        if self.label_head_init == "classifier":
            last_layer = layers.last_dense(self.classifier)
            for start, weight in zip(self.label_head.weights, last_layer.weights, strict=True):
                start.assign(weight)
        self.phase.assign(2)

    def _extract_features(self, images):
        """v = g(x) (Eq. 3): the classifier without its last layer, at its weights after warm-up."""
        frozen = list(zip(self.classifier.weights, self.frozen_weights, strict=True))
        with keras.StatelessScope(state_mapping=frozen):
            features = self._features(ops.cast(images, keras.config.floatx()))
        return ops.cast(ops.reshape(features, (ops.shape(images)[0], -1)), keras.config.floatx())

    def _phase_2_step(self, noisy_batch, meta_batch):
        """Phase 2: Algorithm 1 on one batch. The given labels are compared with, never used.

        Each batch is (images (N, H, W, channels), int32 labels (N,)).
        """
        (x, given_labels), (x_meta, y_meta) = noisy_batch, meta_batch
        θ, φ = self.classifier.trainable_variables, self.label_head.trainable_variables
        α = self.inner_learning_rate
        x = self._augment(x)
        v = self._extract_features(x)  # Eq. 3

        with tf.GradientTape() as meta_tape:
            with tf.GradientTape(persistent=True) as tape:
                logits = self.logits(x, training=True)
                regularization = self._regularization()
                soft_label_logits = self.label_head(v, training=True)  # Eq. 4
                loss_c = self.classification_loss(logits, soft_label_logits)  # Eq. 6
            if loss_c.shape.rank:  # its gradient would be that of a sum
                raise ValueError(
                    f"classification_loss: expected a scalar, received shape {loss_c.shape}"
                )
            gradients = _mean_over_replicas(_gradient(tape, loss_c, θ))
            θ_hat = [w - α * g for w, g in zip(θ, gradients)]  # Eq. 5
            meta_logits = self._logits_at(θ_hat, x_meta)
            meta_loss = tf.reduce_mean(layers.cross_entropy(y_meta, meta_logits))  # Eq. 9
        self._apply_gradients(self.meta_optimizer, _gradient(meta_tape, meta_loss, φ), φ)  # Eq. 10

        soft_label_logits = tf.stop_gradient(self.label_head(v, training=True))
        with tape:  # records on: f(x) is the forward pass of above
            loss_c = self.classification_loss(logits, soft_label_logits)  # Eq. 11
            loss_e = self._mean(layers.entropy(logits))  # Eq. 12
            loss = loss_c + self.entropy_weight * loss_e
            objective = loss + regularization
        self._apply_gradients(self.optimizer, _gradient(tape, objective, θ), θ)  # Eq. 13

        self.meta_loss.update_state(meta_loss)
        self.soft_label_entropy.update_state(layers.entropy(soft_label_logits))
        agreement = ops.argmax(soft_label_logits, -1) == ops.cast(given_labels, "int32")
        self.soft_label_agreement.update_state(agreement, sample_weight=given_labels >= 0)
        self.update_metrics(loss, given_labels, logits)

    def _logits_at(self, θ_hat, images):
        """f_θ̂ in training mode. θ̂ is thrown away; the batch norm statistics may stay."""
        mapping = list(zip(self.classifier.trainable_variables, θ_hat, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logits = self.logits(images, training=True)
        weights = set(map(id, self.classifier.weights))
        for state in self.classifier.non_trainable_variables:
            new = scope.get_current_value(state)
            if new is not None and (self.meta_batch_norm or id(state) not in weights):
                state.assign(new)
        return logits

    def classification_loss(self, logits, soft_label_logits):
        """L_c of Eq. 6 and 11, a float32 scalar, of logits float32 (N, C) both."""
        return self._mean(layers.kl_divergence(logits, soft_label_logits))  # Eq. 7, 8

    def _mean(self, losses):
        """Mean over the batch, and over the classes where the authors' reduction is asked for."""
        return tf.reduce_mean(losses) / (self.num_classes if self.average_over_classes else 1)

    def _regularization(self):
        return sum(ops.cast(loss, keras.config.floatx()) for loss in self.classifier.losses)

    def _augment(self, images):
        return images if self.augmentation is None else self.augmentation(images, training=True)

    def _apply_gradients(self, optimizer, gradients, weights):
        """One step of an optimizer, which adds up what the replicas of tf.distribute give it."""
        share = 1 / tf.distribute.get_strategy().num_replicas_in_sync
        decayed = [
            optimizer.scale_loss(share * (g + self.weight_decay * w))  # `apply` divides by it
            for g, w in zip(gradients, weights)
        ]
        optimizer.apply(decayed, weights)

    def soft_labels(self, images, batch_size=1000):
        """What the label head says of images, seen in training or not.

        Args:
            images: (N, H, W, channels), of the dtype that the model was trained on, or
                `ImageFiles`.
            batch_size: images computed at once.

        Returns:
            float32 NumPy array (N, C); rows sum to 1.

        Raises:
            ValueError: before phase 2 has begun, and for images of another shape or dtype.
        """
        checks.integer("batch_size", batch_size, 1)
        if self.phase == 1:
            raise ValueError("soft_labels: the label head learns in phase 2, which has not begun")
        checks.images("images", images, self.image_shape, self.image_dtype)
        spans = range(0, max(1, len(images)), batch_size)
        return np.concatenate([
            self._write_soft_labels(np.asarray(images[i : i + batch_size])) for i in spans
        ])


def _gradient(tape, loss, weights):
    """As `tape.gradient`, with zeros for weights that the loss does not reach."""
    gradients = tape.gradient(loss, weights)
    return [tf.zeros_like(w) if g is None else g for g, w in zip(gradients, weights)]


def _mean_over_replicas(gradients):
    context = tf.distribute.get_replica_context()
    return gradients if context.num_replicas_in_sync == 1 else context.all_reduce("MEAN", gradients)


# ---------------------------------------------------------------------------------------------
# The recipes
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a data set is trained with (Section IV-B); the flags of the same names replace it.

    Attributes:
        build_classifier: function without arguments, returns a Keras model from uint8 images in
            0..255 to logits (N, C).
        build_augmentation: function of `vertical_flip`, returns a layer for uint8 images.
        noise: one of `data.corruption.NAMES`.
        noise_ratio: share of wrong labels, in [0, 1]; see `data.corruption.corrupt`.
        meta_size, batch_size: samples.
        epochs: of both phases, the first `warmup_epochs` of them phase 1.
        learning_rate: λ; divided by 10 at each of the epochs (0-based) in `learning_rate_drops`.
        meta_learning_rate, inner_learning_rate: β and α.
        unlabeled_size: training samples that lose their label.
        vertical_flip: whether the augmentation mirrors images top to bottom, too.
    """

    build_classifier: Callable
    build_augmentation: Callable
    noise: str
    noise_ratio: float
    meta_size: int
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_drops: tuple
    meta_learning_rate: float
    inner_learning_rate: float = 1.0
    unlabeled_size: int = 0
    vertical_flip: bool = True

    def learning_rate_at(self, epoch):
        return self.learning_rate * 0.1 ** sum(epoch >= drop for drop in self.learning_rate_drops)


RECIPES = {
    "digits": Recipe(
        build_classifier=layers.digits_cnn,
        build_augmentation=functools.partial(layers.RandomFlipCrop, 1, False),
        noise="class_dependent",
        noise_ratio=0.4,
        meta_size=300,
        epochs=25,
        warmup_epochs=8,
        batch_size=64,
        learning_rate=1e-2,
        learning_rate_drops=(),
        meta_learning_rate=1e-2,
        vertical_flip=False,
    ),
    "cifar10": Recipe(
        build_classifier=layers.cnn8,
        build_augmentation=functools.partial(layers.RandomFlipCrop, 4),
        noise="uniform",
        noise_ratio=0.4,
        meta_size=5000,
        epochs=120,
        warmup_epochs=44,
        batch_size=128,
        learning_rate=1e-2,
        learning_rate_drops=(41, 81),  # the text says 40 and 80; the authors' program ran this
        meta_learning_rate=1e-2,
    ),
}
EVALUATION_BATCH = 1000

# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


def load_splits(settings, recipe):
    """Loads the data set, draws meta and test set, removes labels, corrupts the rest."""
    source = data.LOADERS[settings["dataset"]](settings["data_dir"])
    splits = data.source.make_splits(
        source,
        meta_size=settings["meta_size"],
        unlabeled_size=settings["unlabeled_size"],
        seed=settings["seed"],
    )
    num_labeled = np.sum(splits.given_labels >= 0)
    checks.within("batch_size", settings["batch_size"], 1, num_labeled, "the labeled samples")
    labels = data.corruption.corrupt(
        source,
        settings["noise"],
        settings["noise_ratio"],
        settings["seed"],
        data_dir=settings["data_dir"],
        probabilities_file=settings["noise_probs"],
        build_teacher=recipe.build_classifier,
    )
    return splits.with_labels(labels)


def build_model(settings, recipe):
    """The recipe's model, compiled. Sets Keras' global seed and dtype policy, which stay so."""
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy("mixed_bfloat16" if settings["mixed_precision"] else "float32")
    trains_phase_2 = settings["method"] == "metalabelnet"
    model = MetaLabelNet(
        recipe.build_classifier(),
        recipe.warmup_epochs if trains_phase_2 else recipe.epochs,
        augmentation=recipe.build_augmentation(vertical_flip=recipe.vertical_flip),
        inner_learning_rate=recipe.inner_learning_rate,
        shuffle_meta=False,  # their order is drawn already, with the split
        seed=settings["seed"],
    )
    model.compile(
        keras.optimizers.SGD(recipe.learning_rate, momentum=0.9),
        keras.optimizers.Adam(recipe.meta_learning_rate, epsilon=1e-8),
        jit_compile=settings["jit_compile"],
        steps_per_execution=settings["steps_per_execution"],
    )
    return model


def run(settings, recipe, splits):
    """Trains one run, writes its files and returns its result, the content of result.json."""
    directory = settings["output_dir"]
    trains_phase_2 = settings["method"] == "metalabelnet"
    model = build_model(settings, recipe)
    state, weights = outputs.load_checkpoint(directory)
    if state is not None:
        model.load_weights(weights)
    held_out = {
        "meta": model.evaluation(splits.meta_images, splits.meta_labels, EVALUATION_BATCH),
        "test": model.evaluation(splits.test_images, splits.test_labels, EVALUATION_BATCH),
    }
    recorder = outputs.RunRecorder(directory, settings, held_out, state)
    print(f"{settings['method']} on {outputs.versions()['device']}: {directory}, from epoch "
          f"{len(recorder.rows) + 1} to {recipe.epochs}", flush=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", pipeline.NO_META_SAMPLE)  # `make_splits` has said it
        model.fit(
            (splits.train_images, splits.given_labels),
            meta_data=(splits.meta_images, splits.meta_labels) if trains_phase_2 else None,
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            initial_epoch=state["epoch"] if state else 0,
            callbacks=[keras.callbacks.LearningRateScheduler(recipe.learning_rate_at), recorder],
            verbose=1 if sys.stdout.isatty() else 0,
        )
    if trains_phase_2:
        soft_labels = model.soft_labels(splits.train_images)
        outputs.write_soft_labels(directory, splits.given_labels, soft_labels)
    return outputs.write_results(
        directory,
        model,
        settings | {"warmup_epochs": recipe.warmup_epochs if trains_phase_2 else None},
        recorder.rows,
        noise_ratio_actual=splits.noise_ratio,
        seconds=recorder.seconds,
        flags=settings,
    )


def run_or_say_why_not(settings, recipe, splits):
    """As `run`; None, and a line for the user, where the loss is not finite or a write fails."""
    directory = settings["output_dir"]
    try:
        return run(settings, recipe, splits)
    except FloatingPointError as error:
        state, _ = outputs.load_checkpoint(directory)
        kept = "no checkpoint, as no epoch was done"
        if state:
            kept = f"the last good checkpoint, of epoch {state['epoch']}"
        print(f"mln_keras.py: {error}; {directory} keeps {kept}", file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        print(f"mln_keras.py: --output_dir: cannot write to {directory} ({reason}); --resume "
              "continues the run", file=sys.stderr)
    return None


def demonstration_runs(settings):
    """The settings of the demonstration's two runs, in two folders of --output_dir.

    Raises:
        ValueError: where that holds anything but an earlier demonstration.
    """
    parent = settings["output_dir"]
    own = ()
    if os.path.isdir(os.path.join(parent, METHODS[0])):
        own = (*METHODS, "curves.png", ".writing-curves.png")
    outputs.check_holds_only(parent, lambda path: path.name in own)
    return [settings | {"method": m, "output_dir": os.path.join(parent, m)} for m in METHODS]


def main(argv):
    """Runs the command line.

    Returns:
        The exit status: 2 for bad input, 1 for a loss that is not finite or files that cannot be
        written, 130 for Ctrl-C.
    """
    try:
        with contextlib.ExitStack() as claims:
            return execute(argv, claims)
    except KeyboardInterrupt:
        print("\nmln_keras.py: interrupted; --resume continues this run", file=sys.stderr)
        return 130


def execute(argv, claims):
    """What `main` does, while `claims` (contextlib.ExitStack) keeps other processes away."""
    settings = {}
    try:
        settings, recipe = parse_settings(argv, RECIPES, __doc__)
        if settings is None:
            return 0
        is_demonstration = settings["method"] is None
        runs = demonstration_runs(settings) if is_demonstration else [settings]

        def find_runs():
            return [outputs.find_run(r["output_dir"], r, r["resume"]) for r in runs]

        finished = find_runs()
        if None in finished:
            if settings["jit_compile"]:
                configure_xla()
            # On a GPU deterministic kernels are slow, and Keras refuses them with XLA.
            if not settings["jit_compile"] and not tf.config.list_physical_devices("GPU"):
                tf.config.experimental.enable_op_determinism()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                splits = load_splits(settings, recipe)
            for warning in caught:
                print(f"mln_keras.py: warning: {warning.message}", file=sys.stderr)
            for one in runs:
                claims.enter_context(outputs.claim_directory(one["output_dir"]))
            finished = find_runs()  # another process may have been there
    except ValueError as error:
        name = re.split("[ :]", str(error))[0]  # of the flag, where the error is about one
        print(f"mln_keras.py: {'--' if name in settings else ''}{error}", file=sys.stderr)
        return 2
    results = []
    for one, result in zip(runs, finished):
        if result is None:
            result = run_or_say_why_not(one, recipe, splits)
            if result is None:
                return 1
        else:
            print(f"{one['method']}: {one['output_dir']} holds this run, finished")
        results.append(result)
    print(f"\n{outputs.table(results)}")
    if is_demonstration:
        curves = os.path.join(settings["output_dir"], "curves.png")
        if None in finished or not os.path.exists(curves):
            outputs.plot_curves(curves, [(r["output_dir"], q) for r, q in zip(runs, results)])
        print(f"\nThe same by epoch: {curves}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

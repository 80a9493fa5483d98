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

import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from keras import ops

import data.corruption
import data.source
import layers
import outputs
from callbacks import RunRecorder, TwoPhaseCallbacks
from data import checks, pipeline

# ---------------------------------------------------------------------------------------------
# The algorithm
# ---------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("mln_keras")
class MetaLabelNet(keras.Model):
    """A classifier together with the label head that writes its soft labels.

    Args:
        classifier: Keras model, images to logits (N, C), built. A subclassed model needs
            `feature_extractor`. Images reach it as float32, so uint8 ones in 0..255: begin it
            with a `keras.layers.Rescaling`.
        warmup_epochs: epochs of phase 1, cross-entropy on the labeled samples; phase 2 begins
            with the epoch of this (0-based) number.
        augmentation: layer applied to the training images, never to the meta images.
        feature_extractor: name of what gives the features (Eq. 3): a layer of a functional model,
            or the attribute (layer or method) of a subclassed one that maps images to features.
            None finds the input of the last layer with weights.
        inner_learning_rate: α, the step of Eq. 5.
        average_over_classes: divide Eq. 6, 11 and 12 by C, as the authors ran it; False is the
            sum over the classes that the paper writes.
        entropy_weight: factor of the entropy loss in Eq. 13.
        weight_decay: coupled L2, added as weight_decay·w to the gradient of every weight of the
            classifier and the label head. (An optimizer's own `weight_decay` is decoupled.)
        label_head_init: "random", or "classifier" to start phase 2 from the classifier's last
            layer.
        meta_batch_norm: whether the meta batch also moves the running averages of batch norm.
        seed: integer; with the epoch it decides the order of batches made from arrays.

    Raises:
        ValueError: for a classifier without logits of shape (N, C) or without findable features,
            and for an argument outside its range.

    Example:

        model = MetaLabelNet(classifier, warmup_epochs=44)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), keras.optimizers.Adam(1e-2))
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=120)

    Reference: MetaLabelNet, Algorithm 1.
    """

    phase_2_metrics = ("meta_loss", "soft_label_entropy", "soft_label_agreement")

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
        seed=0,
        **kwargs,
    ):
        super().__init__(**({"dtype": keras.config.floatx()} | kwargs))
        checks.at_least("warmup_epochs", warmup_epochs, 0)
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
        self.seed = seed

        layers.set_max_pooling_float32(classifier)
        self.image_shape, self.num_classes = layers.classifier_shapes(classifier)
        self._features, num_features = layers.find_features(
            classifier, feature_extractor, self.image_shape
        )
        self.label_head = layers.LabelHead(self.num_classes, num_features, name="label_head")
        self._last_layer = layers.last_dense(classifier)
        if label_head_init == "classifier" and self._last_layer is None:
            raise ValueError(
                "label_head_init: 'classifier' needs a functional or Sequential classifier whose "
                "last layer is Dense; use 'random'"
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
        self.meta_loss = keras.metrics.Mean("meta_loss")
        self.soft_label_entropy = keras.metrics.Mean("soft_label_entropy")
        self.soft_label_agreement = keras.metrics.Mean("soft_label_agreement")
        self.current_epoch = 0
        self.image_dtype = None
        self.built = True

    def compile(
        self,
        optimizer,
        meta_optimizer=None,
        metrics=("accuracy",),
        jit_compile="auto",
        run_eagerly=False,
        steps_per_execution=1,
    ):
        """Configures training. The losses are the algorithm's and cannot be chosen.

        Args:
            optimizer: of the classifier, λ in Eq. 13; the paper's is SGD with momentum 0.9.
            meta_optimizer: of the label head, β in Eq. 10; another instance than `optimizer`.
                None is the paper's Adam, 1e-2.
            metrics: Keras metrics of (given labels, class probabilities); unlabeled samples have
                weight 0.
            jit_compile, run_eagerly: as `keras.Model.compile`.
            steps_per_execution: at most how many steps run in one call. With `jit_compile`, and
                where batches have one shape and a divisor of their number allows it, they are one
                XLA program: the fastest way on a GPU, but a slow one on a CPU.

        Raises:
            ValueError: where one optimizer is given twice.
        """
        if optimizer is meta_optimizer:
            raise ValueError(
                "meta_optimizer: expected another optimizer than `optimizer`, received the same; "
                "each keeps the state of its own weights"
            )
        super().compile(
            optimizer=optimizer,
            metrics=list(metrics),
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            auto_scale_loss=False,
        )
        self._steps_a_call = steps_per_execution
        self.meta_optimizer = keras.optimizers.get(
            keras.optimizers.Adam(1e-2, epsilon=1e-8) if meta_optimizer is None else meta_optimizer
        )
        self._compile_arguments = {
            "metrics": metrics,
            "jit_compile": jit_compile,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
        }
        self.optimizer.build(self.classifier.trainable_variables)
        self.meta_optimizer.build(self.label_head.trainable_variables)

    def call(self, images, training=False):
        """Class probabilities, float32 (N, C), of images (N, H, W, channels)."""
        return ops.softmax(self._logits(images, training))

    def _logits(self, images, training):
        checks.image_dtype(images, self.image_dtype)
        images = ops.cast(images, keras.config.floatx())
        return ops.cast(self.classifier(images, training=training), keras.config.floatx())

    def fit(
        self,
        x,
        y=None,
        *,
        meta_data=None,
        unlabeled_data=None,
        batch_size=128,
        epochs=1,
        initial_epoch=0,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        """Trains both phases; epochs from `warmup_epochs` on are phase 2.

        Args:
            x: the noisy data: images with `y` their labels, a pair (images, labels), or a
                tf.data.Dataset of (images, labels) batches. Images (N, H, W, channels), labels
                integer (N,) in [0, C), or -1 for a sample without a label.
            meta_data: the clean data, a pair or a Dataset likewise; it is repeated, in its order,
                as often as needed. May be left out where no epoch of phase 2 is asked for: then
                this is plain cross-entropy training.
            unlabeled_data: images, or a Dataset of image batches, for phase 2 only.
            batch_size: N_b for arrays; a Dataset has its own.
            epochs, initial_epoch, verbose, callbacks: as `keras.Model.fit`.
            **kwargs: `validation_data`, `validation_batch_size`, `validation_freq`,
                `validation_steps` and `steps_per_epoch` of `keras.Model.fit`.

        Returns:
            keras.callbacks.History; the metrics that only phase 2 has are NaN in warm-up.

        Raises:
            ValueError: for data that do not fit together, one line that names the argument.
            FloatingPointError: where the loss is not finite, with epoch and step.
        """
        warmup_end = min(epochs, self.warmup_epochs)
        if meta_data is None and epochs > warmup_end:
            raise ValueError(
                f"meta_data: needed from epoch {warmup_end} on, where phase 2 begins; "
                f"received None with epochs={epochs}"
            )
        if meta_data is not None and epochs <= self.warmup_epochs:
            raise ValueError(
                f"epochs: expected more than warmup_epochs={self.warmup_epochs}, received "
                f"{epochs}, so phase 2 would never begin; leave meta_data out to warm up only"
            )
        labeled, noisy, meta = pipeline.training_data(
            x if y is None else (x, y), meta_data, unlabeled_data, self.image_shape,
            self.num_classes, batch_size, seed=self.seed, epoch=lambda: self.current_epoch,
        )
        self.image_dtype = labeled.element_spec[0].dtype.name

        watch = TwoPhaseCallbacks(
            callbacks, self.phase_2_metrics, model=self, add_history=True, add_progbar=verbose != 0
        )
        fit_phase = functools.partial(
            self._fit_phase, callbacks=watch, verbose=verbose, initial_epoch=initial_epoch, **kwargs
        )
        self.stop_training = False
        if initial_epoch < warmup_end and self.phase == 1:
            fit_phase(1, labeled, epochs=warmup_end)
        if epochs > warmup_end and not self.stop_training:
            if self.phase == 1:
                self.begin_phase_2()
            fit_phase(2, tf.data.Dataset.zip(noisy, meta.repeat()),
                      epochs=epochs, initial_epoch=max(initial_epoch, warmup_end))
        watch.finish()
        return self.history

    def _fit_phase(self, phase, dataset, callbacks, verbose, epochs, **kwargs):
        self._step = self._warmup_step if phase == 1 else self._phase_2_step
        self._loop_length = 1
        if self.jit_compile and "steps_per_epoch" not in kwargs:
            self._loop_length = pipeline.loop_length(dataset, self._steps_a_call)
        if self._loop_length > 1:
            dataset = dataset.batch(self._loop_length, drop_remainder=True)
        self.steps_per_execution = 1 if self._loop_length > 1 else self._steps_a_call
        steps = kwargs.get("steps_per_epoch") or int(dataset.cardinality())
        callbacks.set_params({
            "verbose": 1 if verbose == "auto" else verbose,
            "epochs": epochs, "steps": steps if steps > 0 else None,
        })
        self.make_train_function(force=True)
        super().fit(dataset, epochs=epochs, callbacks=callbacks, verbose=verbose, shuffle=False,
                    **kwargs)

    def train_step(self, batch):
        """One step, or, on batches with a leading axis of steps, a loop of them in one program."""
        if self._loop_length == 1:
            self._step(*batch)
        else:
            def step(i):
                self._step(*tf.nest.map_structure(lambda tensors: tensors[i], batch))
                return i + 1

            tf.while_loop(lambda i: i < self._loop_length, step, [0])
        return self._results(phase_2=self._step == self._phase_2_step)

    def _warmup_step(self, images, labels):
        """Phase 1: one step on the cross-entropy with the given labels, unlabeled ones left out."""
        θ = self.classifier.trainable_variables
        is_labeled = ops.cast(labels >= 0, keras.config.floatx())
        with tf.GradientTape() as tape:
            logits = self._logits(self._augment(images), training=True)
            losses = layers.cross_entropy(tf.maximum(labels, 0), logits)
            loss = tf.math.divide_no_nan(
                tf.reduce_sum(losses * is_labeled), tf.reduce_sum(is_labeled)
            )
            objective = loss + self._regularization()
        self._descend(self.optimizer, _gradient(tape, objective, θ), θ)
        self._measure(loss, labels, logits)

    def begin_phase_2(self):
        """Freezes a copy of the classifier as the feature extractor g, and starts the label head."""
        for frozen, weight in zip(self.frozen_weights, self.classifier.weights, strict=True):
            frozen.assign(weight)
        if self.label_head_init == "classifier":
            for start, weight in zip(self.label_head.weights, self._last_layer.weights):
                start.assign(weight)
        self.phase.assign(2)

    def _extract_features(self, images):
        """v = g(x) (Eq. 3): the classifier without its last layer, at its weights after warm-up."""
        frozen = list(zip(self.classifier.weights, self.frozen_weights, strict=True))
        with keras.StatelessScope(state_mapping=frozen):
            features = self._features(ops.cast(images, keras.config.floatx()))
        return ops.cast(ops.reshape(features, (ops.shape(images)[0], -1)), keras.config.floatx())

    def _phase_2_step(self, noisy_batch, meta_batch):
        """Phase 2: Algorithm 1 on one batch. The given labels are only compared with, never used."""
        (x, given_labels), (x_meta, y_meta) = noisy_batch, meta_batch
        θ, φ = self.classifier.trainable_variables, self.label_head.trainable_variables
        x = self._augment(x)
        v = self._extract_features(x)                                                    # Eq. 3

        with tf.GradientTape() as meta_tape:
            with tf.GradientTape(persistent=True) as tape:
                logits = self._logits(x, training=True)
                regularization = self._regularization()
                loss_c = self._mean(layers.kl_divergence(logits, self.label_head(v)))    # Eq. 4, 6-8
            inner_gradients = _gradient(tape, loss_c, θ)
            θ_hat = [w - self.inner_learning_rate * g for w, g in zip(θ, inner_gradients)]  # Eq. 5
            meta_logits = self._logits_at(θ_hat, x_meta)
            meta_loss = tf.reduce_mean(layers.cross_entropy(y_meta, meta_logits))        # Eq. 9
        self._descend(self.meta_optimizer, _gradient(meta_tape, meta_loss, φ), φ)        # Eq. 10

        soft_label_logits = tf.stop_gradient(self.label_head(v))
        with tape:
            loss_c = self._mean(layers.kl_divergence(logits, soft_label_logits))         # Eq. 11
            loss_e = self._mean(layers.entropy(logits))                                  # Eq. 12
            loss = loss_c + self.entropy_weight * loss_e
            objective = loss + regularization
        self._descend(self.optimizer, _gradient(tape, objective, θ), θ)                  # Eq. 13

        self.meta_loss.update_state(meta_loss)
        self.soft_label_entropy.update_state(layers.entropy(soft_label_logits))
        agreement = tf.equal(tf.argmax(soft_label_logits, -1, tf.int32), tf.cast(given_labels, tf.int32))
        self.soft_label_agreement.update_state(agreement, sample_weight=given_labels >= 0)
        self._measure(loss, given_labels, logits)

    def _logits_at(self, θ_hat, images):
        """f_θ̂ in training mode. θ̂ is thrown away; the batch norm statistics may stay."""
        mapping = list(zip(self.classifier.trainable_variables, θ_hat, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logits = self._logits(images, training=True)
        weights = set(map(id, self.classifier.weights))
        for state in self.classifier.non_trainable_variables:
            new = scope.get_current_value(state)
            if new is not None and (self.meta_batch_norm or id(state) not in weights):
                state.assign(new)
        return logits

    def _mean(self, losses):
        """Mean over the batch, and over the classes where the authors' reduction is asked for."""
        return tf.reduce_mean(losses) / (self.num_classes if self.average_over_classes else 1)

    def _regularization(self):
        return tf.add_n(self.classifier.losses) if self.classifier.losses else 0.0

    def _augment(self, images):
        return images if self.augmentation is None else self.augmentation(images, training=True)

    def _descend(self, optimizer, gradients, weights):
        optimizer.apply(
            [g + self.weight_decay * w for g, w in zip(gradients, weights)], weights
        )

    def _measure(self, loss, labels, logits):
        is_labeled = ops.cast(labels >= 0, keras.config.floatx())
        self._loss_tracker.update_state(loss)
        self.compute_metrics(None, labels, ops.softmax(logits), sample_weight=is_labeled)

    def _results(self, phase_2=False):
        results = self.get_metrics_result()
        return {n: results[n] for n in results if phase_2 or n not in self.phase_2_metrics}

    def test_step(self, batch):
        images, labels = batch
        logits = self._logits(images, training=False)
        self._measure(layers.cross_entropy(labels, logits), labels, logits)
        return self._results()

    def soft_labels(self, images, batch_size=1000):
        """What the label head says of images, seen in training or not.

        Args:
            images: (N, H, W, channels), of the dtype that the model was trained on.
            batch_size: images computed at once.

        Returns:
            float32 NumPy array (N, C); rows sum to 1.

        Raises:
            ValueError: before phase 2 has begun, and for images of another shape or dtype.
        """
        if self.phase == 1:
            raise ValueError("soft_labels: the label head learns in phase 2, which has not begun")
        checks.images("images", images, self.image_shape, self.image_dtype)
        soft_labels = tf.function(lambda x: ops.softmax(self.label_head(self._extract_features(x))))
        spans = range(0, len(images), batch_size)
        return np.concatenate([soft_labels(images[i : i + batch_size]).numpy() for i in spans])

    def export(self, filepath):
        """Writes a SavedModel that plain TensorFlow loads.

        Its signature `serving_default` takes `images`, (N, H, W, channels) of the dtype that the
        model was trained on (uint8 in 0..255 unless it was given float images), and returns
        `probabilities`, float32 (N, C).
        """
        dtype = self.image_dtype or "uint8"
        images = tf.TensorSpec([None, *self.image_shape], dtype, name="images")
        archive = keras.export.ExportArchive()
        archive.track(self.classifier)
        archive.add_endpoint(
            "serving_default",
            lambda images: {"probabilities": self(images, training=False)},
            input_signature=[images],
        )
        archive.write_out(filepath, verbose=False)

    def get_config(self):
        arguments = (
            "warmup_epochs", "feature_extractor", "inner_learning_rate", "average_over_classes",
            "entropy_weight", "weight_decay", "label_head_init", "meta_batch_norm", "seed",
            "image_dtype",
        )  # fmt: skip
        return super().get_config() | {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "augmentation": keras.saving.serialize_keras_object(self.augmentation),
            **{name: getattr(self, name) for name in arguments},
        }

    @classmethod
    def from_config(cls, config):
        config, image_dtype = dict(config), config["image_dtype"]
        del config["image_dtype"]
        for name in ("classifier", "augmentation"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        model = cls(**config)
        model.image_dtype = image_dtype
        return model

    def get_compile_config(self):
        optimizers = {"optimizer": self.optimizer, "meta_optimizer": self.meta_optimizer}
        return keras.saving.serialize_keras_object(optimizers | self._compile_arguments)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _random_states(self):
        """Seeds of dropout and augmentation: training state that Keras does not save by itself."""
        weights = set(map(id, self.weights))
        own = [v for layer in (self.classifier, self.augmentation) if layer for v in layer.variables]
        return {f"random_state_{i}": v for i, v in enumerate(own) if id(v) not in weights}

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, variable in self._random_states().items():
            store[name] = variable

    def load_own_variables(self, store):
        random_states = self._random_states()
        for name, variable in random_states.items():
            variable.assign(store[name])
        super().load_own_variables({n: store[n] for n in store.keys() if n not in random_states})


def _gradient(tape, loss, weights):
    """As `tape.gradient`, with zeros for weights that the loss does not reach."""
    return tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)


# ---------------------------------------------------------------------------------------------
# The recipes
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a data set is trained with (Section IV-B); the flags of the same names replace it.

    `learning_rate` is divided by 10 at each of the epochs (0-based) in `learning_rate_drops`.
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

    def learning_rate_at(self, epoch):
        return self.learning_rate * 0.1 ** sum(epoch >= drop for drop in self.learning_rate_drops)


RECIPES = {
    "digits": Recipe(
        build_classifier=layers.digits_cnn,
        build_augmentation=functools.partial(layers.RandomFlipCrop, 1, False, False),
        noise="class_dependent",
        noise_ratio=0.4,
        meta_size=300,
        epochs=25,
        warmup_epochs=8,
        batch_size=64,
        learning_rate=1e-2,
        learning_rate_drops=(),
        meta_learning_rate=1e-2,
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
NOISES = ("none", "uniform", "class_dependent", "feature_dependent", "human")
METHODS = ("metalabelnet", "cross_entropy")
EVALUATION_BATCH = 1000

# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


def define_flags():
    """The flags, in a set of their own so that importing this module defines none."""
    f = flags.FlagValues()
    recipe = "Default: the recipe's."

    def define(kind, name, default, text):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=f)

    define("string", "dataset", None, f"One of {', '.join(RECIPES)}. Left out, together with "
           "--method: both methods on digits, a demonstration.")
    define("string", "data_dir", None, "TensorFlow Datasets directory. Default: TFDS' own.")
    define("string", "noise", None, f"One of {', '.join(NOISES)}. {recipe}")
    define("float", "noise_ratio", None, f"Share of wrong labels, 0 to 1. {recipe}")
    define("string", "noise_probs", None, "For --noise feature_dependent: .npy file, float (N, C), "
           "of a teacher's probabilities on the training images. Default: train that teacher.")
    define("integer", "meta_size", None, f"Number of clean meta samples. {recipe}")
    define("integer", "unlabeled_size", None, "Training samples whose label is removed. Default: 0")
    define("string", "method", None, f"One of {', '.join(METHODS)}. Default: metalabelnet.")
    define("integer", "epochs", None, f"Epochs of both phases together. {recipe}")
    define("integer", "warmup_epochs", None, f"Epochs of phase 1. {recipe}")
    define("integer", "batch_size", None, f"Of training and meta batches. {recipe}")
    define("float", "learning_rate", None, f"Of the classifier, before its drops. {recipe}")
    define("float", "meta_learning_rate", None, f"Of the label head. {recipe}")
    define("float", "inner_learning_rate", None, f"Of the step of Eq. 5. {recipe}")
    define("integer", "seed", 0, "Of splits, noise, initial weights, order and augmentation.")
    define("string", "output_dir", None, "Default: runs/DATASET-NOISE-RATIO-METHOD-seedN.")
    define("bool", "resume", False, "Continue the run in --output_dir from its last epoch.")
    define("bool", "mixed_precision", False, "Compute in bfloat16, keep weights in float32.")
    define("bool", "jit_compile", None, "Compile the step with XLA. Default: where there is a GPU.")
    define("integer", "steps_per_execution", None, "Steps a call, at most. Default: 30 on a GPU, else 1.")
    define("bool", "help", False, "Show this help.")
    return f


def parse_settings(argv):
    """The flags with the recipe's values filled in, and the recipe with the flags' values.

    Returns:
        (dict of every flag, where the demonstration has no method; Recipe). (None, None) where
        only the help was asked for.

    Raises:
        ValueError: for flags that are unknown, out of range or contradict each other.
    """
    f = define_flags()
    try:
        rest = f(argv)
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if rest[1:]:
        raise ValueError(f"expected flags only, received {rest[1]!r}")
    if f.help:
        print(f"{__doc__}\n{f.get_help()}")
        return None, None
    given = f.flag_values_dict()
    del given["help"]
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    defaults = {"jit_compile": on_gpu, "steps_per_execution": 30 if on_gpu else 1}
    if given["dataset"] is not None:
        defaults["method"] = METHODS[0]
    defaults["dataset"] = "digits"
    settings = {n: defaults.get(n) if value is None else value for n, value in given.items()}
    checks.one_of("--dataset", settings["dataset"], RECIPES)
    checks.one_of("--method", settings["method"], (*METHODS, *([] if given["method"] else [None])))
    recipe = RECIPES[settings["dataset"]]
    replaced = {
        field.name: settings[field.name]
        for field in dataclasses.fields(Recipe)
        if settings.get(field.name) is not None
    }
    recipe = dataclasses.replace(recipe, **replaced)
    settings |= {n: getattr(recipe, n) for n in settings if hasattr(recipe, n)}
    _check_settings(settings)
    if settings["output_dir"] is None:
        parts = ("dataset", "noise", "noise_ratio", "method")
        name = "-".join(str(settings[part]) for part in parts if settings[part] is not None)
        settings["output_dir"] = os.path.join("runs", f"{name}-seed{settings['seed']}")
    return settings, recipe


def _check_settings(settings):
    checks.one_of("--noise", settings["noise"], NOISES)
    if not 0 <= settings["noise_ratio"] <= 1:
        raise ValueError(f"--noise_ratio: expected 0 to 1, received {settings['noise_ratio']}")
    for name in ("epochs", "batch_size", "meta_size", "steps_per_execution"):
        checks.at_least(f"--{name}", settings[name], 1)
    for name in ("warmup_epochs", "unlabeled_size", "seed"):
        checks.at_least(f"--{name}", settings[name], 0)
    for name in ("learning_rate", "meta_learning_rate", "inner_learning_rate"):
        checks.positive(f"--{name}", settings[name])
    if settings["method"] != "cross_entropy" and settings["warmup_epochs"] >= settings["epochs"]:
        raise ValueError(
            f"--warmup_epochs: expected fewer than --epochs={settings['epochs']}, received "
            f"{settings['warmup_epochs']}, so phase 2 would never begin"
        )
    if settings["batch_size"] > settings["meta_size"]:
        raise ValueError(
            f"--batch_size: expected at most --meta_size={settings['meta_size']}, received "
            f"{settings['batch_size']}"
        )
    if settings["noise_probs"] is not None and settings["noise"] != "feature_dependent":
        raise ValueError(
            f"--noise_probs: is for --noise feature_dependent, received with --noise "
            f"{settings['noise']}"
        )


def load_splits(settings, recipe):
    """Loads the data set, corrupts its labels, draws meta and test set, removes labels."""
    source = data.LOADERS[settings["dataset"]](settings["data_dir"])
    labels = data.corruption.corrupt(
        source,
        settings["noise"],
        settings["noise_ratio"],
        settings["seed"],
        data_dir=settings["data_dir"],
        probabilities_file=settings["noise_probs"],
        build_teacher=recipe.build_classifier,
    )
    return data.source.make_splits(
        source,
        labels,
        meta_size=settings["meta_size"],
        unlabeled_size=settings["unlabeled_size"],
        seed=settings["seed"],
    )


def build_model(settings, recipe):
    """The recipe's model, compiled; from here on all is a function of the seed.

    To the last bit on CPU. On a GPU, kernels that add in a fixed order would take 4 times as long.
    """
    keras.utils.set_random_seed(settings["seed"])
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy("mixed_bfloat16" if settings["mixed_precision"] else "float32")
    trains_phase_2 = settings["method"] == "metalabelnet"
    model = MetaLabelNet(
        recipe.build_classifier(),
        recipe.warmup_epochs if trains_phase_2 else recipe.epochs,
        augmentation=recipe.build_augmentation(),
        inner_learning_rate=recipe.inner_learning_rate,
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
    meta, test = (
        tf.data.Dataset.from_tensor_slices(arrays).batch(EVALUATION_BATCH)
        for arrays in (
            (splits.meta_images, splits.meta_labels),
            (splits.test_images, splits.test_labels),
        )
    )
    on_terminal = sys.stdout.isatty()
    recorder = RunRecorder(directory, settings, test, state, print_lines=not on_terminal)
    model.fit(
        (splits.train_images, splits.given_labels),
        meta_data=(splits.meta_images, splits.meta_labels) if trains_phase_2 else None,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        initial_epoch=state["epoch"] if state else 0,
        validation_data=meta,
        callbacks=[keras.callbacks.LearningRateScheduler(recipe.learning_rate_at), recorder],
        verbose=1 if on_terminal else 0,
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


def demonstrate(settings):
    """Names of the two runs of the demonstration: settings with method and directory of each."""
    parent = settings["output_dir"]
    return [settings | {"method": m, "output_dir": os.path.join(parent, m)} for m in METHODS]


def main(argv):
    """Runs the command line; returns its exit status: 2 for bad input, 1 for a loss that is NaN."""
    try:
        settings, recipe = parse_settings(argv)
        if settings is None:
            return 0
        is_demonstration = settings["method"] is None
        runs = demonstrate(settings) if is_demonstration else [settings]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            splits = load_splits(settings, recipe)
        for warning in caught:
            print(f"mln_keras.py: warning: {warning.message}", file=sys.stderr)
        finished = [outputs.claim(r["output_dir"], r, r["resume"]) for r in runs]
    except ValueError as error:
        print(f"mln_keras.py: {error}", file=sys.stderr)
        return 2
    results = []
    for one, result in zip(runs, finished):
        if result is None:
            print(f"{one['method']}: {one['output_dir']}", flush=True)
            try:
                result = run(one, recipe, splits)
            except FloatingPointError as error:
                print(f"mln_keras.py: {error}; {one['output_dir']} keeps the last good checkpoint",
                      file=sys.stderr)
                return 1
        else:
            print(f"{one['method']}: {one['output_dir']} holds this run, finished")
        results.append(result)
    print(f"\n{outputs.table(results)}")
    if is_demonstration:
        curves = os.path.join(settings["output_dir"], "curves.png")
        outputs.plot_curves(curves, [r["output_dir"] for r in runs])
        print(f"\nThe same by epoch: {curves}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

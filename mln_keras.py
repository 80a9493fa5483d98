"""MetaLabelNet: train an image classifier on wrong labels, with a few right ones to steer by.

Phase 1 warms the classifier up on the noisy labels. Phase 2 needs no labels: batch by batch, a
single-layer label head learns, by gradients through gradients, to write the soft labels on which
one step of the classifier does best on a small clean meta set; then the classifier takes that step.

    python mln_keras.py                                       # a demonstration, under a minute
    python mln_keras.py --dataset cifar10 --noise uniform     # the paper's recipe

Read `MetaLabelNet` from top to bottom beside the paper.

Reference: G. Algan and I. Ulusoy, "MetaLabelNet: Learning to Generate Soft-Labels from
Noisy-Labels". Symbols: θ classifier f, φ label head m, g the frozen feature extractor, α the inner
learning rate, λ and β the learning rates of the classifier and of the label head.
"""

import os
import sys

__path__ = [os.path.dirname(os.path.abspath(__file__))]  # the folders beside this file belong to it
sys.modules.setdefault("mln_keras", sys.modules[__name__])  # where it runs as a script, too

from mln_keras.training import before_keras

before_keras.settle(__name__)

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mln_keras.data import batches, checks
from mln_keras.data.checks import ArgumentError
from mln_keras.layers import LabelHead, cross_entropy, entropy, kl_divergence, mix_in_labels
from mln_keras.training.classifier import find_features, last_dense
from mln_keras.training.model import NoisyLabelModel, assign_all, gradient
from mln_keras.training.phases import Phase
from mln_keras.training.replicas import mean_over_replicas


@keras.saving.register_keras_serializable("mln_keras")
class MetaLabelNet(NoisyLabelModel):
    """A classifier together with the label head that writes its soft labels.

    Args:
        classifier: Keras model, images to logits (N, C), built. A subclassed model needs
            `feature_extractor`. Images reach it as float32, so uint8 ones in 0..255: begin it
            with a `keras.layers.Rescaling`.
        warmup_epochs: epochs of phase 1, cross-entropy on the labeled samples; phase 2 begins
            with the epoch of this (0-based) number.
        feature_extractor: name of what gives the features (Eq. 3): a layer of a functional model,
            or the attribute (layer or method) of a subclassed one that maps images to features.
            None finds the input of the last layer with weights.
        inner_learning_rate: α, the step of Eq. 5, which the paper writes without a rate: 1.
        average_over_classes: divide Eq. 6, 11 and 12 by C, as the authors ran it; False is the
            sum over the classes that the paper writes.
        entropy_weight: factor of the entropy loss in Eq. 13.
        label_head_init: "random", or "classifier" to start phase 2 from the classifier's last
            layer.
        meta_batch_norm: whether the meta batch also moves the running averages of batch norm.
        given_label_weight: a of the soft label a·(given label) + (1 − a)·(label head's), in [0, 1),
            or a function that returns it, float (N,), from features float32 (N, F) and given labels
            int32 (N,), -1 for none. A sample without a label takes the head's alone. The paper's
            is 0.
        **options: `augmentation`, `weight_decay`, `shuffle_meta` and `seed`, as every method has
            them (`training.model.NoisyLabelModel`).

    Raises:
        ArgumentError: for a classifier without logits of shape (N, C), without findable features or
            in float16, and for an argument outside its range. It is a ValueError.

    Example:

        model = MetaLabelNet(classifier, warmup_epochs=44)
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), keras.optimizers.Adam(1e-2))
        model.fit((images, noisy_labels), meta_data=(meta_images, meta_labels), epochs=120)

    Reference: MetaLabelNet, Algorithm 1.
    """

    config_names = (
        *NoisyLabelModel.config_names, "warmup_epochs", "feature_extractor", "inner_learning_rate",
        "average_over_classes", "entropy_weight", "label_head_init", "meta_batch_norm",
        "given_label_weight",
    )  # fmt: skip

    second_order = needs_meta = True
    phase_2 = chosen_from = 2  # the number of the phase in which the label head learns
    flags = ("warmup_epochs", "meta_learning_rate", "inner_learning_rate")

    def __init__(
        self,
        classifier,
        warmup_epochs,
        *,
        feature_extractor=None,
        inner_learning_rate=1.0,
        average_over_classes=True,
        entropy_weight=1.0,
        label_head_init="random",
        meta_batch_norm=True,
        given_label_weight=0.0,
        **options,
    ):
        super().__init__(classifier, **options)
        checks.integer("warmup_epochs", warmup_epochs, 0)
        checks.positive("inner_learning_rate", inner_learning_rate)
        checks.at_least("entropy_weight", entropy_weight, 0)
        checks.one_of("label_head_init", label_head_init, ("random", "classifier"))
        if not callable(given_label_weight) and not 0 <= given_label_weight < 1:
            raise ArgumentError(
                "given_label_weight",
                f"expected at least 0, below 1, or a function, received {given_label_weight}",
            )
        self.warmup_epochs = warmup_epochs
        self.feature_extractor = feature_extractor
        self.inner_learning_rate = inner_learning_rate
        self.average_over_classes = average_over_classes
        self.entropy_weight = entropy_weight
        self.label_head_init = label_head_init
        self.meta_batch_norm = meta_batch_norm
        self.given_label_weight = given_label_weight

        self._features, num_features = find_features(
            classifier, feature_extractor, self.image_shape
        )
        self.label_head = self.build_label_head(num_features)
        shapes = [w.shape for w in getattr(last_dense(classifier), "weights", [])]
        if label_head_init == "classifier" and shapes != [w.shape for w in self.label_head.weights]:
            raise ArgumentError(
                "label_head_init",
                "'classifier' needs a functional or Sequential classifier whose last layer is "
                "Dense, with a bias, on the features; use 'random'",
            )
        self.frozen_weights = self.add_weight_copies("frozen")
        self._write_soft_labels = tf.function(
            lambda x, y: ops.softmax(self.soft_label_logits(self._extract_features(x), y, False)),
            reduce_retracing=True,
        )
        self.meta_loss = keras.metrics.Mean("meta_loss")
        self.soft_label_entropy = keras.metrics.Mean("soft_label_entropy")
        self.soft_label_agreement = keras.metrics.Mean("soft_label_agreement")

    def build_label_head(self, num_features):
        """m_φ, a built layer: features float32 (N, F) to the logits of soft labels, float32 (N, C).

        Another label head is a subclass's. The constructor calls this, so what it needs is there.
        """
        return LabelHead(self.num_classes, num_features, name="label_head")

    def phases(self):
        return (
            Phase("warm-up", step=self._warmup_step),
            Phase(
                "phase 2",
                start=self.warmup_epochs,
                step=self._phase_2_step,
                samples="all",
                with_meta=True,
                metrics=("meta_loss", "soft_label_entropy", "soft_label_agreement"),
                begin=self._begin_phase_2,
            ),
        )

    def meta_weights(self):
        """φ."""
        return self.label_head.trainable_variables

    def other_layers(self):
        return [self.label_head]

    def _warmup_step(self, batch):
        """Phase 1: one step on the cross-entropy with the given labels."""
        images, labels = batch
        θ = self.classifier.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.logits(self.augment(images), training=True)
            loss = tf.reduce_mean(cross_entropy(labels, logits))
            objective = loss + self.regularization()
        self.apply_gradients(self.optimizer, gradient(tape, objective, θ), θ)
        self.update_metrics(loss, labels, logits)

    def _begin_phase_2(self):
        """Freezes a copy of the classifier as the feature extractor, and starts the label head."""
        assign_all(self.frozen_weights, self.classifier.weights)
        if self.label_head_init == "classifier":
            assign_all(self.label_head.weights, last_dense(self.classifier).weights)

    def _extract_features(self, images):
        """v = g(x) (Eq. 3): the classifier without its last layer, at its weights after warm-up."""
        return self.features_at(self.frozen_weights, images)

    def _phase_2_step(self, noisy_batch, meta_batch):
        """Phase 2: Algorithm 1 on one batch. The given labels are compared with, and used where
        `given_label_weight` says so.

        Each batch is (images (N, H, W, channels), int32 labels (N,)).
        """
        (x, given_labels), (x_meta, y_meta) = noisy_batch, meta_batch
        θ, φ = self.classifier.trainable_variables, self.label_head.trainable_variables
        x = self.augment(x)
        v = self._extract_features(x)  # Eq. 3

        with tf.GradientTape() as meta_tape:  # records how g depends on φ
            with tf.GradientTape(persistent=True) as tape:
                logits = self.logits(x, training=True)
                regularization = self.regularization()
                soft_label_logits = self.soft_label_logits(v, given_labels)  # Eq. 4
                loss_c = self.classification_loss(logits, soft_label_logits)  # Eq. 6
            if loss_c.shape.rank:  # its gradient would be that of a sum
                raise ArgumentError(
                    "classification_loss", f"expected a scalar, received shape {loss_c.shape}"
                )
            g = gradient(tape, loss_c, θ)
        meta_loss, gradient_φ = meta_gradient(
            self, meta_tape, g, φ, self.inner_learning_rate, (x_meta, y_meta), self.meta_batch_norm
        )
        self.apply_gradients(self.meta_optimizer, gradient_φ, φ)

        soft_label_logits = tf.stop_gradient(self.soft_label_logits(v, given_labels))
        with tape:  # entered again, it records on: f(x) stays the forward pass of above
            loss_c = self.classification_loss(logits, soft_label_logits)  # Eq. 11
            loss_e = self._mean(entropy(logits))  # Eq. 12
            loss = loss_c + self.entropy_weight * loss_e
            objective = loss + regularization
        gradient_θ = self.classifier_gradient(tape, objective, meta_batch)
        self.apply_gradients(self.optimizer, gradient_θ, θ)  # Eq. 13

        self.meta_loss.update_state(meta_loss)
        self.soft_label_entropy.update_state(entropy(soft_label_logits))
        agreement = ops.argmax(soft_label_logits, -1) == ops.cast(given_labels, "int32")
        self.soft_label_agreement.update_state(agreement, sample_weight=given_labels >= 0)
        self.update_metrics(loss, given_labels, logits)

    def soft_label_logits(self, features, given_labels, training=True):
        """What the soft labels are the softmax of (Eq. 4). Another rule is a subclass's.

        Args:
            features: v, float32 (N, F).
            given_labels: int32 (N,), -1 for none.
            training: whether the label head is in training mode.

        Returns:
            float32 (N, C).
        """
        logits, weight = self.label_head(features, training=training), self.given_label_weight
        if callable(weight):
            weight = weight(features, given_labels)
        elif not weight:
            return logits
        return mix_in_labels(logits, given_labels, weight)

    def classifier_gradient(self, tape, objective, meta_batch):
        """What the step of Eq. 13 follows: the gradient by θ of the objective on the tape, a list.

        A subclass that learns from the clean images directly adds their gradient here.
        """
        return gradient(tape, objective, self.classifier.trainable_variables)

    def classification_loss(self, logits, soft_label_logits):
        """L_c of Eq. 6 and 11, a float32 scalar, of logits float32 (N, C) both."""
        return self._mean(kl_divergence(logits, soft_label_logits))  # Eq. 7, 8

    def _mean(self, losses):
        """Mean over the batch, and over the classes where the authors' reduction is asked for."""
        return tf.reduce_mean(losses) / (self.num_classes if self.average_over_classes else 1)

    def soft_labels(self, images, batch_size=None, *, given_labels=None):
        """The soft labels of images, seen in training or not.

        Args:
            images: (N, H, W, channels), of the dtype that the model was trained on, or
                `ImageFiles`.
            batch_size: images computed at once; None goes by their size, 1,000 small ones.
            given_labels: integers (N,), -1 for none, where `given_label_weight` makes use of them;
                None leaves them out.

        Returns:
            float32 NumPy array (N, C); rows sum to 1. Those of files that cannot be read are NaN.

        Raises:
            ArgumentError: before phase 2 has begun, and for images of another shape or dtype.
        """
        if batch_size is not None:
            checks.integer("batch_size", batch_size, 1)
        if self.phase < self.phase_2:
            raise ArgumentError("soft_labels", "the label head learns in phase 2, not yet begun")
        checks.images("images", images, self.image_shape, self.image_dtype)
        labels = np.full(len(images), -1) if given_labels is None else given_labels
        labels = checks.labels("given_labels", labels, len(images), self.num_classes, True)
        size = batch_size or batches.for_inference(images)
        return batches.rows_of(images, self._write_soft_labels, size, "soft labels", labels)


def meta_gradient(model, tape, g, φ, α, meta_batch, moves_batch_norm=True):
    """How the loss on clean data after one step of the classifier depends on φ (Eq. 5, 9, 10).

    By the chain rule of Eq. 14 to 19 ∂L_meta/∂φ = uᵀ ∂θ̂/∂φ = −α uᵀ ∂g/∂φ with u = ∂L_meta/∂θ̂: the
    forward pass on the clean images is on no tape but its own.

    Args:
        model: `NoisyLabelModel`, whose trainable variables are θ.
        tape: tf.GradientTape that has recorded how g depends on φ.
        g: list of tensors, the gradient of the training loss at θ.
        φ: list of variables or tensors.
        α: the step, θ̂ = θ − α·g.
        meta_batch: clean images (N, H, W, channels) and their labels, int32 (N,).
        moves_batch_norm: as `NoisyLabelModel.logits_at`.

    Returns:
        (L_meta at θ̂, a float32 scalar; list of its gradients by φ).
    """
    x_meta, y_meta = meta_batch
    θ = model.classifier.trainable_variables
    θ_hat = [w - α * d for w, d in zip(θ, mean_over_replicas(g))]  # Eq. 5
    with tf.GradientTape() as tape_at_θ_hat:
        tape_at_θ_hat.watch(θ_hat)
        meta_logits = model.logits_at(θ_hat, x_meta, moves_batch_norm)
        meta_loss = tf.reduce_mean(cross_entropy(y_meta, meta_logits))  # Eq. 9
    u = mean_over_replicas(gradient(tape_at_θ_hat, meta_loss, θ_hat))
    return meta_loss, gradient(tape, g, φ, output_gradients=[-α * d for d in u])  # Eq. 10



if __name__ == "__main__":
    from mln_keras.command.run import main

    sys.exit(main())

"""Whether a meta-gradient through a classifier can be had.

It needs the derivative of the classifier's gradient. TensorFlow has none for some operations: of
these it leaves some out without a word, as if they were constant, and fails at the others.
"""

import re

import keras
import tensorflow as tf
from tensorflow.python.framework import ops as framework_ops

from mln_keras.data.checks import ArgumentError
from mln_keras.training import keras_private

# Constant by their meaning: leaving them out is right.
CONSTANT = {"StopGradient", "ZerosLike", "OnesLike"}


def check_second_derivatives(classifier, num_classes, logits_of, images):
    """Refuses a classifier whose gradient has an operation without a derivative.

    A training loss depends on soft labels through ∂L/∂f(x) alone, so it is the operations between
    that and ∂L/∂θ that need one.

    Args:
        classifier: keras.Model.
        num_classes: C.
        logits_of: function from images to logits (N, C), in training mode.
        images: tf.TensorSpec of a batch.

    Raises:
        ArgumentError: naming the layer and the operation.
    """
    weights = classifier.trainable_variables

    def backward(images, by_logits):
        with tf.GradientTape() as tape:
            logits = logits_of(images)
        gradients = tape.gradient(logits, weights, output_gradients=by_logits)
        return [tf.convert_to_tensor(g) for g in gradients if g is not None]

    by_logits = tf.TensorSpec((None, num_classes), keras.config.floatx())
    program = tf.function(backward, autograph=False).get_concrete_function(images, by_logits)
    start = program.graph.inputs[1]
    for operation in _between(start, program.outputs):
        if operation.type not in CONSTANT and not _has_gradient(operation.type):
            layer = _layer_of(operation, classifier)
            raise ArgumentError(
                "classifier",
                f"{layer} cannot be trained by a meta-gradient, as TensorFlow has no derivative of "
                f"{operation.type}; put it before the layers that train, or use another",
            )


def _has_gradient(operation_type):
    try:
        return framework_ops.gradient_registry.lookup(operation_type) is not None
    except LookupError:
        return False


def _between(start, ends):
    """The operations through which numbers flow from a tensor to some others."""
    after, waiting = set(), [start]
    while waiting:
        for operation in waiting.pop().consumers():
            if operation not in after:
                after.add(operation)
                waiting += [t for t in operation.outputs if t.dtype.is_floating]
    before, waiting = set(), [tensor.op for tensor in ends]
    while waiting:
        operation = waiting.pop()
        if operation not in before:
            before.add(operation)
            waiting += [tensor.op for tensor in operation.inputs if tensor.dtype.is_floating]
    return sorted(after & before, key=lambda operation: operation.name)


def _layer_of(operation, classifier):
    """The layer of an operation, in words: the operation's name holds its name, or one numbered."""
    names = {layer.name for layer in keras_private.all_layers(classifier)} - {classifier.name}
    for part in reversed(operation.name.split("/")):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in names:
                return f"layer {name!r}"
    return f"the operation {operation.name!r}"

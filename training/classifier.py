"""What training needs to know of a classifier: its shapes, and where its features are."""

import contextlib
import functools
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.layers.pooling import max_pool
from mln_keras.training import keras_private

MAX_POOLING = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


def classifier_shapes(classifier):
    """Checks that a model can be a classifier, and says what goes in and out.

    Nothing is computed: a classifier that returns probabilities without an activation that can be
    seen is found by `check_logits`.

    Args:
        classifier: keras.Model, built, with one input.

    Returns:
        (image shape without the batch, a tuple; number of classes C).

    Raises:
        ArgumentError: for what is no built Keras model, returns anything but (N, C), ends with an
            activation or computes in float16.
    """
    if not isinstance(classifier, keras.Model):
        raise _refused(f"expected a keras.Model, received {type(classifier).__name__}")
    if not classifier.built:
        raise _refused("expected a built model; call it on a batch of images first")
    if classifier.compute_dtype == "float16":
        raise _refused(
            "computes in float16, in which small gradients are 0, as no loss is scaled here; use "
            "mixed_bfloat16"
        )
    if _is_graph(classifier):
        if len(classifier.inputs) != 1:
            raise _refused(f"expected one input, images; received {len(classifier.inputs)} inputs")
        image_shape = tuple(classifier.inputs[0].shape[1:])
        layer, _, passed = _last_weighted_layer(classifier)
        _refuse_activation([*passed, layer])
    else:
        image_shape = tuple(classifier.get_build_config()["input_shape"][1:])
    shape = getattr(_symbolic_output(classifier, image_shape), "shape", None)
    if shape is None or len(shape) != 2 or shape[0] is not None or (shape[1] or 0) < 2:
        received = "no single tensor" if shape is None else ("N", *shape[1:])
        raise _refused(f"expected logits of shape (N, C), received {received}")
    return image_shape, shape[1]


def check_logits(outputs):
    """Refuses a classifier whose outputs, float (N, C), are probabilities."""
    outputs = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    if len(outputs) and (outputs >= 0).all() and abs(outputs.sum(-1) - 1).max() < 0.02:
        raise _refused(
            "expected a model that returns logits, received one that returns probabilities (its "
            "outputs sum to 1); remove its softmax"
        )


def find_features(classifier, name, image_shape):
    """What computes the features, and how many there are.

    Args:
        classifier: keras.Model.
        name: of a layer of a functional model, or of an attribute (layer or method) of any model
            that maps images to features; None for the input of the last layer with weights.
        image_shape: as `classifier_shapes` returns it.

    Returns:
        (function from float images to features (N, ...), with the classifier's weights, in
        inference mode; number of features).

    Raises:
        ArgumentError: where the features cannot be found.
    """
    if name is None:
        if not _is_graph(classifier):
            raise ArgumentError(
                "feature_extractor",
                "a subclassed classifier does not say where its features are; name its attribute "
                "that maps images to features",
            )
        extractor = penultimate_output(classifier)
    elif _is_graph(classifier) and name in {layer.name for layer in classifier.layers}:
        extractor = keras.Model(classifier.inputs[0], classifier.get_layer(name).output)
    elif callable(getattr(classifier, str(name), None)):
        extractor = getattr(classifier, name)
    else:
        raise ArgumentError(
            "feature_extractor", f"the classifier has no layer or attribute {name!r}"
        )

    def features(images):
        if isinstance(extractor, keras.layers.Layer):
            return extractor(images, training=False)
        return extractor(images)

    try:
        symbolic = extractor if isinstance(extractor, keras.Model) else features
        shape = _symbolic_output(symbolic, image_shape).shape
        return features, math.prod(shape[1:])
    except (ValueError, TypeError, AttributeError) as error:
        raise ArgumentError(
            "feature_extractor",
            f"{name!r} does not map images to features ({checks.one_line(error)})",
        ) from error


def penultimate_output(classifier):
    """The classifier without its last layer, as a model that shares its weights.

    Args:
        classifier: functional or Sequential model that ends in a layer with weights (a nested
            model is searched in turn); layers without weights may follow it.

    Returns:
        keras.Model from the classifier's input to the input of that last layer.

    Raises:
        ArgumentError: where the output has passed an activation, or where the last layer with
            weights has several inputs.
    """
    layer, features, passed = _last_weighted_layer(classifier)
    _refuse_activation([*passed, layer])
    if features is None:
        raise _refused(
            "its last layer has several inputs, so the features are not one tensor; name the layer "
            "whose output they are with feature_extractor=..."
        )
    if _is_graph(layer):
        features = penultimate_output(layer)(features)
    return keras.Model(classifier.inputs[0], features, name="feature_extractor")


def last_dense(classifier):
    """The classifier's last layer if it is a `keras.layers.Dense`, else None."""
    if not _is_graph(classifier):
        return None
    layer, _, _ = _last_weighted_layer(classifier)
    if isinstance(layer, keras.layers.Dense):
        return layer
    return last_dense(layer)


@contextlib.contextmanager
def twice_differentiable_max_pooling(classifier):
    """Gives Keras' max pooling right second derivatives in forward passes while the context is.

    What it computes stays the same; `layers.pooling.max_pool` says what was wrong. Layers with a
    `call` of their own stay as they are, and so do images whose sides are not known.
    """
    layers = [
        layer
        for layer in keras_private.all_layers(classifier)
        if isinstance(layer, MAX_POOLING)
        and type(layer).call is keras.layers.MaxPooling2D.call
        and layer.data_format == "channels_last"
    ]

    def pool(layer, call, inputs):
        if None in inputs.shape[1:]:
            return call(inputs)
        return max_pool(inputs, layer.pool_size, layer.strides, layer.padding)

    for layer in layers:
        layer.call = functools.partial(pool, layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def scales_down(classifier):
    """Whether a classifier begins by making small numbers of 0..255, by `Rescaling(1 / 255)` or so,
    or by taking a mean of them away.

    Layers without weights may come before that.
    """
    for layer in getattr(classifier, "layers", []):
        if isinstance(layer, keras.layers.Rescaling):
            return np.max(np.abs(layer.scale)) <= 1 / 100 or np.max(np.abs(layer.offset)) >= 10
        if scales_down(layer):
            return True
        if layer.weights:
            return False
    return False


def _refused(text):
    return ArgumentError("classifier", text)


def _is_graph(layer):
    return isinstance(layer, keras.Model) and getattr(layer, "outputs", None) is not None


def _last_weighted_layer(model):
    """Walks back from the output; returns (layer, its input tensor, the operations behind it)."""
    tensor, passed = model.outputs[0], []
    while True:
        operation, inputs = keras_private.producer(tensor)
        if getattr(operation, "weights", None) or len(inputs) != 1:
            return operation, inputs[0] if len(inputs) == 1 else None, passed
        passed.append(operation)
        tensor = inputs[0]


def _refuse_activation(operations):
    for operation in operations:
        activation = getattr(operation, "activation", None)
        is_softmax = type(operation).__name__ in ("Softmax", "LogSoftmax", "Sigmoid")
        if is_softmax or activation not in (None, keras.activations.linear):
            name = getattr(activation, "__name__", type(operation).__name__.lower())
            raise _refused(
                f"expected a model that returns logits, received one whose layer "
                f"{operation.name!r} ends it with an activation ({name}). Remove it (for "
                f"keras.applications: classifier_activation=None)."
            )


def _symbolic_output(function, image_shape):
    """What a function makes of float images, as a symbolic tensor: nothing is computed."""
    if isinstance(function, keras.Model) and _is_graph(function):
        return function.outputs[0] if len(function.outputs) == 1 else None
    images = tf.TensorSpec((None, *image_shape), keras.config.floatx())
    return tf.function(function).get_concrete_function(images).structured_outputs

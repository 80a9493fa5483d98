"""Where a classifier's features are: the input of its last layer with weights."""

import math

import keras
import numpy as np
from keras import ops


def _producer(tensor):
    """The operation that made a symbolic tensor, and that operation's input tensors."""
    operation, node_index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node_index].input_tensors


def _last_weighted_layer(model):
    """Walks back from the output; returns (layer, its input tensor, the operations behind it)."""
    tensor, passed = model.outputs[0], []
    while True:
        operation, inputs = _producer(tensor)
        if getattr(operation, "weights", None) or len(inputs) != 1:
            return operation, inputs[0] if len(inputs) == 1 else None, passed
        passed.append(operation)
        tensor = inputs[0]


def _is_graph(layer):
    return isinstance(layer, keras.Model) and getattr(layer, "outputs", None) is not None


def _refuse_activation(operations):
    for operation in operations:
        activation = getattr(operation, "activation", None)
        is_activation = isinstance(operation, keras.layers.Softmax) or (
            activation is not None and activation is not keras.activations.linear
        )
        if is_activation:
            raise ValueError(
                f"classifier: expected a model that returns logits, received one whose layer "
                f"{operation.name!r} ends it with an activation "
                f"({getattr(activation, '__name__', 'softmax')}). Remove it (for "
                f"keras.applications: classifier_activation=None)."
            )


def penultimate_output(classifier):
    """The classifier without its last layer, as a model that shares its weights.

    Args:
        classifier: functional or Sequential model that ends in a layer with weights (a nested
            model is searched in turn); layers without weights may follow it.

    Returns:
        keras.Model from the classifier's input to the input of that last layer.

    Raises:
        ValueError: where the output has passed an activation, or where the last layer with
            weights has several inputs.
    """
    layer, features, passed = _last_weighted_layer(classifier)
    _refuse_activation([*passed, layer])
    if features is None:
        raise ValueError(
            "classifier: its last layer has several inputs, so the features are not one tensor; "
            "name the layer whose output they are with feature_extractor=..."
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


def set_max_pooling_float32(classifier):
    """Lets max pooling compute in float32 where the policy is a 16-bit one.

    The maximum is the same number; but XLA has no second derivative of max pooling in 16-bit
    types, and the meta-gradient needs one.
    """
    for layer in classifier._flatten_layers():
        is_pooling = isinstance(
            layer, (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)
        )
        if is_pooling and layer.compute_dtype in ("bfloat16", "float16"):
            layer.dtype_policy = "float32"


def classifier_shapes(classifier):
    """Checks that a model is a classifier that returns logits, and says what goes in and out.

    Args:
        classifier: keras.Model, built, with one input.

    Returns:
        (image shape without the batch, a tuple; number of classes C).

    Raises:
        ValueError: for what is no built Keras model, returns anything but (N, C), or returns
            probabilities.
    """
    if not isinstance(classifier, keras.Model):
        raise ValueError(
            f"classifier: expected a keras.Model, received {type(classifier).__name__}"
        )
    if not classifier.built:
        raise ValueError("classifier: expected a built model; call it on a batch of images first")
    if _is_graph(classifier):
        if len(classifier.inputs) != 1:
            raise ValueError(
                f"classifier: expected one input, images; received {len(classifier.inputs)} inputs"
            )
        image_shape = tuple(classifier.inputs[0].shape[1:])
    else:
        image_shape = tuple(classifier.get_build_config()["input_shape"][1:])
    if _is_graph(classifier):
        layer, _, passed = _last_weighted_layer(classifier)
        _refuse_activation([*passed, layer])
    images = _probe_images(image_shape)
    outputs = classifier(images, training=False)
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(images) or shape[1] < 2:
        raise ValueError(
            f"classifier: expected logits of shape (N, C), received "
            f"{type(outputs).__name__ if shape is None else ('N', *shape[1:])}"
        )
    outputs = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    if (outputs >= 0).all() and abs(outputs.sum(-1) - 1).max() < 0.02:
        raise ValueError(
            "classifier: expected a model that returns logits, received one that returns "
            "probabilities (its outputs sum to 1); remove its softmax"
        )
    return image_shape, shape[1]


def _probe_images(image_shape):
    """Two made-up images; a side that may have any length gets 96 pixels."""
    shape = [2, *(96 if side is None else side for side in image_shape)]
    return ops.convert_to_tensor(np.random.default_rng(0).uniform(0, 255, shape), "float32")


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
        ValueError: where the features cannot be found.
    """
    if name is None:
        if not _is_graph(classifier):
            raise ValueError(
                "feature_extractor: a subclassed classifier does not say where its features are; "
                "name its attribute that maps images to features"
            )
        extractor = penultimate_output(classifier)
    elif _is_graph(classifier) and name in {layer.name for layer in classifier.layers}:
        extractor = keras.Model(classifier.inputs[0], classifier.get_layer(name).output)
    elif callable(getattr(classifier, str(name), None)):
        extractor = getattr(classifier, name)
    else:
        raise ValueError(
            f"feature_extractor: the classifier has no layer or attribute {name!r}"
        )

    def features(images):
        if isinstance(extractor, keras.layers.Layer):
            return extractor(images, training=False)
        return extractor(images)

    try:
        shape = features(_probe_images(image_shape)).shape
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"feature_extractor: {name!r} does not map images to features ({reason})"
        ) from error
    return features, math.prod(shape[1:])

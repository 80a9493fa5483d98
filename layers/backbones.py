"""The classifiers: uint8 images in, logits out, the network's own preprocessing included."""

import os
import sys
import warnings

import keras
import numpy as np
from keras import layers, ops

from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.data.keras_home import weights_folder
from mln_keras.layers.convolution import AlignedConv2D
from mln_keras.layers.label_head import uniform_initializers
from mln_keras.layers.pooling import WindowMaxPooling2D


def _normalize():
    """(x/255 − 0.5)/0.5, in float32 because bfloat16 would round the pixels."""
    return layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")


def _batch_norm_relu(x):
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return layers.ReLU()(x)


def _convolution(x, filters):
    initializers = uniform_initializers(9 * x.shape[-1])
    x = AlignedConv2D(filters, 3, padding="same", use_bias=False, **initializers)(x)
    return _batch_norm_relu(x)


def _fully_connected(x, units, use_bias=True):
    return layers.Dense(units, use_bias=use_bias, **uniform_initializers(x.shape[-1]))(x)


def _convolutional_network(input_shape, blocks, hidden_units, num_classes, name):
    least = 2 ** len(blocks)  # as each block halves the sides
    if min(input_shape[:2]) < least:
        height, width = input_shape[:2]
        raise ArgumentError(
            "backbone",
            f"expected images of at least {least}×{least} pixels for {name}, received "
            f"{height}×{width}",
        )
    images = x = keras.Input(input_shape, name="images")
    x = _normalize()(x)
    for filters in blocks:
        x = _convolution(x, filters)
        x = _convolution(x, filters)
        x = WindowMaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = _batch_norm_relu(_fully_connected(x, hidden_units, use_bias=False))
    return keras.Model(images, _fully_connected(x, num_classes), name=name)


def cnn8(num_classes=10, input_shape=(32, 32, 3)):
    """The paper's 8-layer CNN: 64-64-pool-128-128-pool-196-196-pool-256-C.

    Each 3×3 convolution and the first fully connected layer are followed by batch normalization
    (running averages kept at 0.9, ε 1e-5) and ReLU, and have no bias, which batch normalization
    would take away again. Kernels start as the authors' framework starts them by default,
    uniform in ±1/√inputs.

    Args:
        num_classes: number of classes C.
        input_shape: (H, W, channels); H and W at least 8.

    Returns:
        keras.Model, uint8 or float (N, H, W, channels) in 0..255 to logits (N, C).

    Raises:
        ArgumentError: for smaller images.

    Reference: MetaLabelNet, Section IV-B.1, and the authors' program.
    """
    return _convolutional_network(input_shape, (64, 128, 196), 256, num_classes, "cnn8")


def digits_cnn(num_classes=10, input_shape=(8, 8, 1)):
    """The same design at the size of an 8×8 digit: 32-32-pool-64-C. As `cnn8`, from 2×2 pixels."""
    return _convolutional_network(input_shape, (32,), 64, num_classes, "digits_cnn")


OWN = {"cnn8": cnn8, "digits_cnn": digits_cnn}
NAMES = (*OWN, *(name for name in dir(keras.applications) if name[0].isupper()))


def backbone(name, num_classes, input_shape, weights=None):
    """A classifier by its name.

    A network of `keras.applications` ends with global average pooling and a fully connected layer,
    which starts uniform in ±1/√inputs. It begins with what its `preprocess_input` does, in float32,
    as its weights were trained with that: ResNet50 takes blue before red and subtracts the means
    of ImageNet, where the authors' framework also divides by the standard deviations.

    Args:
        name: one of `NAMES`; case, "_" and "-" do not matter.
        num_classes: number of classes C.
        input_shape: (H, W, channels); three channels for a network of `keras.applications`.
        weights: "imagenet", which Keras loads from the network once; a file; or None for random
            ones. A file holds the weights of the same network of `keras.applications`, without its
            top (.h5 as Keras offers them, .weights.h5 or .keras), or those of a cnn8 or digits_cnn.

    Returns:
        keras.Model, uint8 or float (N, H, W, channels) in 0..255 to logits (N, C).

    Raises:
        ArgumentError: for another name, an image that the network does not take, and weights that
            cannot be had.
    """
    name = known_name(name)
    if name in OWN:
        if weights == "imagenet":
            raise ArgumentError("weights", f"expected a file or none for {name}, received imagenet")
        classifier = OWN[name](num_classes, tuple(input_shape))
        _load_weights(classifier, weights)
        return classifier
    if input_shape[-1] != 3:
        raise ArgumentError(
            "backbone",
            f"expected images of 3 channels for {name}, received {input_shape[-1]}; see cnn8",
        )
    images = keras.Input(tuple(input_shape), name="images")
    features = _application(getattr(keras.applications, name), images, weights).output
    return keras.Model(images, _fully_connected(features, num_classes), name=name.lower())


def known_name(name):
    """The one of `NAMES` that is meant; ArgumentError for another name."""
    plain = {known.lower().replace("_", ""): known for known in NAMES}
    found = plain.get(name.lower().replace("_", "").replace("-", ""))
    if found is None:
        checks.one_of("backbone", name, NAMES)
    return found


def _application(make, images, weights):
    """A network of `keras.applications` on images, a symbolic tensor, up to its pooled features."""
    is_file = weights not in (None, "imagenet")
    if is_file and make.__module__.endswith(".efficientnet"):
        raise ArgumentError(
            "weights",
            f"expected imagenet or none for {make.__name__}, whose pixels Keras scales in another "
            f"way where it loads the weights itself; a file put into {weights_folder()} is found "
            f"there",
        )
    arguments = {
        "include_top": False, "pooling": "avg", "input_shape": images.shape[1:],
        "input_tensor": preprocessed(images, sys.modules[make.__module__].preprocess_input),
    }  # fmt: skip
    try:
        network = make(weights=None if is_file else weights, **arguments)
    except Exception as error:  # what Keras raises without a network has no other class
        if weights != "imagenet":
            raise ArgumentError("backbone", f"{make.__name__}: {checks.one_line(error)}") from None
        _application(make, images, None)  # says so where it is the images that do not fit
        raise ArgumentError(
            "weights",
            f"cannot load imagenet for {make.__name__} ({checks.one_line(error)}); put that file "
            f"into {weights_folder()}, give the name of a file, or none for random weights",
        ) from None
    if is_file:
        _load_weights(network, weights)
    for layer in network.layers:
        if layer.trainable_weights:
            break
        if isinstance(layer, layers.Rescaling | layers.Normalization):
            layer.dtype_policy = "float32"  # as bfloat16 would round the pixels
    return network


def preprocessed(images, preprocess_input):
    """What a `preprocess_input` of `keras.applications` makes of images, by Keras' own layers.

    It computes with each channel for itself, and may swap red and blue: four pixels say how.

    Args:
        images: symbolic tensor (N, H, W, 3), in 0..255.
        preprocess_input: function.

    Returns:
        Symbolic float32 tensor (N, H, W, 3).
    """
    pixels = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)])
    black, *primaries = preprocess_input(pixels.reshape(1, 4, 1, 3)).reshape(4, 3)
    scales = (np.array(primaries) - black) / 255  # from a channel (row) to a channel (column)
    if scales[0, 0] == 0:
        images, scales = ops.flip(images, axis=-1), scales[::-1]
    scales = np.diag(scales)
    if (scales == 1).all() and not black.any():
        return images
    return layers.Rescaling(scales.tolist(), offset=black.tolist(), dtype="float32")(images)


def check_is_file(weights):
    """Refuses weights that are neither a file nor one of the words for others."""
    if not os.path.isfile(weights):
        raise ArgumentError("weights", f"expected imagenet, a file or none, received {weights!r}")


def _load_weights(network, path):
    if path is None:
        return
    check_is_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of weights that stay as they are
            network.load_weights(path)
    except Exception as error:  # Keras and h5py have no common class
        raise ArgumentError(
            "weights",
            f"{path} does not hold the weights of {network.name} without its top "
            f"({checks.one_line(error)})",
        ) from None

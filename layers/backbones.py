"""The classifiers of the recipes: uint8 images in, logits out, normalization included."""

import keras
from keras import layers

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

    Reference: MetaLabelNet, Section IV-B.1, and the authors' program.
    """
    return _convolutional_network(input_shape, (64, 128, 196), 256, num_classes, "cnn8")


def digits_cnn(num_classes=10, input_shape=(8, 8, 1)):
    """The same design at the size of an 8×8 digit: 32-32-pool-64-C. Arguments as `cnn8`."""
    return _convolutional_network(input_shape, (32,), 64, num_classes, "digits_cnn")

"""MetaLabelNet itself: the single-layer perceptron that writes the soft labels."""

import keras
import numpy as np
from keras import ops


def uniform_initializers(num_inputs):
    """The default initialization of linear layers and convolutions in the authors' framework.

    Args:
        num_inputs: number of inputs F that a unit has; k·k·channels for a k×k convolution.

    Returns:
        Keyword arguments for a Keras layer: kernel and bias are uniform in ±1/√F.
    """
    limit = num_inputs**-0.5
    return {
        name: keras.initializers.RandomUniform(-limit, limit)
        for name in ("kernel_initializer", "bias_initializer")
    }


@keras.saving.register_keras_serializable("mln_keras")
class LabelHead(keras.layers.Dense):
    """m_φ of Eq. 4: one fully connected layer of size features × classes (Section IV-B).

    Its softmax is the soft label ŷ; the layer returns the logits. It computes in float32,
    whatever the precision policy.

    Args:
        num_classes: number of classes C.
        num_features: number of features F that the frozen extractor gives.

    Input shape: float (N, F).
    Output shape: float32 (N, C).
    Reference: MetaLabelNet, Section III-B.2 and V-C.
    """

    def __init__(self, num_classes, num_features, **kwargs):
        kwargs.setdefault("dtype", keras.config.floatx())
        super().__init__(num_classes, **uniform_initializers(num_features), **kwargs)
        self.num_features = num_features
        self.build((None, num_features))

    def get_config(self):
        config = keras.layers.Layer.get_config(self)
        return config | {"num_classes": self.units, "num_features": self.num_features}


def mix_in_labels(logits, labels, weight):
    """Logits of a·onehot(label) + (1 − a)·softmax(logits), a skip connection for the given labels.

    Args:
        logits: float (N, C).
        labels: integer (N,), class indices in [0, C), or -1 for none: there a is 0.
        weight: a, in [0, 1); a number or float (N,).

    Returns:
        As the logits, (N, C): the logarithm of the mix.
    """
    log_softmax = ops.log_softmax(logits)
    weight = ops.where(labels >= 0, ops.cast(weight, logits.dtype), 0)[:, None]
    rest = log_softmax + ops.log1p(-weight)
    log_weight = ops.log(ops.maximum(weight, np.finfo(logits.dtype.name).tiny))
    is_given = ops.one_hot(labels, logits.shape[-1], dtype="bool")
    return ops.where(is_given, ops.logaddexp(rest, log_weight), rest)

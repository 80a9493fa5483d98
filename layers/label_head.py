"""MetaLabelNet itself: the single-layer perceptron that writes the soft labels."""

import keras


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

"""The losses of the paper, one value a sample, computed from logits in float32.

Soft labels ŷ are passed as the logits of the label head, so that log ŷ is a log-softmax: exact
where the authors' program needs `+ 1e-10` inside the logarithm.
"""

import math

import keras
from keras import ops


def cross_entropy(labels, logits):
    """Categorical cross-entropy, `l_cce` of Eq. 9.

    Args:
        labels: integer (N,), class indices in [0, C).
        logits: float (N, C).

    Returns:
        float32 (N,), in nats.
    """
    return keras.losses.sparse_categorical_crossentropy(
        labels, ops.cast(logits, keras.config.floatx()), from_logits=True
    )


def kl_divergence(logits, soft_label_logits):
    """KL(f(x) ‖ ŷ), Eq. 8: the prediction is the first argument, the soft label the second.

    Args:
        logits: float (N, C), the classifier's; f(x) is their softmax.
        soft_label_logits: float (N, C), the label head's; ŷ is their softmax.

    Returns:
        float32 (N,), in nats, summed over the classes.
    """
    log_prediction = ops.log_softmax(ops.cast(logits, keras.config.floatx()))
    log_soft_label = ops.log_softmax(ops.cast(soft_label_logits, keras.config.floatx()))
    return ops.sum(ops.exp(log_prediction) * (log_prediction - log_soft_label), axis=-1)


def entropy(logits):
    """Entropy of the prediction, the summand of Eq. 12.

    Args:
        logits: float (N, C).

    Returns:
        float32 (N,), in nats, summed over the classes.
    """
    log_prediction = ops.log_softmax(ops.cast(logits, keras.config.floatx()))
    return -ops.sum(ops.exp(log_prediction) * log_prediction, axis=-1)


def soft_cross_entropy(soft_labels, logits):
    """Cross-entropy with soft labels.

    Args:
        soft_labels: float (N, C), distributions.
        logits: float (N, C).

    Returns:
        float32 (N,), in nats.
    """
    return -ops.sum(soft_labels * ops.log_softmax(ops.cast(logits, keras.config.floatx())), axis=-1)


def prior_divergence(logits):
    """KL(uniform ‖ mean_N p), how far a batch's mean prediction is from all classes alike.

    Args:
        logits: float (N, C); p is their softmax.

    Returns:
        float32 scalar, in nats.

    Reference: Tanaka et al., CVPR 2018, with the uniform prior.
    """
    log_predictions = ops.log_softmax(ops.cast(logits, keras.config.floatx()))
    size, num_classes = ops.shape(logits)
    log_sum = ops.logsumexp(log_predictions, axis=0)
    return ops.log(ops.cast(size, log_sum.dtype)) - math.log(num_classes) - ops.mean(log_sum)

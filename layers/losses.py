"""The losses of the paper, and those of Table I, one value a sample, from logits in float32.

Soft labels ŷ are passed as the logits of the label head, so that log ŷ is a log-softmax: exact
where the authors' program needs `+ 1e-10` inside the logarithm.
"""

import math

import keras
import numpy as np
from keras import ops

SMALLEST_LABEL = 1e-4  # what symmetric cross-entropy takes for 0 in a one-hot label


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


def symmetric_cross_entropy(labels, logits, alpha=0.1, beta=1.0):
    """α·(cross-entropy) + β·(reverse cross-entropy), where log 0 of a one-hot label is log 1e-4.

    The reverse one, −Σ_c p_c log y_c, is 9.21·(1 − p_y).

    Args:
        labels: integer (N,), class indices in [0, C).
        logits: float (N, C).
        alpha, beta: the weights.

    Returns:
        float32 (N,), in nats.

    Reference: Wang et al., ICCV 2019, Eq. 7 to 9. 1e-4 is their program's; the text has
    log 0 = −4.
    """
    losses = cross_entropy(labels, logits)
    return alpha * losses + beta * -np.log(SMALLEST_LABEL) * -ops.expm1(-losses)


def symmetric_cross_entropy_as_run(labels, logits, alpha=0.1, beta=1.0):
    """`symmetric_cross_entropy` as run for Table I of MetaLabelNet: each log is of a softmax more.

    The first logarithm is of the softmax of the prediction, the second of the softmax of the label:
    for 10 classes the second term is 2.461 − 0.9999·p_y, nearly the mean absolute error.

    Args, Returns: as `symmetric_cross_entropy`.
    """
    prediction = ops.softmax(ops.cast(logits, keras.config.floatx()))
    one_hot = ops.one_hot(labels, prediction.shape[-1], dtype=prediction.dtype)
    log_label = ops.log_softmax(ops.clip(one_hot, SMALLEST_LABEL, 1.0))
    log_prediction = ops.log_softmax(ops.clip(prediction, 1e-7, 1.0))
    losses = alpha * one_hot * log_prediction + beta * prediction * log_label
    return -ops.sum(losses, axis=-1)


def generalized_cross_entropy(labels, logits, q=0.7):
    """(1 − p_y^q)/q: cross-entropy for q to 0, half the mean absolute error for q = 1.

    It is computed from log p_y, so that the gradient is finite where p_y is 0.

    Args:
        labels: integer (N,), class indices in [0, C).
        logits: float (N, C).
        q: in (0, 1].

    Returns:
        float32 (N,).

    Reference: Zhang and Sabuncu, NeurIPS 2018, Eq. 6.
    """
    return -ops.expm1(-q * cross_entropy(labels, logits)) / q


def hard_bootstrap(labels, logits, label_weight=0.8):
    """Cross-entropy with a mix of the label and of the class that the classifier finds likeliest.

    Args:
        labels: integer (N,), class indices in [0, C).
        logits: float (N, C).
        label_weight: β, the given label's share of the target.

    Returns:
        float32 (N,), in nats.

    Reference: Reed et al., ICLR 2015 workshop, Eq. 7.
    """
    own = cross_entropy(ops.argmax(logits, axis=-1), logits)
    return label_weight * cross_entropy(labels, logits) + (1 - label_weight) * own


def soft_bootstrap(labels, logits, label_weight=0.95):
    """Cross-entropy with a mix of the label and of the prediction.

    It is −Σ_c (β·y_c + (1 − β)·p_c) log p_c, with a gradient through both p.

    Args, Returns: as `hard_bootstrap`.

    Reference: Reed et al., ICLR 2015 workshop, Eq. 6.
    """
    return label_weight * cross_entropy(labels, logits) + (1 - label_weight) * entropy(logits)


def forward_cross_entropy(labels, logits, transition):
    """−log (p T)_y: the prediction of the true label, turned into one of the given label.

    Where T says that no class gets the given label at all, the loss is large, but finite.

    Args:
        labels: integer (N,), class indices in [0, C).
        logits: float (N, C), of the true label.
        transition: float (C, C), T[i, j] = P(given label j, true one i).

    Returns:
        float32 (N,), in nats.

    Reference: Patrini et al., CVPR 2017, Theorem 2.
    """
    log_prediction = ops.log_softmax(ops.cast(logits, keras.config.floatx()))
    transition = ops.convert_to_tensor(transition, keras.config.floatx())
    log_transition = ops.log(ops.maximum(transition, np.finfo(keras.config.floatx()).tiny))
    to_label = ops.take(ops.transpose(log_transition), labels, axis=0)
    return -ops.logsumexp(log_prediction + to_label, axis=-1)


def forward_cross_entropy_as_run(labels, logits, transition):
    """`forward_cross_entropy` as run for Table I of MetaLabelNet: −log softmax(softmax(z T))_y.

    T acts on the logits z, and the softmax is taken twice.

    Args, Returns: as `forward_cross_entropy`.
    """
    logits = ops.cast(logits, keras.config.floatx())
    transition = ops.convert_to_tensor(transition, keras.config.floatx())
    return twice_softmax_cross_entropy(labels, ops.matmul(logits, transition))


def twice_softmax_cross_entropy(labels, logits):
    """−log softmax(softmax(z))_y: cross-entropy that takes probabilities for logits.

    Args, Returns: as `cross_entropy`.
    """
    one_hot = ops.one_hot(labels, logits.shape[-1], dtype=keras.config.floatx())
    # Not `cross_entropy`, in which Keras would take the inner softmax out again.
    return soft_cross_entropy(one_hot, ops.softmax(ops.cast(logits, keras.config.floatx())))


def soft_cross_entropy(soft_labels, logits):
    """Cross-entropy with soft labels.

    Args:
        soft_labels: float (N, C), distributions.
        logits: float (N, C).

    Returns:
        float32 (N,), in nats.
    """
    return -ops.sum(soft_labels * ops.log_softmax(ops.cast(logits, keras.config.floatx())), axis=-1)


def prior_divergence(logits, of_batch=lambda log_means: log_means):
    """KL(uniform ‖ mean_N p), how far a batch's mean prediction is from all classes alike.

    Args:
        logits: float (N, C); p is their softmax.
        of_batch: function of log mean_N p, float32 (C,), that returns that of a whole batch, of
            which these logits are a part.

    Returns:
        float32 scalar, in nats.

    Reference: Tanaka et al., CVPR 2018, with the uniform prior.
    """
    log_predictions = ops.log_softmax(ops.cast(logits, keras.config.floatx()))
    size, num_classes = ops.shape(logits)
    log_sum = ops.logsumexp(log_predictions, axis=0)
    log_means = of_batch(log_sum - ops.log(ops.cast(size, log_sum.dtype)))
    return -math.log(num_classes) - ops.mean(log_means)

"""All uses of names that Keras and TensorFlow do not document, each with the reason.

A new version of either is tried against this file first.
"""

import contextlib
import functools
import os

import keras
import tensorflow as tf
from keras import ops


def producer(tensor):
    """The operation that made a symbolic tensor, and that operation's input tensors.

    `_keras_history` and `_inbound_nodes`: Keras has no public way from a tensor of a functional
    model back to the layer that made it.
    """
    operation, node_index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node_index].input_tensors


def all_layers(model):
    """The model and all layers in it, nested ones too. `layers` stops at nested models."""
    return list(model._flatten_layers())


def forget_accumulated(optimizer):
    """Empties what `gradient_accumulation_steps` has added up; Keras does so after a step only."""
    for gradient in getattr(optimizer, "_accumulated_gradients", []):
        gradient.assign(keras.ops.zeros_like(gradient))


def add_asset(archive, name, path):
    """Gives a `keras.export.ExportArchive` a file, as the attribute `name` of the SavedModel.

    `_tf_trackable`: `track` takes layers and lookup tables, and of these it looks for files.
    """
    setattr(archive._tf_trackable, name, tf.saved_model.Asset(os.fspath(path)))


def change_by_replica(model):
    """Has each replica change its own copy of the model's variables, without asking the others.

    `_aggregation`: of some variables Keras has the first replica's value written everywhere, for
    which no program of a single replica can be compiled. The copies stay equal, as all replicas
    compute the same from what they exchange. Metrics are summed up when they are read.
    """
    optimizers = [o for o in (model.optimizer, model.meta_optimizer) if o is not None]
    for variable in [*model.variables, *(v for o in optimizers for v in o.variables)]:
        if variable.value.synchronization != tf.VariableSynchronization.ON_READ:
            variable.value._aggregation = tf.VariableAggregation.NONE


@contextlib.contextmanager
def exchanges_in_replicas(strategy, is_so=True):
    """Has each replica take part in an exchange from where it is, while the context is.

    `_use_merge_call`: tf.distribute does so of itself where XLA compiles for GPUs; elsewhere all
    replicas stop and one goes on for all, which a loop or a `tf.function` in a replica forbids.
    """
    if is_so:
        strategy.extended._use_merge_call = lambda: False
    try:
        yield
    finally:
        vars(strategy.extended).pop("_use_merge_call", None)


@contextlib.contextmanager
def twice_differentiable_batch_norm(model):
    """Gives batch norm right second derivatives in forward passes while the context is.

    `_moments`: TensorFlow's variance takes the mean for a constant, which is right for a first
    derivative only. Synchronized layers, and other kinds of normalization, stay as they are.
    """
    layers = [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
    ]

    def moments(inputs, mask, axes, original):
        if mask is not None:
            return original(inputs, mask)
        mean = ops.mean(inputs, axes, keepdims=True)
        variance = ops.mean(ops.square(inputs - mean), axes)
        return ops.squeeze(mean, axes), variance

    for layer in layers:
        layer._moments = functools.partial(
            moments, axes=layer._reduction_axes, original=layer._moments
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer._moments


class Model(keras.Model):
    """keras.Model with what a training in several `fit` loops needs of Keras' trainer."""

    @property
    def loss_tracker(self):
        """The metric "loss": Keras makes it itself and fills it in `compute_loss` only, which
        knows no loss that is not one of labels and predictions."""
        return self._loss_tracker

    def build_metrics(self, labels, predictions):
        """Makes the variables of the compiled metrics, which Keras leaves to the first batch;
        tf.distribute needs them before. Arguments: symbolic tensors like those of a step."""
        self._compile_metrics.build(labels, predictions)

    def take_restored_epoch(self):
        """The epoch at which the callback BackupAndRestore restored the model, or None.

        That callback tells `fit` by `_initial_epoch`, which is to be cleared for the next `fit`.
        """
        epoch, self._initial_epoch = self._initial_epoch, None
        return epoch

    def _maybe_symbolic_build(self, *_, **__):
        """Keras' dry run under tf.distribute, of float32 images; all variables are there."""

    @staticmethod
    def evaluates_in_fit(arguments):
        """Whether keyword arguments of `evaluate` say that `fit` calls it, on checked data."""
        return bool(arguments.get("_use_cached_eval_dataset"))

"""Several GPUs, on one machine or on several, by `tf.distribute`.

Each replica, one a GPU, runs the program that one GPU would run, on its share of the batch, and in
it exchanges means and sums with the others: `mean_over_replicas`, and the sum that an optimizer
takes of the replicas' gradients. XLA compiles the exchange as part of the program, on GPUs.
"""

import contextlib

import tensorflow as tf

from mln_keras.data import tensorflow_errors
from mln_keras.data.checks import ArgumentError
from mln_keras.training import keras_private

SEED_DISTANCE = 1_000_003  # between the random numbers of two replicas


def count():
    return tf.distribute.get_strategy().num_replicas_in_sync


def are_on_gpus(strategy):
    return any("GPU" in device for device in strategy.extended.worker_devices)


def mean_over_replicas(tensors):
    """The means of these tensors, a list; the replicas exchange all of them at once."""
    if count() == 1 or not tensors:
        return tensors
    return tf.distribute.get_replica_context().all_reduce("MEAN", tensors)


def gather_over_replicas(tensor):
    """(N/R, ...) on each of R replicas: the batch's (N, ...), and where this replica's begin.

    XLA knows a sum over the replicas, and no other exchange; a GPU exchanges no int32.
    """
    if count() == 1:
        return tensor, 0
    if tensor.dtype == tf.int32:
        tensor = tf.cast(tensor, tf.int64)
    context = tf.distribute.get_replica_context()
    size = tf.shape(tensor)[0]
    start = context.replica_id_in_sync_group * size
    around = [(start, (count() - 1) * size - start)] + [(0, 0)] * (tensor.shape.rank - 1)
    return context.all_reduce("SUM", tf.pad(tensor, around)), start


def check_divisible(dataset, replicas):
    """Refuses batches, where their size is known, that the replicas cannot share evenly."""
    for spec in tf.nest.flatten(dataset.element_spec):
        size = spec.shape[0]
        if size is not None and size % replicas:
            raise ArgumentError("batch_size", _wanted(replicas) + f", received {size}")


def shares(dataset, strategy, is_endless, is_stacked=False):
    """Batches as a `tf.distribute` data set, of which each replica gets its share, in order.

    Every worker makes the same batches and takes its part of each: nothing is left to sharding.

    Args:
        dataset: tf.data.Dataset of batches over all replicas, or of stacks of them.
        strategy: tf.distribute.Strategy.
        is_endless: whether no more batches are asked for than there are. To look for the end takes
            an exchange between the workers in each step.
        is_stacked: whether a leading axis counts batches.
    """
    replicas, axis = strategy.num_replicas_in_sync, int(is_stacked)

    def parts_of(batch, first, number):
        def cut(tensor):
            divides = tf.equal(tf.shape(tensor)[axis] % replicas, 0)
            check = tensorflow_errors.assert_that(divides, "batch_size", _wanted(replicas))
            with tf.control_dependencies([check]):
                parts = tf.split(tensor, replicas, axis)
            return tf.stack(parts[first : first + number])

        return tf.nest.map_structure(cut, batch)

    def of_worker(context):
        number = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * number
        own = dataset.map(lambda *batch: parts_of(batch, first, number)).unbatch()
        return (own.repeat() if is_endless else own).prefetch(2 * number)

    return strategy.distribute_datasets_from_function(of_worker)


def _wanted(replicas):
    return f"expected a multiple of {replicas}, as {replicas} replicas share a batch"


def on_each(strategy, tensor):
    """A copy of a tensor on the device of each replica of this machine; None stays None."""
    return None if tensor is None else strategy.run(lambda: tf.identity(tensor))


def make_function(model, step, results, length=1, compiles=False, states=()):
    """What Keras calls with an iterator over batches: it runs steps, and returns the metrics.

    Args:
        model: `NoisyLabelModel` under a strategy.
        step: function of a batch, or of a stack of them, called on each replica.
        results: function without arguments that returns the metrics of all replicas.
        length: how often `step` is called.
        compiles: whether XLA compiles it.
        states: variables that each replica changes by itself; after that they become their means.
    """
    strategy, held = model.distribute_strategy, model.held
    keras_private.change_by_replica(model)

    def program(batch, own_held):
        model.held = own_held
        with _own_random_numbers(model):
            step(batch)
        model.held = held
        # What is read of a variable is on its device without saying so; the copy does say it.
        means = mean_over_replicas([tf.identity(state) for state in states])
        for state, mean in zip(states, means, strict=True):
            state.assign(mean)

    def on_replica(*batch_and_held):
        own = tf.function(program, autograph=False, jit_compile=True) if compiles else program
        own(*batch_and_held)

    def run(iterator):
        strategy.run(on_replica, args=(iterator.get_next(), held))

    def call(iterator):
        def run_number(i):
            run(iterator)
            return (i + 1,)

        with keras_private.exchanges_in_replicas(strategy, not model.run_eagerly):
            if length == 1:
                run(iterator)
            else:  # not in the replicas, whose loops would not find each other
                tf.while_loop(lambda i: i < length, run_number, [0])
        return results()

    return call if model.run_eagerly else tf.function(call, autograph=False, reduce_retracing=True)


@contextlib.contextmanager
def _own_random_numbers(model):
    """Has each replica but the first draw other random numbers, for augmentation and dropout.

    All have the same states of their generators, whose first number is the seed.
    """
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    states = [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]
    for state in states:
        state.assign_add([tf.cast(number * SEED_DISTANCE, state.dtype), 0])
    yield
    for state in states:
        state.assign_sub([tf.cast(number * SEED_DISTANCE, state.dtype), 0])

"""Several GPUs, on one machine or on several, by `tf.distribute`.

The step of a method is the same code on one GPU and on many. Each replica, one a GPU, runs it on
its share of the batch; between its parts stand `mean_over_replicas` and the sum that an optimizer
takes of the replicas' gradients. XLA cannot compile these, so a step is no single program: XLA
compiles what lies between them, where its own clustering finds it.
"""

import contextlib

import tensorflow as tf

from mln_keras.data import tensorflow_errors
from mln_keras.data.checks import ArgumentError

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
    """(N/R, ...) on each of R replicas: the batch's (N, ...), and where this replica's begin."""
    if count() == 1:
        return tensor, 0
    context = tf.distribute.get_replica_context()
    start = context.replica_id_in_sync_group * tf.shape(tensor)[0]
    return context.all_gather(tensor, axis=0), start


def check_divisible(dataset, replicas):
    """Refuses batches, where their size is known, that the replicas cannot share evenly."""
    for spec in tf.nest.flatten(dataset.element_spec):
        size = spec.shape[0]
        if size is not None and size % replicas:
            raise ArgumentError("batch_size", _wanted(replicas) + f", received {size}")


def shares(dataset, strategy, is_endless):
    """Batches as a `tf.distribute` data set, of which each replica gets its share, in order.

    Every worker makes the same batches and takes its part of each: nothing is left to sharding.

    Args:
        dataset: tf.data.Dataset of batches over all replicas.
        strategy: tf.distribute.Strategy.
        is_endless: whether no more batches are asked for than there are. To look for the end takes
            an exchange between the workers in each step.
    """
    replicas = strategy.num_replicas_in_sync

    def part_of(batch, first, number):
        def cut(tensor):
            divides = tf.equal(tf.shape(tensor)[0] % replicas, 0)
            check = tensorflow_errors.assert_that(divides, "batch_size", _wanted(replicas))
            with tf.control_dependencies([check]):
                size = tf.shape(tensor)[0] // replicas
            static = tensor.shape[0] and tensor.shape[0] // replicas
            part = tensor[first * size : (first + number) * size]
            part = tf.reshape(part, (number, size, *tensor.shape[1:]))
            return tf.ensure_shape(part, (number, static, *tensor.shape[1:]))

        return tf.nest.map_structure(cut, batch)

    def of_worker(context):
        number = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * number
        own = dataset.map(lambda *batch: part_of(batch, first, number)).unbatch()
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
        step: function of a batch, called on each replica.
        results: function without arguments that returns the metrics of all replicas.
        length: the number of steps.
        compiles: whether XLA compiles the parts of a step.
        states: variables that each replica changes by itself; at the end they become their means.
    """
    strategy, held = model.distribute_strategy, model.held
    if compiles:
        # They fuse operations into ones that XLA has not, before it sees them.
        unwanted = ("remapping", "layout_optimizer")
        tf.config.optimizer.set_experimental_options(dict.fromkeys(unwanted, False))

    def on_replica(batch, own_held):
        model.held = own_held
        with _own_random_numbers(model):
            step(batch)
        model.held = held

    def run_step(iterator):
        scope = tf.xla.experimental.jit_scope() if compiles else contextlib.nullcontext()
        with scope:
            strategy.run(on_replica, args=(iterator.get_next(), held))

    def average():
        # What is read of a variable is on its device without saying so; the copy does say it.
        means = mean_over_replicas([tf.identity(state) for state in states])
        for state, mean in zip(states, means, strict=True):
            state.assign(mean)

    def call(iterator):
        def run_step_number(i):
            run_step(iterator)
            return (i + 1,)

        if length == 1:
            run_step(iterator)
        else:
            tf.while_loop(lambda i: i < length, run_step_number, [0])
        if states:
            strategy.run(average)
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

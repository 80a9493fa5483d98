"""What runs the steps of a phase: kept from `fit` to `fit`, and tried before it is needed."""

import dataclasses

import tensorflow as tf

from mln_keras.data import batches, tensorflow_errors
from mln_keras.data.checks import ArgumentError
from mln_keras.training.replicas import check_divisible


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The batches of a phase and how many of them a call takes.

    Attributes:
        number: of the phase, from 1.
        dataset: tf.data.Dataset of its batches, or of stacks of them.
        held: images on the GPU for each part of a batch, a tuple of tensors or None.
        calls: calls an epoch; None where it is unknown.
        loop_length: steps in a call, by a loop of ours.
        is_stacked: whether the loop is one program over stacked batches.
        steps_per_execution: steps that Keras runs in a call, one after the other.
    """

    number: int
    dataset: tf.data.Dataset
    held: tuple
    calls: int | None
    loop_length: int
    is_stacked: bool
    steps_per_execution: int


def make_program(number, dataset, held, steps, most_steps, as_loop, replicas):
    """The `Program` of a phase.

    Args:
        number, held: as `Program`.
        dataset: tf.data.Dataset of single batches.
        steps: batches an epoch; None where it is unknown.
        most_steps: at most how many steps run in one call; fewer where their batches are large.
        as_loop: whether XLA compiles the step. Keras' own loop over steps is no XLA program, as
            that could not read from tf.data: a program gets its batches stacked.
        replicas: their number under a strategy of tf.distribute, where Keras' own loop fails; None
            without one.

    Raises:
        ArgumentError: for batches that the replicas cannot share evenly.
    """
    loop_length, a_call = 1, most_steps
    if steps:
        a_call = batches.largest_divisor(steps, batches.steps_in_memory(dataset, most_steps))
        if (as_loop or replicas) and batches.have_one_shape(dataset):
            loop_length, a_call = a_call, 1
    if replicas:
        check_divisible(dataset, replicas)
        a_call = 1
    is_stacked = loop_length > 1 and as_loop
    if is_stacked:
        dataset = dataset.batch(loop_length, drop_remainder=True).prefetch(1)
    steps = steps and steps // loop_length
    return Program(number, dataset, held, steps, loop_length, is_stacked, a_call)


class TrainFunctions:
    """Keras' train functions, kept as long as nothing that was traced into them has changed."""

    def __init__(self):
        self._kept = {}

    def use(self, model, program):
        """Gives the model what runs this program."""
        model.phase_in_training, model.loop_length = program.number, program.loop_length
        model.held, model.is_stacked = program.held, program.is_stacked
        if model.steps_per_execution != program.steps_per_execution:
            model.steps_per_execution = program.steps_per_execution
            model.test_function = model.predict_function = None  # they hold the number before
        traced = (*program.held, model.augmentation, *model.classifier.trainable_variables)
        key = (
            program.number, program.loop_length, program.steps_per_execution,
            tuple(map(id, traced)),
            repr([getattr(model, name) for name in model.config_names]),
        )  # fmt: skip
        if key not in self._kept:
            model.make_train_function(force=True)
            holds = any(held is not None for held in program.held)
            # What was traced stays alive beside it, as another object could get its id.
            self._kept[key] = model.train_function, holds, traced
        model.train_function = self._kept[key][0]

    def free_held(self):
        """Forgets those that hold images on the GPU, which frees its memory."""
        self._kept = {key: kept for key, kept in self._kept.items() if not kept[1]}


class CannotTrainError(ArgumentError):
    """Of a program that TensorFlow cannot trace or run, or XLA not compile."""


def try_program(model, functions, program, variables):
    """Runs one call of a program, and takes back what it changed.

    So that what a phase cannot do, or XLA cannot compile, is known before an earlier one trains.

    Args:
        model: `NoisyLabelModel`.
        functions: `TrainFunctions`.
        program: `Program`.
        variables: all that a step changes, a list.

    Raises:
        CannotTrainError: with what TensorFlow says, in one line.
        ArgumentError: for an argument that is found wrong on the way.
        MemoryError: where the device has too little.
    """
    before = [tf.identity(variable) for variable in variables]
    functions.use(model, program)
    spec = program.dataset.element_spec
    try:
        with tensorflow_errors.in_one_line():
            batch = program.dataset
            if batches.have_one_shape(batch):  # reading a call's files could take long
                zeros = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), spec)
                batch = tf.data.Dataset.from_tensors(zeros).repeat()
            model.train_function(iter(model.shared(batch, is_endless=True)))
    except (ArgumentError, MemoryError):
        raise
    except Exception as error:  # of tracing, of XLA, of the user's layers; of no common class
        phase = model.phases()[program.number - 1].name
        raise CannotTrainError(
            "classifier", f"{phase} cannot train it ({tensorflow_errors.short(error)})"
        ) from error
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

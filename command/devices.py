"""The GPUs that a run uses: of this machine and, where TF_CONFIG names more workers, of theirs."""

import contextlib
import json
import os
import zlib

import numpy as np
import tensorflow as tf

from mln_keras.data.checks import ArgumentError

FORM = (
    '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}, with '
    "another index on each worker"
)


def workers():
    """(How many workers TF_CONFIG names, 1 without it; whether this is the first of them).

    Raises:
        ArgumentError: for a TF_CONFIG that says something else.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 1, True
    try:
        config = json.loads(text)
        addresses = config["cluster"]["worker"]
        task, index = config["task"]["type"], config["task"]["index"]
        is_right = set(config["cluster"]) == {"worker"} and task == "worker"
        is_right = is_right and addresses[index] and index >= 0
    except (ValueError, LookupError, TypeError):
        is_right = False
    if not is_right:
        raise ArgumentError("TF_CONFIG", f"expected {FORM}")
    return len(addresses), index == 0


def check(gpus, batch_size):
    """Refuses more GPUs than this machine has, and a batch that all cannot share evenly.

    Without a GPU the CPU is one.
    """
    found = len(tf.config.list_physical_devices("GPU"))
    if not 1 <= gpus <= max(found, 1):
        raise ArgumentError(
            "gpus", f"expected 1 to {max(found, 1)}, as {found} are found here, received {gpus}"
        )
    replicas = gpus * workers()[0]
    if batch_size % replicas:
        raise ArgumentError(
            "batch_size",
            f"expected a multiple of {replicas}, as {replicas} GPUs share a batch, received "
            f"{batch_size}",
        )


def strategy_of(gpus):
    """The tf.distribute.Strategy of a run, which other workers have to join; None for one device.

    For before TensorFlow first computes.
    """
    found = tf.config.list_physical_devices("GPU")
    if gpus < len(found) and tf.config.get_visible_devices("GPU") != found[:gpus]:
        tf.config.set_visible_devices(found[:gpus], "GPU")
    if workers()[0] > 1:
        kind = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=kind.NCCL if found else kind.RING
        )
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    if gpus > 1:
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(gpus)])
    return None


def scope(strategy):
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def check_same(strategy, epoch, labels):
    """Refuses, on each worker, that one begins at another epoch or learns other labels."""
    if workers()[0] == 1:
        return
    own = tf.constant([[epoch, zlib.crc32(np.ascontiguousarray(labels))]], tf.int64)
    each = strategy.experimental_distribute_values_from_function(lambda _: own)
    epochs, digests = strategy.gather(each, axis=0).numpy().T
    if len(set(epochs)) > 1:
        raise ArgumentError(
            "output_dir",
            f"expected one folder that all workers share, but they find checkpoints of the epochs "
            f"{', '.join(map(str, sorted(set(epochs))))}",
        )
    if len(set(digests)) > 1:
        raise ArgumentError(
            "TF_CONFIG", "the workers have different training labels; give all the same flags"
        )

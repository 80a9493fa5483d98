"""Several replicas compute what one does; here they are two halves of a CPU."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow as tf
from runs import FILES, main, names, read_history, read_result

from mln_keras.command import devices
from mln_keras.training import replicas

ROOT = Path(__file__).parents[1]

COMMON = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path.insert(0, sys.argv[1])
import keras, numpy as np, tensorflow as tf
from mln_keras.methods import METHODS

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (44, 8, 8, 1), np.uint8), rng.integers(0, 4, 44, np.int32)

# One for all: the exchanges of a second one would have the numbers that those of the first had.
STRATEGIES = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def net(*more):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, strides=2), *more,
        layers.Flatten(), layers.Dense(8, activation="tanh"), layers.Dense(4),
    ])

def train(
    strategy, method, options, more=list, jit_compile=False, samples=44, data=None, **fitting
):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        unbuilt = keras.Sequential([keras.layers.Identity()])
        model = METHODS[method](net(*more()), augmentation=unbuilt, weight_decay=0.1, **options)
        sgd = keras.optimizers.SGD(0.05, momentum=0.9)
        model.compile(sgd, jit_compile=jit_compile, steps_per_execution=5)
    meta = (x[:16], y[:16]) if model.needs_meta else None
    fitting = {"batch_size": 8, "epochs": 2, "validation_data": (x[:13], y[:13])} | fitting
    data = data or (x[:samples], y[:samples])
    history = model.fit(data, meta_data=meta, verbose=0, **fitting).history
    variables = [v for v in model.variables if "seed" not in v.path]
    return model, [v.numpy() for v in variables], history

def compare(method, options, tolerance=1e-10, **more):
    (_, a, by_epoch), (model, b, by_epoch_of_two) = (
        train(strategy, method, options, **more) for strategy in STRATEGIES
    )
    assert model.loop_length > 1
    assert len(a) > 6
    for one, two in zip(a, b, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance, err_msg=method)
    for name in by_epoch:
        np.testing.assert_allclose(by_epoch[name], by_epoch_of_two[name], atol=tolerance)
    return a
"""


def run(code):
    subprocess.run([sys.executable, "-c", COMMON + code, ROOT], check=True)


def test_two_replicas_compute_what_one_does():
    """θ and φ after phase 2, and all metrics, validation on a batch that two cannot share too."""
    run("compare('metalabelnet', {'warmup_epochs': 1})")


AS_ON_GPUS = """
import warnings
from tensorflow.python.ops import collective_ops, control_flow_util
from mln_keras.training import replicas
from mln_keras.training.model import NoisyLabelModel
all_reduce = collective_ops.all_reduce_v2

def as_between_gpus(*tensor, **options):
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        options["communication_hint"] = "NCCL"  # between CPUs it is another, which XLA refuses
    return all_reduce(*tensor, **options)

collective_ops.all_reduce_v2 = as_between_gpus
replicas.are_on_gpus = lambda strategy: True
try_programs, tried = NoisyLabelModel._try_programs, []

def try_each_phase(model, planned, make):
    if model._compiles_replicas:
        for phase in planned:
            model._compiles_replicas = True
            try_programs(model, [phase], make)
            tried.append(phase)
    try_programs(model, planned, make)

NoisyLabelModel._try_programs = try_each_phase

def compare_compiled(*arguments, **more):
    tried.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare(*arguments, jit_compile=True, validation_data=None, **more)
    texts = [str(w.message) for w in caught if str(w.message).startswith("XLA does not")]
    assert len(texts) == len(tried) > 0, (texts, tried)
    assert all("Collectives are not yet implemented for CPU" in text for text in texts), texts
"""


HELD = """
from mln_keras.data import inputs
inputs.hold = lambda images: (tf.constant(images), np.arange(len(images), dtype=np.int32))
gathered, gather = [], tf.gather
tf.gather = lambda x, *more, **named: gathered.append(x.shape) or gather(x, *more, **named)
sync = lambda: [keras.layers.BatchNormalization(synchronized=True)]
compare_compiled('metalabelnet', {'warmup_epochs': 0}, more=sync)
assert {(44, 8, 8, 1), (16, 8, 8, 1)} <= set(map(tuple, gathered))

keras.config.set_floatx("float32")
keras.config.set_dtype_policy("mixed_bfloat16")
compare_compiled('metalabelnet', {'warmup_epochs': 1}, 0.05)
"""


@pytest.mark.slow
def test_xla_compiles_the_exchanges_and_what_it_cannot_run_runs_without_it():
    """A CPU lets XLA compile an exchange, and refuses to run it: nothing else may be in the way, in
    any phase.

    With the images held on each replica; with batch norm over all replicas; in bfloat16.
    """
    run(AS_ON_GPUS + HELD)


BY_ITSELF = """
from mln_keras.data import batches
from mln_keras.layers import RandomFlipCrop
from mln_keras.training import replicas
strategy = STRATEGIES[1]

# The averages of batch norm are the means of those of each half of the batch.
def norm(): return keras.layers.BatchNormalization(momentum=0.9)
keras.utils.set_random_seed(0)
before = net(norm())
(images, _), = batches.batches(x[:8], y[:8], 8, seed=0)
convolved = before.layers[1](before.layers[0](tf.cast(images, "float64"))).numpy()
one_step = {"samples": 8, "epochs": 1, "validation_data": None}
model, _, _ = train(strategy, "cross_entropy", {}, lambda: [norm()], **one_step)
of_mean, of_variance = (v.numpy() for v in model.classifier.layers[2].non_trainable_variables)
halves = convolved.reshape(2, 4, *convolved.shape[1:])
np.testing.assert_allclose(of_mean, 0.1 * halves.mean((0, 1, 2, 3)), atol=1e-12)
variances = halves.var((1, 2, 3)).mean(0)
np.testing.assert_allclose(of_variance, 0.9 + 0.1 * variances, atol=1e-12)
assert abs(variances - convolved.var((0, 1, 2))).max() > 1e-4
for state in model.replica_states():
    a, b = state.value.values
    np.testing.assert_array_equal(a, b)

# Each replica draws its own random numbers.
with strategy.scope():
    model = METHODS["cross_entropy"](net(), augmentation=RandomFlipCrop(2, seed=1))
def draw():
    with replicas._own_random_numbers(model):
        return model.augment(x[:8])
first, second = strategy.experimental_local_results(strategy.run(draw))
np.testing.assert_array_equal(first, RandomFlipCrop(2, seed=1)(x[:8], training=True))
assert (first.numpy() != second.numpy()).any()
a, b = model.augmentation.seed_generator.state.value.values
assert a.numpy().tolist() == b.numpy().tolist() == [1, 1]

# A batch that they cannot share, of known and of unknown size, is one line.
odd = tf.data.Dataset.from_tensor_slices((x, y)).batch(7, drop_remainder=True)
unknown = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
for data in ((x, y), odd, unknown):
    try:
        train(strategy, "cross_entropy", {}, batch_size=7, data=data)
    except ValueError as error:
        text = str(error)
    assert text.startswith("batch_size: expected a multiple of 2, as 2 replicas"), text
    assert len(text.splitlines()) == 1
"""


@pytest.mark.slow
def test_what_a_replica_has_by_itself():
    run(BY_ITSELF)


METHODS = {
    "gold_loss_correction": {"warmup_epochs": 1},
    "metalabelnet_clean": {"warmup_epochs": 1},
    "co_teaching": {"noise_rate": 0.4, "ramp_epochs": 1},
    "joint_optimization": {"label_epoch": 1, "first_epochs": 2, "averaged_epochs": 2},
    "meta_weight_net": {},
    "mslg": {"warmup_epochs": 1},
    "pencil": {"stage_2_epoch": 1, "stage_3_epoch": 2, "label_learning_rate": 100.0},
}


@pytest.mark.slow
def test_two_replicas_compute_what_one_does_of_methods_that_look_beyond_a_sample():
    train = f"for name, options in {METHODS}.items(): compare_compiled(name, options, epochs=3)"
    run(AS_ON_GPUS + train)


# ---- worker processes ---------------------------------------------------------------------------

WORKER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
from mln_keras.command import checkpoints, run
from mln_keras.training.model import NoisyLabelModel

checkpoints.CHECKPOINT_SECONDS = 0
dies_in, flags = int(sys.argv[2]), sys.argv[3:]
begin_epoch = NoisyLabelModel.begin_epoch

def die(model, epoch):
    if epoch == dies_in:
        os.kill(os.getpid(), signal.SIGKILL)
    begin_epoch(model, epoch)

NoisyLabelModel.begin_epoch = die
sys.exit(run.main(["mln_keras.py", *flags]))
"""
NEVER = -1
FLAGS = ("--dataset", "digits", "--method", "metalabelnet", "--epochs", "3", "--warmup_epochs", "1")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def train_by_workers(directory, *flags, dies_in=(NEVER, NEVER)):
    """Runs the command line in two processes; returns what each left, (status, stdout, stderr)."""
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    processes = []
    for index, epoch in enumerate(dies_in):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = [sys.executable, "-c", WORKER, ROOT, str(epoch), *FLAGS, *flags]
        processes.append(subprocess.Popen(
            [*command, "--output_dir", directory], env=os.environ | {"TF_CONFIG": config},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("worker", [0, 1])
def test_each_replica_of_each_worker_gets_its_share_of_a_batch(worker):
    context = types.SimpleNamespace(num_input_pipelines=2, input_pipeline_id=worker)
    strategy = types.SimpleNamespace(
        num_replicas_in_sync=4, distribute_datasets_from_function=lambda make: make(context)
    )
    batches = tf.data.Dataset.range(16).batch(8, drop_remainder=True)
    pairs = tf.data.Dataset.zip((batches, batches), (batches, batches))
    shares = replicas.shares(pairs, strategy, is_endless=False)
    assert {spec.shape for spec in tf.nest.flatten(shares.element_spec)} == {tf.TensorShape([2])}
    found = [first.numpy().tolist() for (first, _), _ in shares]
    expected = [[0, 1], [2, 3], [8, 9], [10, 11]] if worker == 0 else [
        [4, 5], [6, 7], [12, 13], [14, 15]
    ]  # fmt: skip
    assert found == expected


def workers(count, **task):
    addresses = [f"localhost:{1000 + i}" for i in range(count)]
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


@pytest.mark.parametrize("config", [
    "{", "[]", "{}", workers(2), workers(2, type="worker", index=2), workers(0),
    workers(2, type="ps", index=0), workers(2, type="worker", index=-1),
])  # fmt: skip
def test_a_wrong_tf_config_is_refused(refused, monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    assert refused("--dataset", "digits").startswith("mln_keras.py: TF_CONFIG: expected {")


def test_gpus_that_are_not_there_are_refused(refused):
    assert "--gpus: expected 1 to 1, as 0 are found here, received 2" in refused("--gpus", 2)
    assert "--gpus: expected 1 to 1" in refused("--gpus", 0)


def test_a_batch_that_workers_cannot_share_is_refused(refused, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", workers(3, type="worker", index=0))
    assert "--batch_size: expected a multiple of 3" in refused("--batch_size", 64)


def test_of_workers_the_first_one_is_told_apart(monkeypatch):
    assert devices.workers() == (1, True)
    for index, is_first in ((0, True), (1, False)):
        monkeypatch.setenv("TF_CONFIG", workers(2, type="worker", index=index))
        assert devices.workers() == (2, is_first)


@pytest.mark.slow
def test_workers_one_of_which_is_killed_go_on_as_if_it_had_not_been(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for status, _, stderr in train_by_workers(unbroken):
        assert status == 0, stderr

    (status, _, stderr), (killed, _, _) = train_by_workers(broken, dies_in=(NEVER, 2))
    assert (status, killed) == (1, -signal.SIGKILL)
    own = [line for line in stderr.splitlines() if line.startswith("mln_keras.py: ")]
    assert len(own) == 1 and "--resume" in own[0]
    assert len(read_history(broken)) == 2 and not (broken / "result.json").exists()

    alone = shutil.copytree(broken, tmp_path / "alone")  # one process goes on with both shares
    assert main(*FLAGS, "--resume", "--output_dir", alone) == 0
    result, rows = read_result(alone), read_history(alone)
    assert result["replicas"] == 1 and rows[:2] == read_history(unbroken)[:2]
    assert float(rows[2]["loss"]) == pytest.approx(float(read_history(unbroken)[2]["loss"]), 0.02)

    (status, stdout, stderr), (other, nothing, _) = train_by_workers(broken, "--resume")
    assert (status, other) == (0, 0), stderr
    assert "from epoch 3 to 3" in stdout and nothing == ""
    assert read_history(broken) == read_history(unbroken)
    result, expected = read_result(broken), read_result(unbroken)
    assert result["replicas"] == 2 and result["batch_size"] == expected["batch_size"]
    for name in ("test_accuracy", "last_test_accuracy", "noise_ratio_estimated"):
        assert result[name] == expected[name]
    assert names(broken) == FILES

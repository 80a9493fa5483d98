import contextlib
import io
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import pytest
from tensorflow.python.framework.config import disable_op_determinism


@pytest.fixture(autouse=True)
def fresh_keras():
    """Every test starts from the same seed, policy, settings of Keras and choice of kernels."""
    keras.utils.set_random_seed(0)
    yield
    disable_op_determinism()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session(free_memory=False)  # to collect takes a fifth of the time


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


@pytest.fixture(scope="session")
def images():
    """Makes (uint8 images (n, 8, 8, 1), int32 labels): each class a pattern, with some noise."""

    def make(n, num_classes=4, seed=0):
        patterns = np.random.default_rng(123).integers(0, 2, (num_classes, 8, 8, 1)) * 120
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(n) % num_classes).astype(np.int32)
        return (patterns[labels] + rng.integers(0, 100, (n, 8, 8, 1))).astype(np.uint8), labels

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The run of the flags `runs.RUN`: its `directory`, and what it printed, `stdout`."""
    from runs import RUN, main

    directory = tmp_path_factory.mktemp("finished") / "run"
    keras.utils.set_random_seed(1)  # the program is to set its own
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main(*RUN, "--output_dir", directory) == 0
    disable_op_determinism()
    return types.SimpleNamespace(directory=directory, stdout=stdout.getvalue())


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Calls the command line with flags that it has to refuse; returns its one line on stderr."""
    from runs import main, stamps

    def nothing_is_trained(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(keras.Model, "fit", nothing_is_trained)

    def call(*flags, output_dir=tmp_path / "out"):
        found = stamps(tmp_path)
        assert main("--output_dir", output_dir, *flags) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("mln_keras.py: ")
        assert err.count("\n") == 1 and err.endswith("\n") and "  " not in err
        assert stamps(tmp_path) == found  # nothing made, nothing changed
        return err

    return call

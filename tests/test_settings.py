"""What Keras is set to: the command line pins it, the classes refuse what they cannot do."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import keras
import pytest
from runs import main

from mln_keras.data.checks import ArgumentError
from mln_keras.layers import digits_cnn
from mln_keras.methods import METHODS
from mln_keras.training import before_keras

ROOT = Path(__file__).parents[1]


def python(*arguments, **environment):
    """Runs Python with the clone on its path, in an environment changed by this."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(autouse=True)
def interruptible():
    """A job in the background begins with Ctrl-C ignored, and its children too."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def before(monkeypatch, tmp_path):
    """As before Keras is imported, with this in keras.json and in the environment."""

    def make(content, variable, argv=("train.py",), orig_argv=("python", "train.py")):
        monkeypatch.delitem(sys.modules, "keras")
        monkeypatch.setattr(sys, "argv", list(argv))
        monkeypatch.setattr(sys, "orig_argv", list(orig_argv))
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", variable)
        if content is not None:
            (tmp_path / "keras.json").write_text(content)

    return make


# ---- the backend --------------------------------------------------------------------------------


def test_another_backend_is_refused_before_it_is_imported():
    done = python("-c", "import mln_keras", KERAS_BACKEND="jax")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: mln_keras: needs Keras' backend 'tensorflow', found 'jax'; set the "
        "environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )
    assert "keras/src" not in done.stderr and "During handling" not in done.stderr


JAX = json.dumps({"backend": "jax"})


@pytest.mark.parametrize(
    ("content", "variable", "refused"),
    [(JAX, "", "jax"), (JAX, "torch", "torch"), (JAX, "tensorflow", None), (None, "", None),
     ("{", "", None), ("[]", "", None), ("{}", "", None), ("{}", "openvino", "openvino")],
)  # fmt: skip
def test_the_environment_goes_before_keras_json(before, content, variable, refused):
    before(content, variable)
    if refused is None:
        before_keras.settle("mln_keras")
    else:
        with pytest.raises(ImportError, match=f"found '{refused}'"):
            before_keras.settle("mln_keras")
    assert os.environ["KERAS_BACKEND"] == variable


def test_the_backend_of_a_keras_that_is_imported_counts(before, monkeypatch):
    before(None, "tensorflow")
    config = types.SimpleNamespace(backend=lambda: "jax")
    monkeypatch.setitem(sys.modules, "keras", types.SimpleNamespace(config=config))
    with pytest.raises(ImportError, match="found 'jax'"):
        before_keras.settle("mln_keras")


PROGRAMS = {
    "script": ("__main__", ["mln_keras.py"], ["python", "mln_keras.py"]),
    "module": ("mln_keras", ["-m"], ["python", "-m", "mln_keras", "--help"]),
    "command": ("mln_keras", ["/usr/bin/mln-keras"], ["python", "/usr/bin/mln-keras"]),
}


@pytest.mark.parametrize("way", PROGRAMS)
def test_the_program_chooses_its_backend(before, way):
    name, argv, orig_argv = PROGRAMS[way]
    before(JAX, "torch", argv, orig_argv)
    before_keras.settle(name)
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert main("--help") == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_module_with_m_is_not_the_program(before):
    before(JAX, "torch", ["-m"], ["python", "-m", "theirs"])
    with pytest.raises(ImportError):
        before_keras.settle("mln_keras")


# ---- Ctrl-C while Keras is imported -------------------------------------------------------------


def test_ctrl_c_while_keras_is_imported(tmp_path):
    """This Keras is interrupted as it is imported, and catches that."""
    (tmp_path / "keras.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    [None for _ in range(1000)]\n"
        "except KeyboardInterrupt:\n"
        "    print('caught')\n"
        "    os._exit(7)\n"
    )
    done = python(str(ROOT / "mln_keras.py"), PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "mln_keras.py: interrupted before it began\n"

    # A user's own program handles Ctrl-C itself.
    imported = python(
        "-c", "import mln_keras", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
        KERAS_BACKEND="tensorflow",
    )  # fmt: skip
    assert (imported.returncode, imported.stdout) == (7, "caught\n")


# ---- other settings of Keras --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("floatx", "float16", "float32 or float64"), ("floatx", "bfloat16", "float32 or float64"),
     ("image_data_format", "channels_first", "channels_last")],
)  # fmt: skip
@pytest.mark.parametrize("method", ["metalabelnet", "cross_entropy"])
def test_a_setting_of_keras_that_it_cannot_compute_with_is_refused(method, name, value, allowed):
    arguments = {"warmup_epochs": 1} if method == "metalabelnet" else {}
    classifier = digits_cnn(4)
    getattr(keras.config, f"set_{name}")(value)
    words = re.escape(f"keras.config.{name}: expected {allowed}, received '{value}'; call ")
    with pytest.raises(ArgumentError, match=words):
        METHODS[method](classifier, **arguments)

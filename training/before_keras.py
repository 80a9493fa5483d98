"""What comes before Keras and TensorFlow are imported: which backend, and Ctrl-C meanwhile."""

import json
import os
import pathlib
import signal
import sys

from mln_keras.data.keras_home import keras_home


def settle(name):
    """Chooses Keras' TensorFlow backend for the program; for a user's own code, refuses another.

    Ctrl-C ends the program with one line, until `imports_are_done`.

    Args:
        name: `__name__` of mln_keras.py.

    Raises:
        ImportError: where Keras has another backend or would take it.
    """
    if _is_program(name):
        os.environ["KERAS_BACKEND"] = "tensorflow"
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end)
    backend = _keras_backend()
    if backend != "tensorflow":
        raise ImportError(
            f"mln_keras: needs Keras' backend 'tensorflow', found {backend!r}; set the environment "
            f"variable KERAS_BACKEND=tensorflow before Keras is imported"
        )


def imports_are_done():
    """From here on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_program(name):
    """Whether the command line runs: as a script, by `python -m`, or as the installed command."""
    started = sys.argv[0] if sys.argv else ""
    by_module = started == "-m" and "mln_keras" in sys.orig_argv
    return name == "__main__" or by_module or pathlib.Path(started).stem == "mln-keras"


def _end(*_):
    # No exception, which what is being imported may catch. Nothing is open yet.
    os.write(2, b"mln_keras.py: interrupted before it began\n")
    os._exit(130)


def _keras_backend():
    """The backend that Keras has, or will take: it asks the environment, then keras.json."""
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    try:
        settings = json.loads(pathlib.Path(keras_home(), "keras.json").read_text())
        return settings.get("backend", "tensorflow")
    except (OSError, ValueError, AttributeError):
        return "tensorflow"  # no file, or one about which Keras says what it finds

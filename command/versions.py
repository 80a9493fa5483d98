"""Which versions compute, and on what."""

import contextlib
import ctypes
import importlib.metadata
import platform

import tensorflow as tf

VERSION = "1.0"  # of this program: another one wherever the same flags give other numbers


def versions():
    """Versions of what computes, cuDNN among it where there is a GPU, and the device; a dict."""
    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU"
    found = {"mln_keras": VERSION, "python": platform.python_version(), "device": device}
    for name in ("tensorflow", "keras", "numpy", "tensorflow-datasets"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if gpus:
        with contextlib.suppress(OSError):
            number = ctypes.CDLL("libcudnn.so.9").cudnnGetVersion()
            found["cudnn"] = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return found

"""How the command line sets XLA up."""

import contextlib
import os
import pathlib

import tensorflow as tf

from mln_keras.data.keras_home import keras_home


def configure_xla():
    """Has XLA keep which kernels it found fastest, and put however few into a CUDA graph.

    XLA times kernels whenever it compiles. Kept under $KERAS_HOME (~/.keras), a file each for an
    operation on a GPU with a cuDNN, the choice costs later runs nothing, and rounds as before.

    For before TensorFlow first compiles; what the environment's XLA_FLAGS say comes last and wins.
    """
    ours, given = ["--xla_gpu_graph_min_graph_size=1"], os.environ.get("XLA_FLAGS", "")
    home = pathlib.Path(keras_home())
    kept = home / "mln_keras_kernels" / f"tensorflow-{tf.__version__}"
    with contextlib.suppress(OSError):
        kept.mkdir(parents=True, exist_ok=True)
    if os.access(kept, os.W_OK):
        ours += [f'--xla_gpu_{kind}_cache_dir="{kept}"'
                 for kind in ("experimental_autotuner", "per_fusion_autotune")]  # fmt: skip
    os.environ["XLA_FLAGS"] = " ".join([flag for flag in ours if flag not in given] + [given])

"""Where Keras keeps files between runs. It has no public name for that."""

import os

_WITHOUT_HOME = os.path.join("/tmp", ".keras")


def keras_home():
    """The folder of keras.json, which what is built on Keras keeps files in, too.

    $KERAS_HOME, or ~/.keras, or where the home directory cannot be written, /tmp/.keras.
    """
    home = os.path.expanduser("~")
    default = os.path.join(home, ".keras") if os.access(home, os.W_OK) else _WITHOUT_HOME
    return os.path.expanduser(os.environ.get("KERAS_HOME", default))


def weights_folder():
    """Where Keras looks for ImageNet's weights before it loads them from the network."""
    home = keras_home()
    return os.path.join(home if os.access(home, os.W_OK) else _WITHOUT_HOME, "models")

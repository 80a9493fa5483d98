"""Where samples come from: noise models, the splits, and one loader a data set.

`noise` corrupts labels and `label_files` reads other ones, `source` holds a data set and splits it.
`digits`, `cifar10`, `cifar100` (both by `tfds`), `clothing1m`, `webvision`, `food101n`, `folders`
and `table` (these by `lists`) load one, `teacher` gives the class probabilities that
feature-dependent noise is drawn from, `corruption` does what the flag --noise says, `image_files`
reads images, `inputs` holds what `fit` was given, `batches` makes batches of it, `checks` refuses
what does not fit, and `tensorflow_errors` says in one line what TensorFlow found.
"""

from mln_keras.data import (
    cifar10,
    cifar100,
    clothing1m,
    digits,
    folders,
    food101n,
    table,
    webvision,
)

# Function of the data directory; where the images are files also of `size` and `resize`.
LOADERS = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "cifar100": cifar100.load,
    "clothing1m": clothing1m.load,
    "webvision": webvision.load,
    "food101n": food101n.load,
    "folders": folders.load,
    "table": table.load,
}
YOURS = ("folders", "table")  # it is the data directory that says which data these are

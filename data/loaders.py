"""All data sets, by the names that --dataset takes."""

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

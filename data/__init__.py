"""Where samples come from: noise models, the splits, and one loader a data set.

`noise` corrupts labels, `source` holds a data set and splits it, `digits` and `cifar10` load one,
`teacher` gives the class probabilities that feature-dependent noise is drawn from, `corruption`
does what the flag --noise says, `image_files` reads images, `inputs` holds what `fit` was given,
`batches` makes batches of it, `checks` refuses what does not fit, and `tensorflow_errors` says in
one line what TensorFlow found.
"""

from mln_keras.data import cifar10, digits

LOADERS = {"digits": digits.load, "cifar10": cifar10.load}

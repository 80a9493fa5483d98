"""Where samples come from: noise models, the splits, and one loader a data set.

`noise` corrupts labels and `label_files` reads other ones, `source` holds a data set and splits it.
`digits`, `cifar10`, `cifar100` (both by `tfds`), `clothing1m`, `webvision`, `food101n`, `folders`
and `table` (these by `lists`) load one, `loaders` has all of them by name, `teacher` gives the
class probabilities that feature-dependent noise is drawn from, `corruption` does what the flag
--noise says, `image_files` reads images, `inputs` holds what `fit` was given, `batches` makes
batches of it, `checks` refuses what does not fit, `tensorflow_errors` says in one line what
TensorFlow found, and `keras_home` says where Keras keeps files. As that is asked before
Keras is imported, nothing is imported here.
"""

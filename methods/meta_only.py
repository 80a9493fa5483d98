"""Training on the clean samples alone: what the noisy ones have to be better than."""

import math

import keras

from mln_keras.data.checks import ArgumentError
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.training.phases import Phase

PAPER_META_SIZE = 5000


@keras.saving.register_keras_serializable("mln_keras")
class MetaOnly(CrossEntropy):
    """Cross-entropy on the clean samples, augmented; `fit` learns nothing from the noisy ones.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
    """

    needs_meta = True

    def phases(self):
        return (Phase("training", samples="meta"),)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """As many steps as the recipe's epochs have on the paper's 5,000 clean images.

        So a small meta set is gone over more often. The learning rate is divided by 10 after two
        and after five sixths of the epochs.
        """
        if recipe.meta_size is None:  # as many as the data set has, which is not read yet
            raise ArgumentError("meta_size", "needed by meta_only, whose epochs depend on it")
        steps = recipe.epochs * max(1, PAPER_META_SIZE // recipe.batch_size)
        epochs = math.ceil(steps / max(1, recipe.meta_size // recipe.batch_size))

        def learning_rate_at(epoch):
            return recipe.learning_rate * 0.1 ** sum(6 * epoch >= n * epochs for n in (2, 5))

        return {}, epochs, learning_rate_at

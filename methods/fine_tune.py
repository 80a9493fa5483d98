"""Fine-tuning on the clean samples: the first thing to try with them, and missing from Table I."""

import keras

from mln_keras.data import checks
from mln_keras.methods.cross_entropy import CrossEntropy
from mln_keras.training.phases import Phase


def tuning_rate(epoch, epochs, first):
    """The learning rate of an epoch of fine-tuning: `first`, a tenth of it for the last third.

    Args:
        epoch: of fine-tuning, from 0.
        epochs: how many there are.
        first: the learning rate that it begins with.
    """
    return first * (0.1 if 3 * epoch >= 2 * epochs else 1)


@keras.saving.register_keras_serializable("mln_keras")
class FineTune(CrossEntropy):
    """Cross-entropy on the noisy samples, then on the clean ones alone, augmented.

    The state of the optimizer stays.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        warmup_epochs: epochs on the noisy samples; an epoch after them goes over the meta set.
    """

    needs_meta = True
    flags = ("warmup_epochs",)

    config_names = (*CrossEntropy.config_names, "warmup_epochs")

    def __init__(self, classifier, warmup_epochs, **options):
        super().__init__(classifier, **options)
        checks.integer("warmup_epochs", warmup_epochs, 0)
        self.warmup_epochs = warmup_epochs

    def phases(self):
        tuning = Phase("fine-tuning", start=self.warmup_epochs, samples="meta")
        return (Phase("warm-up"), tuning)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """The warm-up, then half as many epochs of the meta set as the recipe has: 60 of 120.

        They begin with the recipe's learning rate; it is a tenth for their last third.
        """
        warmup, tuning = recipe.warmup_epochs, max(1, recipe.epochs // 2)

        def learning_rate_at(epoch):
            if epoch < warmup:
                return recipe.learning_rate_at(epoch)
            return tuning_rate(epoch - warmup, tuning, recipe.learning_rate)

        return {"warmup_epochs": warmup}, warmup + tuning, learning_rate_at

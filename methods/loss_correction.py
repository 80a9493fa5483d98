"""Two trainings, the second with a loss that knows how labels go wrong: what two methods share."""

from mln_keras.data import checks
from mln_keras.methods.cross_entropy import CrossEntropy


class LossCorrection(CrossEntropy):
    """Trains with cross-entropy, learns T by it, and trains anew from the same start.

    T[i, j] is the probability of the given label j where the true one is i. A subclass defines
    `phases`, two of them, the second of which begins with `begin_again`, and `learn_transition`.

    Args:
        classifier, **options: as `training.model.NoisyLabelModel`.
        warmup_epochs: epochs of the first training.

    Attributes:
        transition: T, float variable (C, C), saved with the model; the identity until it is known.
    """

    config_names = (*CrossEntropy.config_names, "warmup_epochs")

    def __init__(self, classifier, warmup_epochs, **options):
        super().__init__(classifier, **options)
        self.warmup_epochs = warmup_epochs
        shape = (self.num_classes, self.num_classes)
        self.transition = self.add_weight(shape, "identity", trainable=False, name="transition")
        self.start_weights = self.add_weight_copies("start") if warmup_epochs else []

    def learn_transition(self):
        """Called after the first training; assigns `transition`."""
        raise NotImplementedError

    def begin_again(self):
        self.learn_transition()
        self.restart(self.start_weights)

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """The warm-up, then all the recipe's epochs, with its learning rates from the first on.

        Raises:
            ArgumentError: without a warm-up, in which T is learned.
        """
        warmup = recipe.warmup_epochs
        checks.at_least("warmup_epochs", warmup, 1)

        def learning_rate_at(epoch):
            return recipe.learning_rate_at(epoch if epoch < warmup else epoch - warmup)

        return {"warmup_epochs": warmup}, warmup + recipe.epochs, learning_rate_at

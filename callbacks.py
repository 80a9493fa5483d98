"""What happens around a step: one callback list for both phases, and the record of a run."""

import math

import keras


class TwoPhaseCallbacks(keras.callbacks.CallbackList):
    """A callback list that sees warm-up and phase 2, two `fit` loops, as one training.

    It tells the model which epoch begins, stops at a loss that is not finite, and fills the
    metrics that a phase does not have with NaN, so that every epoch logs the same columns
    (the progress bar alone leaves them out).

    Args:
        callbacks: the user's callbacks, a list or None.
        metric_names: names of the metrics that only phase 2 has.
        **kwargs: as `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, metric_names, **kwargs):
        super().__init__(callbacks, **kwargs)
        self._metric_names = metric_names
        self._epoch = None
        self._begun = False

    def on_train_begin(self, logs=None):
        if not self._begun:
            super().on_train_begin(logs)
            self._begun = True

    def on_train_end(self, logs=None):
        """Ends one phase; `finish` ends the training."""
        self._last_logs = logs

    def finish(self):
        super().on_train_end(self._last_logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = self.model.current_epoch = epoch
        super().on_epoch_begin(epoch, logs)

    def _on_train_batch_end(self, batch, logs=None):
        logs = {name: float(value) for name, value in logs.items()}
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"training stopped at epoch {self._epoch + 1}, step {batch + 1}: "
                f"the loss is {logs['loss']}; lower the learning rates"
            )
        super()._on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self._async_train:
            self._flush_futures()
        logs = {name: float(value) for name, value in logs.items()}
        every_column = logs | {n: math.nan for n in self._metric_names if n not in logs}
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs if callback is self._progbar else every_column)

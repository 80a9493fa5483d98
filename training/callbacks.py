"""Callbacks that see the phases, each a `fit` loop of Keras, as one training."""

import math

import keras
import numpy as np


class MonitoredLogs(dict):
    """Logs in which `get` does not find NaN.

    Keras' callbacks read what they monitor with `get`. NaN would be the best value for ever.
    """

    def get(self, name, default=None):
        value = super().get(name, default)
        return default if np.ndim(value) == 0 and value != value else value


class StopAtBadLoss(keras.callbacks.Callback):
    """Ends the training with a FloatingPointError as soon as the loss is not finite."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"training stopped at epoch {self._epoch + 1}, step "
                f"{(batch + 1) * self.model.loop_length}: "
                f"the loss is {float(logs['loss'])}; try lower learning rates"
            )


class PhasedCallbacks(keras.callbacks.CallbackList):
    """A callback list over several `fit` loops: it begins and ends once.

    Metrics that a phase does not have are filled with NaN, so that every epoch logs the same
    columns. The progress bar leaves them out; callbacks with a `monitor` pass over them.

    Args:
        callbacks: the user's callbacks, a list or None.
        metric_names: names of the metrics that only some phases have.
        model: the model in training.
        params: dict, as `keras.callbacks.Callback.params`; its "verbose" decides on the progress
            bar.
    """

    def __init__(self, callbacks, metric_names, model, params):
        self._bar = keras.callbacks.ProgbarLogger() if params["verbose"] else None
        own = [StopAtBadLoss(), *([self._bar] if self._bar else [])]
        super().__init__([*own, *(callbacks or [])], add_history=True, model=model, **params)
        self._metric_names = metric_names
        self._last_logs = None

    def begin(self):
        super().on_train_begin()

    def on_train_begin(self, logs=None):
        """Begins one phase; `begin` begins the training."""

    def on_train_end(self, logs=None):
        """Ends one phase; `finish` ends the training."""
        self._last_logs = logs

    def finish(self):
        super().on_train_end(self._last_logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.model.begin_epoch(epoch)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        logs = {n: float(v) if np.ndim(v) == 0 else np.asarray(v) for n, v in logs.items()}
        if self._bar is not None:  # first, so that what others print comes below the bar
            self._bar.on_epoch_end(epoch, logs)
        logs |= {n: math.nan for n in self._metric_names if n not in logs}
        for callback in self.callbacks:
            if callback is not self._bar:  # what it adds to the logs goes on to the next one
                logs = (MonitoredLogs if hasattr(callback, "monitor") else dict)(logs)
                callback.on_epoch_end(epoch, logs)

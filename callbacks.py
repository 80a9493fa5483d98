"""What happens around a step: one callback list for both phases, and the record of a run."""

import math
import time

import keras

import outputs


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


class RunRecorder(keras.callbacks.Callback):
    """After each epoch: measures the test set, keeps history.csv, best weights and checkpoint.

    The model must be fitted with the meta set as `validation_data`.

    Args:
        directory: the run's.
        flags: dict, saved with the checkpoint.
        test_data: tf.data.Dataset of (images, labels) batches.
        state: a checkpoint's, to continue from; None for a new run.
        print_lines: whether to print one line an epoch.
    """

    def __init__(self, directory, flags, test_data, state=None, print_lines=True):
        super().__init__()
        self.directory = directory
        self.flags = flags
        self.test_data = test_data
        self.print_lines = print_lines
        self.rows = state["rows"] if state else []
        self.best_epoch = state["best_epoch"] if state else None
        self.seconds = state["seconds"] if state else 0.0
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        test = self.model.evaluate(self.test_data, verbose=0, return_dict=True)
        row = {
            "epoch": epoch + 1,
            "phase": int(self.model.phase.numpy()),
            "learning_rate": logs["learning_rate"],
            "loss": logs["loss"],
            "accuracy": logs["accuracy"],
            **{name: logs[name] for name in self.model.phase_2_metrics},
            "meta_set_loss": logs["val_loss"],
            "meta_accuracy": logs["val_accuracy"],
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
        }
        self.rows.append({k: None if v != v else v for k, v in row.items()})
        best = self.best_epoch and self.rows[self.best_epoch - 1]["meta_accuracy"]
        is_best = best is None or row["meta_accuracy"] > best
        if is_best:
            self.best_epoch = epoch + 1
        now = time.monotonic()
        took, self._since = now - self._since, now
        self.seconds += took
        outputs.save_checkpoint(self.directory, self.model, self._state(epoch), is_best)
        outputs.write_history(self.directory, self.rows)
        if self.print_lines:
            self._print(row, took)

    def _state(self, epoch):
        return {
            "epoch": epoch + 1,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "rows": self.rows,
            "flags": self.flags,
        }

    def _print(self, row, took):
        phase = "warm-up" if row["phase"] == 1 else "phase 2"
        meta = "" if row["phase"] == 1 else f"  meta loss {row['meta_loss']:.4f}"
        print(
            f"epoch {row['epoch']:>3} {phase}  loss {row['loss']:.4f}{meta}  accuracy: "
            f"given labels {row['accuracy']:.4f}, meta {row['meta_accuracy']:.4f}, "
            f"test {row['test_accuracy']:.4f}  {took:.1f} s",
            flush=True,
        )

"""A Keras model that is trained in two phases, and all of Keras that this takes.

What is learned, and from what, is in mln_keras.py; here is how Keras gets there.
"""

import contextlib
import functools
import math
import re
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import layers
from data import checks, image_files, pipeline


class MonitoredLogs(dict):
    """Logs in which `get` does not find NaN.

    By `get` Keras' callbacks ask for what they monitor: NaN would be the best value for ever.
    """

    def get(self, name, default=None):
        value = super().get(name, default)
        return default if np.ndim(value) == 0 and value != value else value


class TwoPhaseCallbacks(keras.callbacks.CallbackList):
    """A callback list that sees warm-up and phase 2, two `fit` loops, as one training.

    It stops at a loss that is not finite, and fills the metrics that a phase does not have with
    NaN, so that every epoch logs the same columns. The progress bar leaves them out, and callbacks
    with a `monitor` pass over them.

    Args:
        callbacks: the user's callbacks, a list or None.
        metric_names: names of the metrics that only phase 2 has.
        **kwargs: as `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, metric_names, **kwargs):
        super().__init__(callbacks, **kwargs)
        self._metric_names = metric_names
        self._epoch = None
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
        self._epoch = epoch
        super().on_epoch_begin(epoch, logs)

    def _on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"training stopped at epoch {self._epoch + 1}, step "
                f"{(batch + 1) * self.model.loop_length}: "
                f"the loss is {float(logs['loss'])}; lower the learning rates"
            )
        super()._on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        logs = {n: float(v) if np.ndim(v) == 0 else np.asarray(v) for n, v in logs.items()}
        if self._progbar is not None:  # first, so that what others print comes below the bar
            self._progbar.on_epoch_end(epoch, logs)
        logs |= {n: math.nan for n in self._metric_names if n not in logs}
        for callback in self.callbacks:
            if callback is not self._progbar:  # what it adds to the logs goes on to the next one
                logs = (MonitoredLogs if hasattr(callback, "monitor") else dict)(logs)
                callback.on_epoch_end(epoch, logs)


class TwoPhaseModel(keras.Model):
    """`compile`, `fit`, metrics, saving and `export` for a model of two phases.

    A subclass sets the attributes classifier, label_head, augmentation, image_shape, num_classes,
    warmup_epochs, shuffle_meta, seed, and `phase`, an integer variable that is 1 until its
    `begin_phase_2` sets it to 2. Its `train_step` runs a step of `phase_in_training` through
    `run_step`, and a step calls `update_metrics`. `phase_2_metrics` names the metrics that only
    phase 2 has, `config_names` the constructor's arguments of plain types. `image_dtype` is the
    name of the training images' dtype, None before training, `loop_length` the number of steps in
    a program.
    """

    phase_2_metrics = ()
    config_names = ()

    def __init__(self, **kwargs):
        super().__init__(**({"dtype": keras.config.floatx()} | kwargs))
        self.image_dtype = None
        self.phase_in_training = 1  # which step is traced; `phase` is what saving saves
        self.loop_length = 1
        self._held = (None, None)  # noisy and meta images on the GPU; batches are their row numbers

    def compile(
        self,
        optimizer,
        meta_optimizer=None,
        metrics=("accuracy",),
        jit_compile="auto",
        run_eagerly=False,
        steps_per_execution=1,
    ):
        """Configures training. The losses are the algorithm's and cannot be chosen.

        Args:
            optimizer: of the classifier, λ in Eq. 13; the paper's is SGD with momentum 0.9. One
                with `use_ema` puts its means in the weights' place at the end of each phase.
            meta_optimizer: of the label head, β in Eq. 10; another instance than `optimizer`.
                None is the paper's Adam, 1e-2.
            metrics: Keras metrics of (given labels, class probabilities); they take sample
                weights, and those of unlabeled samples are 0.
            jit_compile, run_eagerly: as `keras.Model.compile`.
            steps_per_execution: at most how many steps run in one call; where the number of an
                epoch's batches is known, the largest divisor of it up to that. With `jit_compile`,
                and where batches have one shape, they are one XLA program: the fastest way on a
                GPU, but a slow one on a CPU. The batches of two calls are in memory at a time. With
                `tf.distribute` it is 1, as Keras fails with more.

        Raises:
            ValueError: where one optimizer is given twice, or no step runs in a call.
        """
        checks.integer("steps_per_execution", steps_per_execution, 1)
        optimizer = keras.optimizers.get(optimizer)  # two of one name are two
        if optimizer is meta_optimizer:
            raise ValueError(
                "meta_optimizer: expected another optimizer than `optimizer`, received the same; "
                "each keeps the state of its own weights"
            )
        self._compile_arguments = {
            "metrics": metrics,
            "jit_compile": jit_compile,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
        }
        is_one = isinstance(metrics, str) or callable(metrics)
        if self._is_distributed():
            steps_per_execution = 1
        super().compile(
            optimizer=optimizer,
            weighted_metrics=[metrics] if is_one else list(metrics or ()),
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            auto_scale_loss=False,
        )
        self._steps_a_call = steps_per_execution
        self.meta_optimizer = keras.optimizers.get(
            keras.optimizers.Adam(1e-2, epsilon=1e-8) if meta_optimizer is None else meta_optimizer
        )
        self._compile_metrics.build(  # tf.distribute needs every variable before the first step
            keras.KerasTensor((None,), "int32"), keras.KerasTensor((None, self.num_classes))
        )
        self.optimizer.build(self.classifier.trainable_variables)
        self.meta_optimizer.build(self.label_head.trainable_variables)
        self._sum_up = tf.function(self._losses_and_hits, jit_compile=self.jit_compile)

    def fit(
        self,
        x,
        y=None,
        *,
        meta_data=None,
        unlabeled_data=None,
        batch_size=128,
        epochs=1,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_data=None,
        validation_batch_size=None,
        validation_freq=1,
        validation_steps=None,
        verbose="auto",
        callbacks=None,
    ):
        """Trains both phases; epochs from `warmup_epochs` on are phase 2.

        A model in phase 2 stays there: epochs before `warmup_epochs` are then left out.

        Args:
            x: the noisy data: images with `y` their labels, a pair (images, labels), or a
                tf.data.Dataset of (images, labels) batches. Images (N, H, W, channels), an array
                or `data.image_files.ImageFiles`; labels integer (N,) in [0, C), beside an array
                also -1, for a sample without a label.
            meta_data: the clean data, a pair or a Dataset likewise; its batches come round again
                and again, on across the epochs. Those of arrays are drawn anew in each round, in
                which the samples that do not fill a batch sit out (see `shuffle_meta`); a Dataset
                keeps its order. Every epoch uses the same meta batches where the number of those
                of x or of a Dataset of meta data is unknown (see
                `tf.data.experimental.assert_cardinality`); where x has no end, every call begins
                with the first. May be left out where no epoch of phase 2 is asked for: then this
                is plain cross-entropy training.
            unlabeled_data: images, or a Dataset of image batches where x is one, for phase 2 only.
            batch_size: N_b for arrays; a Dataset has its own.
            epochs, verbose, callbacks: as `keras.Model.fit`.
            initial_epoch: how many epochs the model has been trained for, to continue there.
            steps_per_epoch: for a Dataset without end, or of unknown length, only.
            validation_data: as `meta_data`, and with labels -1 too.
            validation_batch_size, validation_freq, validation_steps: as `keras.Model.fit`.

        Returns:
            keras.callbacks.History; the metrics that only phase 2 has are NaN in warm-up.

        Raises:
            ValueError: for data that do not fit together, one line that names the argument (for
                labels in a Dataset when they come up), and before `compile`.
            FloatingPointError: where the loss is not finite, with epoch and step.

        Warns:
            UserWarning: naming the classes of which a meta set of arrays holds no sample, and where
                a callback stopped the training before phase 2.
        """
        if not self.compiled:
            raise ValueError("fit: call compile() before fit()")
        if not self.classifier.trainable_variables:
            raise ValueError("classifier: expected trainable weights, found none; all are frozen")
        warmup_end = min(epochs, self.warmup_epochs)
        warms_up = initial_epoch < warmup_end and self.phase == 1
        if meta_data is None and epochs > warmup_end:
            raise ValueError(
                f"meta_data: needed from epoch {warmup_end} on, where phase 2 begins; "
                f"received None with epochs={epochs}"
            )
        if epochs <= self.warmup_epochs and (meta_data is not None or self.phase == 2):
            reason = "so phase 2 would never begin; leave meta_data out to warm up only"
            raise ValueError(
                f"epochs: expected more than warmup_epochs={self.warmup_epochs}, received "
                f"{epochs}, {'as this model is in phase 2' if self.phase == 2 else reason}"
            )
        training_data = pipeline.TrainingData(
            pipeline.paired(x, y), meta_data, unlabeled_data, self.image_shape,
            self.num_classes, batch_size, seed=self.seed, shuffle_meta=self.shuffle_meta,
            warms_up=bool(warms_up), holds=self._is_one_program(),
        )
        if steps_per_epoch is not None:
            checks.integer("steps_per_epoch", steps_per_epoch, 1)
            if training_data.has_known_length:
                raise ValueError(
                    "steps_per_epoch: is for a tf.data.Dataset without end, as an epoch of any "
                    "other begins with its first batch"
                )
        elif training_data.is_endless:
            raise ValueError("steps_per_epoch: needed for x, a tf.data.Dataset without end")
        if validation_data is not None:
            validation_data = pipeline.check_evaluated(
                "validation_data", validation_data, self.image_shape, self.num_classes,
                training_data.image_dtype,
            )
            validation_batch_size = validation_batch_size or batch_size
            validation_data = pipeline.streamed(validation_data, validation_batch_size)
            if validation_steps is None and pipeline.is_endless(validation_data):
                raise ValueError(
                    "validation_steps: needed for validation_data, a tf.data.Dataset without end"
                )
        checks.image_dtype(training_data.image_dtype, self.image_dtype)
        self.image_dtype, self._held = training_data.image_dtype, training_data.held

        watch = TwoPhaseCallbacks(
            callbacks, self.phase_2_metrics, model=self, add_history=True, add_progbar=verbose != 0
        )
        watch.set_params({
            "verbose": 1 if verbose == "auto" else verbose, "epochs": epochs, "steps": None,
        })
        self.stop_training = False
        watch.begin()  # here BackupAndRestore restores, and sets _initial_epoch
        initial_epoch, self._initial_epoch = self._initial_epoch or initial_epoch, None
        fit_phase = functools.partial(
            self._fit_phase, callbacks=watch, verbose=verbose, steps_per_epoch=steps_per_epoch,
            validation_data=validation_data, validation_batch_size=validation_batch_size,
            validation_freq=validation_freq, validation_steps=validation_steps,
        )  # fmt: skip
        try:
            if initial_epoch < warmup_end and self.phase == 1:
                fit_phase(1, training_data.warm_up, range(initial_epoch, warmup_end))
            phase_2_start = max(initial_epoch, warmup_end)
            if epochs > phase_2_start and not self.stop_training:
                if self.phase == 1:
                    self.begin_phase_2()
                fit_phase(2, training_data.phase_2, range(phase_2_start, epochs))
        finally:
            self._held, self.train_function = (None, None), None  # frees the GPU's memory
        watch.finish()
        if self.phase == 1 and epochs > warmup_end:
            text = "fit: a callback stopped the training before phase 2 began"
            warnings.warn(text, UserWarning, stacklevel=2)
        return self.history

    def _fit_phase(self, phase, batches_of, epochs, callbacks, steps_per_epoch, **kwargs):
        dataset = batches_of(epochs)
        steps = steps_per_epoch or pipeline.steps_an_epoch(dataset, epochs)
        self.phase_in_training, self.loop_length = phase, 1
        # Keras' own loop over steps is no XLA program, as that could not read from tf.data: a
        # program gets its steps' batches stacked, and `run_step` loops over them.
        a_call = self._steps_a_call
        if steps:
            a_call = pipeline.largest_divisor(steps, a_call)
            if self._is_one_program() and pipeline.have_one_shape(dataset):
                self.loop_length, a_call = a_call, 1
        if self.loop_length > 1:
            dataset = dataset.batch(self.loop_length, drop_remainder=True).prefetch(1)
            steps //= self.loop_length
        if a_call != self.steps_per_execution:
            self.steps_per_execution = a_call
            self.test_function = self.predict_function = None  # they hold the number before
        callbacks.set_params(callbacks.params | {"steps": steps})
        self.make_train_function(force=True)
        with _data_errors():
            super().fit(
                dataset, epochs=epochs.stop, initial_epoch=epochs.start, steps_per_epoch=steps,
                callbacks=callbacks, shuffle=False, **kwargs,
            )

    def _symbolic_build(self, *_, **__):
        """Keras' dry run under tf.distribute, of float32 images; all variables are there."""

    def _is_one_program(self):
        """Whether XLA compiles the step, for one device."""
        return self.jit_compile and not self._is_distributed()

    def _is_distributed(self):
        with self.distribute_strategy.scope():
            return tf.distribute.has_strategy()

    def run_step(self, step, batch):
        """Runs a training step, a loop of them where the batch has a leading axis of steps."""

        def step_on(batch):
            step(*self._batches(batch))

        if self.loop_length == 1:
            step_on(batch)
        else:
            _loop(step_on, batch, self.loop_length)
        return self._results(phase_2=self.phase_in_training == 2)

    def _batches(self, batch):
        """The noisy batch, and in phase 2 the meta batch, with the held images of row numbers."""
        batches = [batch] if self.phase_in_training == 1 else batch
        return [
            (images if held is None else tf.gather(held, images), labels)
            for (images, labels), held in zip(batches, self._held)
        ]

    def update_metrics(self, loss, labels, logits):
        """Updates the loss and the compiled metrics.

        Samples labeled -1 weigh nothing in metrics and in a loss (N,); a scalar is taken as it is.
        """
        is_labeled = ops.cast(labels >= 0, keras.config.floatx())
        self._loss_tracker.update_state(loss, sample_weight=is_labeled if ops.ndim(loss) else None)
        labels = ops.maximum(labels, 0)
        self.compute_metrics(None, labels, ops.softmax(logits), sample_weight=is_labeled)

    def _results(self, phase_2=False):
        results = self.get_metrics_result()
        return {n: results[n] for n in results if phase_2 or n not in self.phase_2_metrics}

    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        """As `keras.Model.evaluate`, without sample weights; `x` may be a pair (images, labels).

        Of `ImageFiles` no more than some batches are in memory at a time.

        Raises:
            ValueError: for data that do not fit the model, one line that names the argument (for
                labels in a Dataset when they come up).
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # of `fit`, which has checked them
            data = pipeline.check_evaluated(
                "x", pipeline.paired(x, y), self.image_shape, self.num_classes, self.image_dtype
            )
            data = pipeline.streamed(data, batch_size)
            x, y = data if isinstance(data, (tuple, list)) else (data, None)
        with _data_errors():
            return super().evaluate(x, y, batch_size, *args, **kwargs)

    def predict(self, x, batch_size=None, *args, **kwargs):
        """As `keras.Model.predict`; of `ImageFiles` only some batches are in memory at a time."""
        with _data_errors():
            return super().predict(pipeline.streamed(x, batch_size), batch_size, *args, **kwargs)

    def test_step(self, batch):
        images, labels = batch
        checks.image_dtype(images.dtype, self.image_dtype)
        logits = self.logits(images, training=False)
        losses = layers.cross_entropy(ops.maximum(labels, 0), logits)
        self.update_metrics(losses, labels, logits)
        return self._results()

    def evaluation(self, images, labels, batch_size):
        """What `evaluate` says of arrays, but for the compiled metrics, as one call on one device.

        It is for measuring the same images again and again: they stay on the GPU.

        Args:
            images: array (N, H, W, channels).
            labels: integer array (N,), -1 for a sample that is left out, at least one other.
            batch_size: at most how many images are computed at once.

        Returns:
            A function without arguments that returns mean cross-entropy and accuracy, two floats.

        Raises:
            ValueError: for arrays that do not fit the model, one line that names the argument.
        """
        pipeline.check_evaluated(
            "x", (images, labels), self.image_shape, self.num_classes, self.image_dtype
        )
        count = np.sum(np.asarray(labels) >= 0)
        images, labels = pipeline.stack(images, labels, batch_size)
        held, _ = pipeline.hold(images)
        images = pipeline.converted(images) if held is None else held

        def measure():  # without a division in the graph, where one by a constant is a product
            return tuple(float(total / count) for total in self._sum_up(images, labels))

        return measure

    def _losses_and_hits(self, images, labels):
        """Sums over stacked batches, as `pipeline.stack` makes them."""

        def add(sums, batch):
            (loss, hits), (images, labels) = sums, batch
            logits = self.logits(images, training=False)
            losses = layers.cross_entropy(ops.maximum(labels, 0), logits)
            is_labeled = ops.cast(labels >= 0, losses.dtype)
            are_hits = ops.cast(ops.argmax(logits, -1) == labels, losses.dtype)
            return loss + ops.sum(losses * is_labeled), hits + ops.sum(are_hits)

        start = ops.zeros(()), ops.zeros(())
        return tf.foldl(add, (images, labels), start, parallel_iterations=1)

    def export(self, filepath):
        """Writes a SavedModel that plain TensorFlow loads.

        Its `serve`, also the signature `serving_default`, takes `images`, (N, H, W, channels) of
        the dtype that the model was trained on (uint8 in 0..255 unless it was given float images),
        and returns a dict with `probabilities`, float32 (N, C).
        """
        dtype = self.image_dtype or "uint8"
        images = tf.TensorSpec([None, *self.image_shape], dtype, name="images")
        archive = keras.export.ExportArchive()
        archive.track(self.classifier)
        archive.add_endpoint(
            "serve",
            lambda images: {"probabilities": self(images, training=False)},
            input_signature=[images],
        )
        archive.write_out(filepath, verbose=False)

    def get_config(self):
        return super().get_config() | {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "augmentation": keras.saving.serialize_keras_object(self.augmentation),
            "image_dtype": self.image_dtype,
            **{name: getattr(self, name) for name in self.config_names},
        }

    @classmethod
    def from_config(cls, config):
        config, image_dtype = dict(config), config["image_dtype"]
        del config["image_dtype"]
        for name in ("classifier", "augmentation"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        model = cls(**config)
        model.image_dtype = image_dtype
        return model

    def get_compile_config(self):
        if not self.compiled:
            return None
        optimizers = {"optimizer": self.optimizer, "meta_optimizer": self.meta_optimizer}
        return keras.saving.serialize_keras_object(optimizers | self._compile_arguments)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _random_states(self):
        """Seeds of dropout and augmentation: training state that Keras does not save by itself."""
        weights = set(map(id, self.weights))
        variables = self.classifier.variables + getattr(self.augmentation, "variables", [])
        variables += self.label_head.variables
        states = [v for v in variables if id(v) not in weights]
        return {f"random_state_{i}": state for i, state in enumerate(states)}

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, variable in self._random_states().items():
            store[name] = variable

    def load_own_variables(self, store):
        random_states = self._random_states()
        for name, variable in random_states.items():
            variable.assign(store[name])
        super().load_own_variables({n: store[n] for n in store.keys() if n not in random_states})


@contextlib.contextmanager
def _data_errors():
    """Turns what TensorFlow says of a wrong label or a damaged or missing file into one line."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        wanted = r"\w+: expected labels in \[0, \d+\)( or -1 \(no label\))?"
        wrong_labels = re.search(wanted, str(error))
        if wrong_labels is not None:
            raise ValueError(wrong_labels[0]) from None
        image_files.refuse_file(error)
        raise


def _loop(step, batches, length):
    """Runs a step on each of the batches, which come with a leading axis of this length."""

    def step_number(i):
        step(tf.nest.map_structure(lambda tensors: tensors[i], batches))
        return (i + 1,)

    tf.while_loop(lambda i: i < length, step_number, [0])

"""A Keras model that is trained on noisy labels, in phases, and all of Keras that this takes.

What is learned, and from what, is a subclass's; here is how Keras gets there.
"""

import contextlib
import functools
import warnings

import keras
import tensorflow as tf
from keras import ops

from mln_keras.data import batches, checks, inputs, tensorflow_errors
from mln_keras.data.checks import ArgumentError
from mln_keras.training import keras_private, phases, programs, replicas
from mln_keras.training.callbacks import PhasedCallbacks
from mln_keras.training.classifier import (
    check_logits,
    classifier_shapes,
    scales_down,
    twice_differentiable_max_pooling,
)
from mln_keras.training.evaluation import Evaluates
from mln_keras.training.saving import SavesTraining
from mln_keras.training.second_order import check_second_derivatives
from mln_keras.training.unsupported import RefusesUnsupported, refuse


class NoisyLabelModel(SavesTraining, Evaluates, RefusesUnsupported, keras_private.Model):
    """A classifier in training on noisy labels: `compile`, `fit`, metrics, saving and `export`.

    A subclass defines `phases()`, and the `step` of a phase that names none; a step calls
    `apply_gradients` and `update_metrics`. What it trains by a meta-gradient it returns from
    `meta_weights`, and its layers from `other_layers`. One that keeps something for each sample
    sets `keeps_samples`: its noisy batches are (images, labels, rows).

    Args:
        classifier: Keras model, images to logits (N, C), built. Images reach it as float32, so
            uint8 ones in 0..255: begin it with a `keras.layers.Rescaling`.
        augmentation: layer applied to the training images; None for none.
        weight_decay: coupled L2, added as weight_decay·w to the gradient of every weight. (An
            optimizer's own `weight_decay` is decoupled.)
        shuffle_meta: whether meta batches made from arrays are drawn anew each time that the meta
            data have come round; False keeps their order, as the authors' program does.
        seed: integer, at least 0; with the epoch it decides the order of batches made from arrays.
        class_names: C different strings of one line, which saving and `export` keep; None for none.

    Attributes:
        image_shape, num_classes: (H, W, channels) and C.
        image_dtype: name of the training images' dtype, None before training.
        phase: integer variable, the number of the phase, from 1.
        loop_length: the number of steps in a program.
        data_in_fit: `data.inputs.TrainingData` of the `fit` that runs, else None.

    Raises:
        ArgumentError: for a classifier without logits of shape (N, C) or in float16, for an
            argument outside its range, and where Keras' floatx is neither float32 nor float64 or
            its image_data_format not channels_last.
    """

    config_names = ("weight_decay", "shuffle_meta", "seed", "class_names")
    keeps_samples = False
    second_order = False  # whether it needs the derivative of the classifier's gradient
    needs_meta = False  # whether it learns from the clean data
    chosen_from = 1  # the phase, from 1, from which on the command line looks for the best epoch
    flags = ()  # of the command line, those that this method takes and not all others do

    def __init__(
        self, classifier, augmentation=None, weight_decay=1e-4, shuffle_meta=True, seed=0,
        class_names=None, **kwargs
    ):  # fmt: skip
        checks.keras_settings()
        super().__init__(**({"dtype": keras.config.floatx()} | kwargs))
        checks.integer("seed", seed, 0)
        checks.at_least("weight_decay", weight_decay, 0)
        self.classifier = classifier
        self.augmentation = augmentation
        self.weight_decay = weight_decay
        self.shuffle_meta = shuffle_meta
        self.seed = seed
        self.image_shape, self.num_classes = classifier_shapes(classifier)
        self.class_names = checks.class_names(class_names, self.num_classes)
        self.image_dtype = None
        self._first_values = None
        self.phase_in_training = 1  # which step is traced; `phase` is what saving saves
        self.loop_length, self.is_stacked = 1, False
        self.held = (None,)  # images on the GPU, of each part of a batch
        self.data_in_fit = None
        # All that training changes is a Keras variable, so that saving saves it.
        self.phase = self.add_weight(
            shape=(), dtype="int32", initializer="ones", trainable=False, name="phase"
        )
        self.built = True

    # ---- what a subclass defines ------------------------------------------------------------

    def phases(self):
        """The phases of a training, a tuple of `phases.Phase` by their start."""
        raise NotImplementedError

    def step(self, batch):
        """One training step, in a phase that names no other.

        Args:
            batch: images (N, H, W, channels) and int32 labels (N,), a tuple. The meta batch, where
                the phase has one, is a second argument.
        """
        raise NotImplementedError

    def meta_weights(self):
        """What the meta optimizer trains, a list of variables."""
        return []

    def default_meta_optimizer(self):
        """The meta optimizer where `compile` is given none: MetaLabelNet's Adam, 1e-2."""
        return keras.optimizers.Adam(1e-2, epsilon=1e-8)

    def other_layers(self):
        """Layers in training besides classifier and augmentation, a list."""
        return []

    def optimized_weights(self):
        """What the optimizer trains, a list of variables."""
        return self.classifier.trainable_variables

    def replica_states(self):
        """What each replica changes by itself, the averages of batch norm; a list of variables.

        After a step, or a program of several, each becomes its mean over the replicas. As they are
        running means, it makes no difference how often.
        """
        layers = [self.classifier, self.augmentation, *self.other_layers()]
        states = [v for layer in layers for v in getattr(layer, "non_trainable_variables", ())]
        return [v for v in states if v.dtype.startswith(("float", "bfloat"))]

    def begin_epoch(self, epoch):
        """Called before each epoch's first step, with the (0-based) number of the epoch."""

    def inference_variables(self):
        """Variables besides the classifier's that `logits` reads in inference mode, a list."""
        return []

    def see_samples(self, labels):
        """Called at the start of `fit` where the model `keeps_samples`.

        Args:
            labels: int32 (N,), of all training samples, -1 for one without a label.
        """

    @classmethod
    def from_recipe(cls, recipe, splits=None):
        """How the command line trains this method.

        By default those of its `flags` that are arguments are the recipe's, where it has them.

        Args:
            recipe: `command.recipes.Recipe`.
            splits: `data.source.Splits`; None before they are loaded. Arguments that are found by
                them are left out then.

        Returns:
            (dict of the constructor's arguments; number of epochs; function from the 0-based epoch
            to the learning rate).

        Raises:
            ArgumentError: for a recipe by which it cannot be trained.
        """
        given = {name: getattr(recipe, name) for name in cls.flags if name in cls.config_names}
        options = {name: value for name, value in given.items() if value is not None}
        return options, recipe.epochs, recipe.learning_rate_at

    # ---- the classifier ---------------------------------------------------------------------

    def __call__(self, images, *args, **kwargs):
        # Not in `call`, where Keras would make another, longer error of it.
        checks.image_dtype(images.dtype, self.image_dtype)
        return super().__call__(images, *args, **kwargs)

    def call(self, images, training=False):
        """Class probabilities, float32 (N, C), of images (N, H, W, channels)."""
        return ops.softmax(self.logits(images, training))

    def logits(self, images, training):
        """f_θ(x) before its softmax, float32 (N, C), of images (N, H, W, channels)."""
        images = ops.cast(images, keras.config.floatx())
        with (
            twice_differentiable_max_pooling(self.classifier)
            if training and self.second_order else contextlib.nullcontext()
        ):
            logits = self.classifier(images, training=training)
        return ops.cast(logits, keras.config.floatx())

    def logits_at(self, weights, images, moves_batch_norm=True):
        """The logits at other weights, in training mode, without changing the classifier's.

        Args:
            weights: list of tensors like the classifier's trainable variables: θ̂.
            images: (N, H, W, channels).
            moves_batch_norm: whether this batch moves the running averages of batch norm.

        Returns:
            float32 (N, C).
        """
        mapping = list(zip(self.classifier.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logits = self.logits(images, training=True)
        saved = set(map(id, self.classifier.weights))  # the others are random states
        for state in self.classifier.non_trainable_variables:
            new = scope.get_current_value(state)
            if new is not None and (moves_batch_norm or id(state) not in saved):
                state.assign(new)
        return logits

    def weights_as(self, values):
        """A `keras.StatelessScope` in which the classifier's weights have these values, a list."""
        return keras.StatelessScope(list(zip(self.classifier.weights, values, strict=True)))

    def features_at(self, weights, images):
        """What `_features` (see `classifier.find_features`) gives at other weights, in inference.

        Args:
            weights: list of tensors like the classifier's weights.
            images: (N, H, W, channels).

        Returns:
            float32 (N, F).
        """
        with self.weights_as(weights):
            features = self._features(ops.cast(images, keras.config.floatx()))
        return ops.cast(ops.reshape(features, (ops.shape(images)[0], -1)), keras.config.floatx())

    def add_weight_copies(self, prefix):
        """Variables, saved with the model, for a copy of the classifier's weights; a list."""
        copies = [
            self.add_weight(
                shape=w.shape, dtype=w.dtype, initializer="zeros", trainable=False,
                name=f"{prefix}_{w.path.replace('/', '_')}",
            )
            for w in self.classifier.weights
        ]  # fmt: skip
        assign_all(copies, self.classifier.weights)
        return copies

    def restart(self, weights):
        """Gives the classifier these weights, and its optimizer the state of its first step."""
        assign_all(self.classifier.weights, weights)
        forget(self.optimizer, self.optimized_weights())

    def predictions(self, samples):
        """What the classifier says of the data of the `fit` that runs, each sample once, in order.

        It is for a phase's `begin`; the phase `reads` these samples.

        Args:
            samples: "labeled" or "meta".

        Yields:
            (class probabilities float32 (n, C), int32 labels (n,)), NumPy arrays, batch by batch.
        """
        predict = tf.function(
            lambda images: ops.softmax(self.logits(images, training=False)), reduce_retracing=True
        )
        for images, labels in self.data_in_fit.every(samples):
            yield predict(images).numpy(), labels.numpy()

    def augment(self, images):
        return images if self.augmentation is None else self.augmentation(images, training=True)

    def regularization(self):
        """The classifier's own losses at its last call, a scalar."""
        return sum(ops.cast(loss, keras.config.floatx()) for loss in self.classifier.losses)

    # ---- compile ----------------------------------------------------------------------------

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
            meta_optimizer: of what a meta-gradient trains (the label head, β in Eq. 10); another
                instance than `optimizer`. None is the method's own, for MetaLabelNet the paper's
                Adam, 1e-2.
            metrics: Keras metrics of (given labels, class probabilities); they take sample
                weights, and those of unlabeled samples are 0.
            jit_compile, run_eagerly: as `keras.Model.compile`. Under a strategy of `tf.distribute`
                XLA compiles the program of each GPU, with its exchanges between GPUs; between CPUs
                XLA has none, and the program runs without it.
            steps_per_execution: at most how many steps run in one call; where the number of an
                epoch's batches is known, the largest divisor of it up to that. With `jit_compile`,
                and where batches have one shape, they are one XLA program: the fastest way on a
                GPU, but a slow one on a CPU. The batches of two calls are in memory at a time, so
                a call takes no more than 256 MiB of them.

        Raises:
            ArgumentError: where one optimizer is given twice, an optimizer scales the loss, a
                method without a meta-gradient gets a meta optimizer, or no step runs in a call.
        """
        checks.integer("steps_per_execution", steps_per_execution, 1)
        optimizer, meta_optimizer = self._optimizers(optimizer, meta_optimizer)
        self._compile_arguments = {
            "metrics": metrics,
            "jit_compile": jit_compile,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
        }
        is_one = isinstance(metrics, str) or callable(metrics)
        is_distributed = self._is_distributed()
        super().compile(
            optimizer=optimizer,
            weighted_metrics=[metrics] if is_one else list(metrics or ()),
            jit_compile=False if is_distributed else jit_compile,
            run_eagerly=run_eagerly,
            steps_per_execution=1 if is_distributed else steps_per_execution,
            auto_scale_loss=False,
        )
        self._compiles_replicas = bool(
            is_distributed and jit_compile and not run_eagerly
            and replicas.are_on_gpus(self.distribute_strategy)
        )  # fmt: skip
        self._steps_a_call = steps_per_execution
        self._functions = programs.TrainFunctions()
        self.meta_optimizer = meta_optimizer
        self.build_metrics(
            keras.KerasTensor((None,), "int32"), keras.KerasTensor((None, self.num_classes))
        )
        self.optimizer.build(self.optimized_weights())
        if meta_optimizer is not None:
            self.meta_optimizer.build(self.meta_weights())
        self._sum_up = tf.function(
            self._losses_and_hits, jit_compile=self.jit_compile or self._compiles_replicas
        )

    def _optimizers(self, optimizer, meta_optimizer):
        """Both as Keras optimizers that can be used; the second None where nothing needs it."""
        optimizer = keras.optimizers.get(optimizer)  # two of one name are two
        if optimizer is meta_optimizer:
            raise ArgumentError(
                "meta_optimizer",
                "expected another optimizer than `optimizer`, received the same; each keeps the "
                "state of its own weights",
            )
        if not self.meta_weights():
            if meta_optimizer is not None:
                raise ArgumentError("meta_optimizer", "this method has no use for it; leave it out")
            return _without_loss_scale("optimizer", optimizer), None
        if meta_optimizer is None:
            meta_optimizer = self.default_meta_optimizer()
        meta_optimizer = keras.optimizers.get(meta_optimizer)
        return (
            _without_loss_scale("optimizer", optimizer),
            _without_loss_scale("meta_optimizer", meta_optimizer),
        )

    # ---- fit --------------------------------------------------------------------------------

    def fit(
        self,
        x,
        y=None,
        *,
        meta_data=None,
        unlabeled_data=None,
        batch_size=batches.BATCH_SIZE,
        epochs=1,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_data=None,
        validation_batch_size=None,
        validation_freq=1,
        validation_steps=None,
        verbose="auto",
        callbacks=None,
        **unsupported,
    ):
        """Trains all phases up to `epochs`, each epoch in the phase that it belongs to.

        A model in a later phase stays there: epochs of an earlier one are then left out.

        Args:
            x: the noisy data: images with `y` their labels, a pair (images, labels), or a
                tf.data.Dataset of (images, labels) batches. Images (N, H, W, channels), an array
                or `data.image_files.ImageFiles`; labels integer (N,) in [0, C), beside an array
                also -1, for a sample without a label. All images that a model sees are of one
                integer type, or floats.
            meta_data: the clean data, a pair or a Dataset likewise; its batches come round again
                and again, on across the epochs. Those of arrays are drawn anew in each round, in
                which the samples that do not fill a batch sit out (see `shuffle_meta`); a Dataset
                keeps its order. Every epoch uses the same meta batches where the number of those
                of x or of a Dataset of meta data is unknown (see
                `tf.data.experimental.assert_cardinality`); where x has no end, every call begins
                with the first. May be left out where no epoch of a phase that needs them is asked
                for: MetaLabelNet is then plain cross-entropy training.
            unlabeled_data: images, or a Dataset of image batches where x is one, for a phase
                without labels only.
            batch_size: N_b for arrays; a Dataset has its own.
            epochs, verbose, callbacks: as `keras.Model.fit`.
            initial_epoch: how many epochs the model has been trained for, to continue there.
            steps_per_epoch: for a Dataset without end, or of unknown length, only.
            validation_data: as `meta_data`, and with labels -1 too.
            validation_batch_size, validation_freq, validation_steps: as `keras.Model.fit`.
            **unsupported: what else `keras.Model.fit` takes is refused.

        Returns:
            keras.callbacks.History; the metrics that a phase does not have are NaN.

        Raises:
            ArgumentError: for data that do not fit together (for labels in a Dataset when they
                come up).
            ValueError: before `compile`.
            FloatingPointError: where the loss is not finite, with epoch and step.
            MemoryError: where the device has too little memory.
            ConnectionError: where another worker has ended.

        Warns:
            UserWarning: naming the classes of which a meta set of arrays holds few samples or none,
                where float images in 0..1 meet a classifier that scales 0..255 down, where a
                callback stopped the training before a later phase, and where one took the model
                back to an earlier phase.
        """
        refuse(unsupported)
        self._check_ready()
        phases.check_plan(
            self.phases(), self._phase_now(), initial_epoch, epochs,
            has_meta=meta_data is not None, has_unlabeled=unlabeled_data is not None,
        )  # fmt: skip
        data = inputs.TrainingData(
            inputs.paired(x, y), meta_data, unlabeled_data, self._expected(),
            inputs.Batching(
                batch_size, self.seed, self.shuffle_meta,
                self.jit_compile or self._compiles_replicas, self.keeps_samples,
            ),
        )  # fmt: skip
        self._warn_of_lost_epochs(initial_epoch)
        planned = phases.plan(self.phases(), self._phase_now(), initial_epoch, epochs)
        for number, _ in planned:
            data.check(self.phases()[number - 1])
        _check_steps(steps_per_epoch, data)
        checks.image_dtype(data.image_dtype, self.image_dtype, "x")
        validation_batch_size = validation_batch_size or batch_size
        validation_data = self._validation(
            validation_data, data.image_dtype, validation_batch_size, validation_steps
        )
        self._warn_of_scale(data)
        self._take_in(data)
        make = functools.partial(self._make_program, data, steps_per_epoch)
        self._look_ahead(data, planned, make)

        shown = {"verbose": 1 if verbose == "auto" else verbose, "epochs": epochs, "steps": None}
        watch = PhasedCallbacks(callbacks, self.phase_metrics(), self, shown)
        fit_phase = functools.partial(
            self._fit_phase, callbacks=watch, verbose=verbose,
            validation_data=validation_data, validation_batch_size=validation_batch_size,
            validation_freq=validation_freq, validation_steps=validation_steps,
        )  # fmt: skip
        self.data_in_fit = data
        with tensorflow_errors.of_lost_workers(self.distribute_strategy):
            self._fit_phases(make, fit_phase, watch, initial_epoch, epochs)
        return self.history

    def _fit_phases(self, make, fit_phase, callbacks, initial_epoch, epochs):
        """Trains each phase, until a callback stops the training."""
        self.stop_training = False
        callbacks.begin()  # here BackupAndRestore restores, the phase too
        initial_epoch = self.take_restored_epoch() or initial_epoch
        reached = self._phase_now()
        try:
            for number, epochs_of in phases.plan(
                self.phases(), self._phase_now(), initial_epoch, epochs
            ):
                while self._phase_now() < number:
                    self.begin_phase(self._phase_now() + 1)
                reached = number
                fit_phase(make(number, epochs_of), epochs_of)
                if self.stop_training:
                    break
        finally:
            self.held, self.data_in_fit, self.train_function = (None,), None, None
            self._functions.free_held()
        callbacks.finish()  # here EarlyStopping restores, the phase too
        left_out = [phase for phase in self.phases()[reached:] if phase.start < epochs]
        if self.stop_training and left_out:
            text = f"fit: a callback stopped the training before {left_out[0].name} began"
            warnings.warn(text, UserWarning, stacklevel=3)
        if self._phase_now() < reached:
            before, after = (self.phases()[n - 1].name for n in (reached, self._phase_now()))
            text = f"fit: a callback took the model from {before} back to {after}, with its weights"
            warnings.warn(text, UserWarning, stacklevel=3)

    def _warn_of_lost_epochs(self, initial_epoch):
        phase = self.phases()[self._phase_now() - 1]
        if initial_epoch < phase.start:
            text = (
                f"fit: this model is in {phase.name}, so the {phase.start - initial_epoch} epochs "
                f"before it are left out, and labels that you have changed since are not learned. "
                f"Call start_over() before fit to train from the beginning, or pass initial_epoch, "
                f"the number of epochs done, to go on"
            )
            warnings.warn(text, UserWarning, stacklevel=3)

    def start_over(self):
        """Takes the model back to before its first `fit`, with the classifier's first weights.

        What is trained by a meta-gradient starts anew too, and the optimizers forget. Compile again
        for other optimizers.

        Raises:
            ArgumentError: for a model that was loaded, which does not have its first weights.
        """
        if self._first_values is None:
            raise ArgumentError(
                "start_over", "a loaded model has no first weights; build a new classifier"
            )
        for weight in self.weights:
            if id(weight) in self._first_values:  # not what `fit` made for each sample
                weight.assign(self._first_values[id(weight)])
        if self.compiled:
            forget(self.optimizer, self.optimized_weights())
        if self.compiled and self.meta_optimizer is not None:
            forget(self.meta_optimizer, self.meta_weights())

    def _phase_now(self):
        return int(self.phase.numpy())  # under tf.distribute, `int` does not take a variable

    def begin_phase(self, number):
        """Takes the model into the phase of this number (from 1)."""
        with tensorflow_errors.in_one_line():
            self.phases()[number - 1].begin()
        self.phase.assign(number)
        if self.compiled:  # gradients of another loss
            keras_private.forget_accumulated(self.optimizer)

    def _make_program(self, data, steps_per_epoch, number, epochs):
        """The `Program` of a phase over a range of its epochs."""
        phase = self.phases()[number - 1]
        dataset = data.batches(phase, epochs)
        steps = batches.steps_an_epoch(dataset, epochs) or steps_per_epoch
        strategy = self.distribute_strategy if self._is_distributed() else None
        place = functools.partial(replicas.on_each, strategy) if strategy else (lambda x: x)
        return programs.make_program(
            number, dataset, data.held(phase, place), steps, self._steps_a_call,
            self.jit_compile or self._compiles_replicas,
            strategy and strategy.num_replicas_in_sync,
        )  # fmt: skip

    def _look_ahead(self, data, planned, make):
        """Refuses what would only fail in a later phase.

        Args:
            data: `data.inputs.TrainingData`.
            planned: list of phases and their epochs, as `phases.plan` returns it.
            make: function from a phase and its epochs to its `Program`.
        """
        needs_meta = [self.phases()[number - 1].needs_meta for number, _ in planned]
        if any(needs_meta):
            with tensorflow_errors.in_one_line():
                data.look_at_meta()
        if self.second_order and (any(needs_meta) or not self.needs_meta):
            images = tf.TensorSpec((None, *self.image_shape), self.image_dtype)
            check_second_derivatives(
                self.classifier, self.num_classes, lambda x: self.logits(x, training=True), images
            )
        if not self.run_eagerly:
            self._try_programs(planned, make)

    def _try_programs(self, planned, make):
        tried = planned if self._compiles_replicas else planned[1:]
        try:
            for phase in tried:
                programs.try_program(self, self._functions, make(*phase), self.training_state())
        except programs.CannotTrainError as error:
            if not self._compiles_replicas:
                raise
            text = f"XLA does not compile the program of a replica, which is then slower ({error})"
            warnings.warn(text, UserWarning, stacklevel=4)
            self._compiles_replicas, self._functions = False, programs.TrainFunctions()
            self._try_programs(planned, make)

    def _fit_phase(self, program, epochs, callbacks, **kwargs):
        """Keras' `fit` over the epochs of one phase."""
        self._functions.use(self, program)
        callbacks.set_params(callbacks.params | {"steps": program.calls})
        with tensorflow_errors.in_one_line():
            super().fit(
                self.shared(program.dataset, is_endless=program.calls is not None),
                epochs=epochs.stop, initial_epoch=epochs.start,
                steps_per_epoch=program.calls, callbacks=callbacks, shuffle=False, **kwargs,
            )  # fmt: skip
        has_meta = self.meta_optimizer is not None and self.phases()[program.number - 1].with_meta
        if has_meta and self.meta_optimizer.iterations.numpy():  # it may not have begun
            self.meta_optimizer.finalize_variable_values(self.meta_weights())

    def _check_ready(self):
        if not self.compiled:
            raise ValueError("fit: call compile() before fit()")
        if not self.classifier.trainable_variables:
            raise ArgumentError(
                "classifier", "expected trainable weights, found none; all are frozen"
            )

    def _take_in(self, data):
        """What a model learns of its data before it trains: the images' dtype, and the samples."""
        self._check_logits(data)
        if self.image_dtype is None:  # no `fit` came before
            self._first_values = {id(w): ops.convert_to_numpy(w) for w in self.weights}
        self.image_dtype = data.image_dtype
        if self.keeps_samples:
            with self.distribute_strategy.scope():
                self.see_samples(data.labels)

    def _check_logits(self, data):
        """Refuses a classifier that returns probabilities, by two of the training images."""
        if self.image_dtype is None:
            with tensorflow_errors.in_one_line(), tf.device("CPU"):
                check_logits(self.logits(data.first_images(2), training=False))

    def _warn_of_scale(self, data):
        """Warns of float images in 0..1 that are divided by 255; of a Dataset the first batch."""
        is_new = self.image_dtype is None
        if not (is_new and checks.is_float(data.image_dtype) and scales_down(self.classifier)):
            return
        with tensorflow_errors.in_one_line():
            pixels = ops.convert_to_numpy(data.first_images(None))
        if pixels.min() >= 0 and 0 < pixels.max() <= 1:
            text = (
                f"x: {data.image_dtype} images in 0..1, but the classifier begins with a "
                f"Rescaling for 0..255; leave out the one or the other scaling"
            )
            warnings.warn(text, UserWarning, stacklevel=3)

    def _expected(self, dtype=None):
        return inputs.Expected(self.image_shape, self.num_classes, dtype)

    def _validation(self, data, image_dtype, batch_size, steps):
        """Checked validation data; those in files as a Dataset."""
        if data is None:
            return None
        data = inputs.check_evaluated("validation_data", data, self._expected(image_dtype))
        data = inputs.streamed(data, batch_size)
        if steps is None and batches.is_endless(data):
            raise ArgumentError(
                "validation_steps", "needed for validation_data, a tf.data.Dataset without end"
            )
        return data

    def shared(self, dataset, is_endless):
        """Batches as they are, or for the replicas; arguments as `replicas.shares`."""
        if not self._is_distributed():
            return dataset
        return replicas.shares(dataset, self.distribute_strategy, is_endless, self.is_stacked)

    def make_train_function(self, force=False):
        if not self._is_distributed():
            super().make_train_function(force)
        elif force or self.train_function is None:
            self.train_function = replicas.make_function(
                self, self.train_step, self._results, 1 if self.is_stacked else self.loop_length,
                self._compiles_replicas, self.replica_states(),
            )  # fmt: skip

    def make_test_function(self, force=False):
        if not self._is_distributed():
            super().make_test_function(force)
        elif force or self.test_function is None:
            results = functools.partial(self._results, in_training=False)
            self.test_function = replicas.make_function(self, self.test_step, results)

    def _is_distributed(self):
        with self.distribute_strategy.scope():
            return tf.distribute.has_strategy()

    # ---- steps ------------------------------------------------------------------------------

    def train_step(self, batch):
        """Runs the phase's step, a loop of them where the batch has a leading axis of steps."""
        step = self.phases()[self.phase_in_training - 1].step or self.step

        def step_on(batch):
            step(*self._parts(batch))

        if self.is_stacked:
            _loop(step_on, batch, self.loop_length)
        else:
            step_on(batch)
        return self._results()

    def _parts(self, batch):
        """The noisy batch, and the meta batch where there is one; row numbers become images."""
        parts = batch if isinstance(batch[0], tuple) else [batch]
        return [
            (images if held is None else tf.gather(held, images), *others)
            for (images, *others), held in zip(parts, self.held, strict=True)
        ]

    def apply_gradients(self, optimizer, gradients, weights):
        """One step of an optimizer, with weight decay. It adds up what replicas give it."""
        share = 1 / replicas.count()
        decayed = [share * (g + self.weight_decay * w) for g, w in zip(gradients, weights)]
        optimizer.apply(decayed, weights)

    def update_metrics(self, loss, labels, logits):
        """Updates the loss and the compiled metrics.

        Samples labeled -1 weigh nothing in metrics and in a loss (N,); a scalar is taken as it is.
        """
        is_labeled = ops.cast(labels >= 0, keras.config.floatx())
        self.loss_tracker.update_state(loss, sample_weight=is_labeled if ops.ndim(loss) else None)
        labels = ops.maximum(labels, 0)
        self.compute_metrics(None, labels, ops.softmax(logits), sample_weight=is_labeled)

    def phase_metrics(self):
        """Names of the metrics that some phases have and others have not, a list."""
        return list(dict.fromkeys(name for phase in self.phases() for name in phase.metrics))

    def _results(self, in_training=True):
        """The metrics that the phase has; in evaluation those that every phase has."""
        own = self.phases()[self.phase_in_training - 1].metrics if in_training else ()
        others = set(self.phase_metrics()) - set(own)
        return {n: value for n, value in self.get_metrics_result().items() if n not in others}


def gradient(tape, loss, weights, **kwargs):
    """As `tape.gradient`, with zeros for weights that the loss does not reach."""
    gradients = tape.gradient(loss, weights, **kwargs)
    return [
        tf.zeros_like(w) if g is None else tf.convert_to_tensor(g)  # a gather's is sparse
        for g, w in zip(gradients, weights)
    ]


def forget(optimizer, weights):
    """Gives the optimizer of these weights the state of its first step; its learning rate stays."""
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(weights)
    for variable, start in zip(optimizer.variables, fresh.variables, strict=True):
        if variable is not optimizer.learning_rate:
            variable.assign(start)


def assign_all(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _loop(step, batches, length):
    """Runs a step on each of the batches, which come with a leading axis of this length."""

    def step_number(i):
        step(tf.nest.map_structure(lambda tensors: tensors[i], batches))
        return (i + 1,)

    tf.while_loop(lambda i: i < length, step_number, [0])


def _without_loss_scale(name, optimizer):
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if is_scaled or getattr(optimizer, "loss_scale_factor", None):
        raise ArgumentError(name, "expected one that does not scale the loss: bfloat16 needs none")
    return optimizer


def _check_steps(steps_per_epoch, data):
    if steps_per_epoch is not None:
        checks.integer("steps_per_epoch", steps_per_epoch, 1)
        if data.has_known_length:
            raise ArgumentError(
                "steps_per_epoch",
                "is for a tf.data.Dataset without end, as an epoch of any other begins with its "
                "first batch",
            )
    elif data.is_endless:
        raise ArgumentError("steps_per_epoch", "needed for x, a tf.data.Dataset without end")

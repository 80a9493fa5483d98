"""What Keras saves of a model in training, and what it would leave out."""

import keras


class SavesTraining:
    """For a `keras.Model`: its configuration, its optimizers and its random states are saved.

    The class names in `config_names` the constructor's arguments of plain types, and functions.
    """

    config_names = ()

    def get_config(self):
        return super().get_config() | {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "augmentation": keras.saving.serialize_keras_object(self.augmentation),
            "image_dtype": self.image_dtype,
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in self.config_names
            },
        }

    @classmethod
    def from_config(cls, config):
        image_dtype = config["image_dtype"]
        config = {
            name: keras.saving.deserialize_keras_object(value) if type(value) is dict else value
            for name, value in config.items()
            if name != "image_dtype"
        }
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

    def training_state(self):
        """All variables that training changes, optimizers and random states too; a list."""
        optimizers = [o for o in (self.optimizer, self.meta_optimizer) if o is not None]
        return self.variables + [v for optimizer in optimizers for v in optimizer.variables]

    def _random_states(self):
        """Seeds of dropout and augmentation: training state that Keras does not save by itself."""
        weights = set(map(id, self.weights))
        layers = [self.classifier, self.augmentation, *self.other_layers()]
        variables = [v for layer in layers for v in getattr(layer, "variables", [])]
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

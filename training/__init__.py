"""Keras' `compile`, `fit`, saving and `export` for a model that is trained in phases."""

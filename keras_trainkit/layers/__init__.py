"""Layers that Keras lacks."""

from keras_trainkit.layers.batch_statistics import refresh_batch_normalization
from keras_trainkit.layers.stochastic_depth import StochasticDepth, depth_rates

__all__ = ["StochasticDepth", "depth_rates", "refresh_batch_normalization"]

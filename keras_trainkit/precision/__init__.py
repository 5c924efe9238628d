"""Numbers of fewer bits: policies, and loss scaling that asks every replica."""

from keras_trainkit.precision.loss_scale import LossScaleOptimizer

__all__ = ["LossScaleOptimizer"]

"""Numbers of fewer bits: policies, and loss scaling that asks every replica."""

from keras_trainkit.precision.loss_scale import LossScaleOptimizer
from keras_trainkit.precision.policy import policy, supported

__all__ = ["LossScaleOptimizer", "policy", "supported"]

"""Normalization and activation in one, found by search, without a batch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.layers.positions import PerSample, beside_channels, mean_over_positions


@keras.saving.register_keras_serializable("keras_trainkit")
class EvoNormS0(PerSample):
    """Normalization and activation in one: `gamma * x * sigmoid(v * x) / sqrt(variance + epsilon) + beta`.

    The variance (divided by n) is that of a group of channels of one sample over its positions, as in group
    normalization; no mean is taken off. `v` is learned for each channel. It stands for a normalization and the
    activation after it, so put none after it. It needs no batch, and is the same in training and at inference. Liu et
    al. 2020, arXiv 2004.02967.

    Shapes: (batch, ..., channels, ...) to the same. A mask (batch, positions...) says which positions count. Computed
    in at least float32; returned in the layer's compute dtype.

    Args:
        groups: int; must divide the number of channels. The paper takes 32 (groups of channels, as Keras's
            `GroupNormalization` by default), which narrow nets do not have.
        axis: the channels' axis: -1, or 1 for channels first.
        epsilon: float above 0.
        **kwargs: initializers, regularizers and constraints of `beta` and `gamma`, named as in Keras's
            `BatchNormalization`; `name`, `dtype` and the like.

    Raises:
        ValueError: for an argument out of range, and when built for channels that `groups` does not divide.

    >>> import numpy as np
    >>> x = np.array([[[-1.0], [1.0]]], "float32")  # the variance is 1
    >>> np.round(np.array(EvoNormS0(groups=1)(x), "float64"), 3).ravel().tolist()  # -sigmoid(-1) and sigmoid(1)
    [-0.269, 0.731]
    """

    def __init__(self, groups: int = 32, axis: int = -1, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(axis=axis, **kwargs)
        self.groups = checks.integer("groups", groups, at_least=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)

    def build(self, input_shape: Any) -> None:
        """Makes `gamma`, `beta` and `v`, (channels,) each."""
        super().build(input_shape)
        channels = input_shape[self.axis]
        if channels % self.groups:
            raise ValueError(f"`groups` must divide the number of channels, {channels}. Received: groups={self.groups}")
        self.v = self.channel_weight("v", input_shape, "ones")

    def normalized(self, x: Any, axis: int, kept: Any) -> Any:
        """x sigmoid(v x) over the standard deviation of its group."""
        mean = self._over_group(mean_over_positions(x, axis, kept))
        apart = x - beside_channels(mean, x, axis)
        variance = self._over_group(mean_over_positions(ops.square(apart), axis, kept))
        gate = ops.sigmoid(beside_channels(self.v, x, axis) * x)
        return x * gate * beside_channels(ops.rsqrt(variance + self.epsilon), x, axis)

    def _over_group(self, values: Any) -> Any:
        """Each channel's value (batch, channels) replaced by the mean of its group."""
        channels = values.shape[-1]
        mean = ops.mean(ops.reshape(values, (-1, self.groups, channels // self.groups)), axis=-1)
        return ops.repeat(mean, channels // self.groups, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}

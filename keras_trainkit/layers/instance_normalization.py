"""Each channel of each sample normalized by itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, numerics
from keras_trainkit.layers.positions import beside_channels, channel_axis, kept_positions, mean_over_positions


@keras.saving.register_keras_serializable("keras_trainkit")
class InstanceNormalization(keras.layers.GroupNormalization):
    """Normalizes each channel of each sample to mean 0 and variance 1 over its positions.

    `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, with the mean and the variance (divided by n) over all axes
    but those of batch and channels: it keeps nothing of the contrast of a channel, and needs no batch. The same in
    training and at inference. Ulyanov et al. 2016, arXiv 1607.08022.

    Keras's `GroupNormalization(groups=-1)` computes the same and has the same weights; this class is that one with a
    name, a configuration that does not remember the number of channels, any `axis`, and masks: padding counts in
    Keras's statistics, and not in these, so that a sample's output does not depend on how far it was padded.

    Defaults differ: `epsilon` is 1e-3 here as in Keras's other normalizations, 1e-5 in PyTorch, where `gamma` and
    `beta` are left out unless asked for (here `scale=False, center=False`).

    Shapes: (batch, ..., channels, ...) with at least one axis of positions, to the same. A mask is (batch,
    positions...). Computed in at least float32; returned in the layer's compute dtype.

    Args:
        axis: the channels' axis: -1, or 1 for channels first.
        epsilon: float above 0, added to the variance.
        **kwargs: `center`, `scale`, initializers, regularizers and constraints of `beta` and `gamma` as in
            `keras.layers.GroupNormalization`; `name`, `dtype` and the like.

    Raises:
        ValueError: for an `epsilon` out of range, and when built for inputs without positions.

    >>> import numpy as np
    >>> x = np.array([[[1.0, 10.0], [3.0, 50.0]]], "float32")  # one sample, two positions, two channels
    >>> np.round(np.array(InstanceNormalization(epsilon=1e-6)(x)), 3).tolist()
    [[[-1.0, -1.0], [1.0, 1.0]]]
    """

    def __init__(self, axis: int = -1, epsilon: float = 1e-3, **kwargs: Any) -> None:
        axis, epsilon = checks.integer("axis", axis), checks.number("epsilon", epsilon, above=0)
        super().__init__(groups=-1, axis=axis, epsilon=epsilon, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Makes `gamma` and `beta`, (channels,) each, where they are wanted."""
        channel_axis(self.axis, input_shape, positions=1)
        super().build(input_shape)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """The normalized input."""
        x = numerics.widened(inputs)
        axis = self.axis % len(x.shape)
        kept = None if mask is None else kept_positions(mask, x, axis)
        apart = x - beside_channels(mean_over_positions(x, axis, kept), x, axis)
        variance = mean_over_positions(ops.square(apart), axis, kept)
        x = apart * beside_channels(ops.rsqrt(variance + self.epsilon), x, axis)
        if self.scale:
            x = x * beside_channels(self.gamma, x, axis)
        if self.center:
            x = x + beside_channels(self.beta, x, axis)
        return ops.cast(x, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        config = super().get_config()
        del config["groups"]
        return config

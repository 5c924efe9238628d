"""Normalization by the mean square of a channel of a sample, and the activation that goes with it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, numerics
from keras_trainkit.layers.positions import PerSample, beside_channels, channel_axis, mean_over_positions


@keras.saving.register_keras_serializable("keras_trainkit")
class FilterResponseNormalization(PerSample):
    """Divides each channel of each sample by the root of its mean square over the positions.

    `gamma * x / sqrt(nu + epsilon) + beta`, where `nu` is the mean of x squared over all axes but those of batch and
    channels. No mean is taken off, so a plain ReLU would not cut in the middle: follow it with `TLU`. It needs no
    batch, and is the same in training and at inference. Singh and Krishnan 2020, arXiv 1911.09737.

    Where a channel has few positions (fully connected layers have one, the last stage of a convolutional net on small
    images too), x / sqrt(nu) is little more than a sign. The paper then learns epsilon: `learned_epsilon=True` adds the
    absolute value of a weight for each channel, 1e-4 at the start. (The paper's text and its code differ in whether it
    is one for each layer; here it is one for each channel.)

    Shapes: (batch, ..., channels, ...) to the same. A mask (batch, positions...) says which positions count. Computed
    in at least float32; returned in the layer's compute dtype.

    Args:
        axis: the channels' axis: -1, or 1 for channels first.
        epsilon: float above 0.
        learned_epsilon: whether each channel adds a learned part to it.
        **kwargs: initializers, regularizers and constraints of `beta` and `gamma`, named as in Keras's
            `BatchNormalization`; `name`, `dtype` and the like.

    Raises:
        ValueError: for an `epsilon` out of range, and when built for an input without the channels' axis.

    >>> import numpy as np
    >>> x = np.array([[[3.0], [4.0], [0.0], [0.0]]], "float32")  # the mean square is 25 / 4
    >>> np.round(np.array(FilterResponseNormalization()(x), "float64"), 3).ravel().tolist()
    [1.2, 1.6, 0.0, 0.0]
    """

    def __init__(self, axis: int = -1, epsilon: float = 1e-6, learned_epsilon: bool = False, **kwargs: Any) -> None:
        super().__init__(axis=axis, **kwargs)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.learned_epsilon = checks.boolean("learned_epsilon", learned_epsilon)

    def build(self, input_shape: Any) -> None:
        """Makes `gamma`, `beta` and, where it is learned, `epsilon_weight`, (channels,) each."""
        super().build(input_shape)
        if self.learned_epsilon:
            start = keras.initializers.Constant(1e-4)
            self.epsilon_weight = self.channel_weight("epsilon_weight", input_shape, start)

    def normalized(self, x: Any, axis: int, kept: Any) -> Any:
        """x over the root of its mean square."""
        square = mean_over_positions(ops.square(x), axis, kept) + self.epsilon
        if self.learned_epsilon:
            square = square + ops.cast(ops.abs(self.epsilon_weight), x.dtype)
        return x * beside_channels(ops.rsqrt(square), x, axis)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "epsilon": self.epsilon, "learned_epsilon": self.learned_epsilon}


@keras.saving.register_keras_serializable("keras_trainkit")
class TLU(keras.layers.Layer):
    """Thresholded linear unit: the greater of x and a learned threshold `tau` for each channel.

    ReLU where tau is 0, as at the start. It belongs after `FilterResponseNormalization`. Singh and Krishnan 2020, arXiv
    1911.09737.

    Shapes: (batch, ..., channels, ...) to the same.

    Args:
        axis: the channels' axis: -1, or 1 for channels first.
        tau_initializer, tau_regularizer, tau_constraint: of the threshold.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: when built for an input without the channels' axis.

    >>> import numpy as np
    >>> np.array(TLU(tau_initializer="ones")(np.array([[-2.0, 3.0]], "float32"))).tolist()
    [[1.0, 3.0]]
    """

    def __init__(
        self,
        axis: int = -1,
        tau_initializer: Any = "zeros",
        tau_regularizer: Any = None,
        tau_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.axis = checks.integer("axis", axis)
        self.tau_initializer = keras.initializers.get(tau_initializer)
        self.tau_regularizer = keras.regularizers.get(tau_regularizer)
        self.tau_constraint = keras.constraints.get(tau_constraint)

    def build(self, input_shape: Any) -> None:
        """Makes `tau`, (channels,)."""
        axis = channel_axis(self.axis, input_shape)
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={axis: input_shape[axis]})
        self.tau = self.add_weight(
            name="tau",
            shape=(input_shape[axis],),
            initializer=self.tau_initializer,
            regularizer=self.tau_regularizer,
            constraint=self.tau_constraint,
            autocast=False,
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The greater of the input and the threshold."""
        x = numerics.widened(inputs)
        return ops.cast(ops.maximum(x, beside_channels(self.tau, x, self.axis % len(x.shape))), self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "tau_initializer": keras.initializers.serialize(self.tau_initializer),
            "tau_regularizer": keras.regularizers.serialize(self.tau_regularizer),
            "tau_constraint": keras.constraints.serialize(self.tau_constraint),
        }

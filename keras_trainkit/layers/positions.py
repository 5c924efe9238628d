"""Statistics of a tensor over its positions, for normalizations of any rank, channel axis and mask.

An input has the shape (batch, ..., channels, ...): one axis, `axis`, counts channels, and all others but the first
count positions: an image has two of them, a sequence one, a vector none.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, numerics


def channel_axis(axis: int, input_shape: Any, positions: int = 0) -> int:
    """`axis` counted from the front, for inputs with at least so many axes of positions.

    Raises:
        ValueError: if the input has fewer axes, if `axis` is none of them or the batch's, or if the number of channels
            is not known.
    """
    rank = len(input_shape)
    if rank < 2 + positions:
        raise ValueError(
            f"the input must have at least {2 + positions} axes: batch, channels"
            f"{' and positions' if positions else ''}. Received: input_shape={tuple(input_shape)}"
        )
    if not -rank < axis < rank or axis % rank == 0:
        raise ValueError(
            f"`axis` must be one of the {rank} axes of the input, and not the first. "
            f"Received: axis={axis}, input_shape={tuple(input_shape)}"
        )
    if input_shape[axis] is None:
        raise ValueError(f"the channels, axis {axis}, must be known. Received: input_shape={tuple(input_shape)}")
    return axis % rank


def kept_positions(mask: Any, x: Any, axis: int) -> Any:
    """A mask (batch, positions...) as one that broadcasts to `x`; it may lack the last axes of positions.

    Raises:
        ValueError: if the mask has more axes than batch and positions.
    """
    rank = len(x.shape)
    if len(mask.shape) > rank - 1:
        raise ValueError(
            "a mask must have the axes of batch and positions, without that of the channels. "
            f"Received: mask.shape={mask.shape}, inputs.shape={x.shape}"
        )
    mask = ops.cast(mask, "bool")
    while len(mask.shape) < rank - 1:
        mask = ops.expand_dims(mask, -1)
    return ops.expand_dims(mask, axis)


def sum_over_positions(x: Any, axis: int) -> Any:
    """The sums (batch, channels) of `x` over its positions."""
    positions = [i for i in range(1, len(x.shape)) if i != axis]
    return ops.sum(x, axis=positions) if positions else x


def mean_over_positions(x: Any, axis: int, kept: Any = None) -> Any:
    """The means (batch, channels) of `x` over its positions, or over those in `kept`; 0 where there are none."""
    if kept is None:
        positions = [i for i in range(1, len(x.shape)) if i != axis]
        return ops.mean(x, axis=positions) if positions else x
    # Chosen before the sum, because what stands in padding may be infinite.
    total = sum_over_positions(ops.where(kept, x, ops.zeros_like(x)), axis)
    count = sum_over_positions(ops.broadcast_to(ops.cast(kept, x.dtype), ops.shape(x)), axis)
    return total / ops.maximum(count, 1.0)


def beside_channels(values: Any, x: Any, axis: int) -> Any:
    """Values (channels,) or (batch, channels) in a shape, and the dtype, in which they broadcast to `x`."""
    shape = [1] * len(x.shape)
    shape[axis] = x.shape[axis]
    if len(values.shape) == 2:
        shape[0] = -1
    return ops.cast(ops.reshape(values, shape), x.dtype)


class PerSample(keras.layers.Layer):
    """What normalizations by sample share: `gamma` and `beta` by channel, masks, and at least float32 inside.

    A subclass defines `normalized`.

    Args:
        axis: the channels' axis, any but the first.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint:
            of the two weights, as in Keras's `BatchNormalization`.
        **kwargs: `name`, `dtype` and the like.
    """

    def __init__(
        self,
        axis: int = -1,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.axis = checks.integer("axis", axis)
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)

    def build(self, input_shape: Any) -> None:
        """Makes `gamma` and `beta`, (channels,) each."""
        axis = channel_axis(self.axis, input_shape)
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={axis: input_shape[axis]})
        self.gamma = self.channel_weight(
            "gamma", input_shape, self.gamma_initializer, self.gamma_regularizer, self.gamma_constraint
        )
        self.beta = self.channel_weight(
            "beta", input_shape, self.beta_initializer, self.beta_regularizer, self.beta_constraint
        )
        self.built = True

    def channel_weight(
        self, name: str, input_shape: Any, initializer: Any, regularizer: Any = None, constraint: Any = None
    ) -> Any:
        """A weight with one number for each channel, read in its own dtype."""
        return self.add_weight(
            name=name,
            shape=(input_shape[self.axis],),
            initializer=initializer,
            regularizer=regularizer,
            constraint=constraint,
            autocast=False,
        )

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """The normalized input, scaled by `gamma` and shifted by `beta`."""
        x = numerics.widened(inputs)
        axis = self.axis % len(x.shape)
        kept = None if mask is None else kept_positions(mask, x, axis)
        gamma, beta = beside_channels(self.gamma, x, axis), beside_channels(self.beta, x, axis)
        return ops.cast(self.normalized(x, axis, kept) * gamma + beta, self.compute_dtype)

    def normalized(self, x: Any, axis: int, kept: Any) -> Any:
        """`x` without `gamma` and `beta`; `kept` says which positions count, all if it is None."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
        }

"""A learned factor for each channel of a residual branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import widened


@keras.saving.register_keras_serializable("keras_trainkit")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel of a residual branch by a learned number that begins small.

    A deep residual net then begins near the identity, and each branch grows as it proves useful: transformers train
    beyond 24 layers, ConvNeXt uses it throughout. Put it behind a branch, before the addition (and before
    `StochasticDepth`). Touvron et al. 2021, arXiv 2103.17239, who take 0.1 up to 18 layers, 1e-5 up to 24 and 1e-6 for
    deeper nets; timm's `LayerScale` begins with 1e-5, ConvNeXt with 1e-6.

    The product is computed in at least float32: in float16 a factor of 1e-6 has four bits. Factors of 1e-5 are what
    weight decay should leave alone; optimizers whose decay is for matrices only do so by their rank.

    Args:
        initial_value: what all factors begin with; any finite number.
        axis: the axis, or list of axes, with a factor for each position; 1 for channels_first.
        regularizer: for the factors, as in Keras.
        constraint: for the factors, as in Keras.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: a floating tensor of any rank from 2 on; the sizes of `axis` are known.

    Returns:
        A tensor of the input's shape in the compute dtype. A mask passes through.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when built, for an axis that is not
            there, or is the batch's.

    >>> import numpy as np
    >>> scale = LayerScale(0.1)
    >>> np.array(scale(np.ones((1, 2), "float32"))).tolist()
    [[0.10000000149011612, 0.10000000149011612]]
    """

    def __init__(
        self,
        initial_value: float = 1e-5,
        axis: int | Sequence[int] = -1,
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initial_value = checks.number("initial_value", initial_value)
        several = isinstance(axis, (list, tuple))
        self.axis = [checks.integer("axis", one) for one in axis] if several else checks.integer("axis", axis)  # type: ignore
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Makes the factors, `gamma`, of the sizes of `axis`, in their order in the input."""
        rank = len(input_shape)
        given = self.axis if isinstance(self.axis, list) else [self.axis]
        axes = sorted({axis % rank for axis in given if -rank <= axis < rank})
        if len(axes) != len(given) or 0 in axes or any(input_shape[axis] is None for axis in axes):
            raise ValueError(
                "`axis` must name different axes of the input, behind the batch's and of known size. "
                f"Received: axis={self.axis}, input_shape={tuple(input_shape)}"
            )
        self._broadcast = [input_shape[axis] if axis in axes else 1 for axis in range(rank)]
        self.gamma = self.add_weight(
            shape=[input_shape[axis] for axis in axes],
            initializer=keras.initializers.Constant(self.initial_value),
            regularizer=self.regularizer,
            constraint=self.constraint,
            autocast=False,
            name="gamma",
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The inputs times the factors."""
        wide = widened(inputs)
        factors = ops.cast(ops.reshape(self.gamma, self._broadcast), wide.dtype)
        return ops.cast(wide * factors, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {
            **super().get_config(),
            "initial_value": self.initial_value,
            "axis": self.axis,
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }

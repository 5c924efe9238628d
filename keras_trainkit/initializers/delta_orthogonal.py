"""Convolutions that begin as an orthogonal map of the channels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.initializers import taps


@keras.saving.register_keras_serializable("keras_trainkit")
class DeltaOrthogonal(keras.initializers.Orthogonal):
    """An orthogonal matrix of the channels at the central tap of a convolution kernel, zero elsewhere.

    With stride 1 the convolution then keeps the norm of its input at each position, and so does a stack of any depth:
    Xiao et al. trained plain convolutional nets of 10,000 layers with it, with tanh and a `gain` near the edge of
    chaos. Keras's `Orthogonal` makes the flattened kernel orthogonal, which keeps no norm of images.

    The kernel (..., inputs, outputs) of a Conv1D, Conv2D or Conv3D must not have more inputs than outputs: no linear
    map into fewer dimensions keeps all norms. For one with padding "causal" the map is the same, delayed by half the
    kernel.

    Reference: Xiao et al. 2018, arXiv 1806.05393, section 3; values as in TensorFlow 1's `ConvolutionDeltaOrthogonal`
    in distribution.

    Args:
        gain: what norms are multiplied by, above 0.
        groups: the `groups` of the layer; each gets an orthogonal matrix of its own.
        seed: an int or a `keras.random.SeedGenerator`; as in Keras, an int gives the same values at every call.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for a shape of another
            rank, or one with more inputs than outputs in a group.

    >>> import keras
    >>> kernel = DeltaOrthogonal(seed=1)((3, 3, 2, 4))
    >>> matrix = kernel[1, 1]
    >>> bool(keras.ops.max(abs(matrix @ keras.ops.transpose(matrix) - keras.ops.eye(2))) < 1e-6)
    True
    >>> float(keras.ops.sum(abs(kernel[0])))
    0.0
    """

    def __init__(self, gain: float = 1.0, groups: int = 1, seed: Any = None) -> None:
        super().__init__(gain=checks.number("gain", gain, above=0), seed=seed)
        self.groups = checks.integer("groups", groups, at_least=1)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of `shape` in `dtype` (Keras's `floatx` where None); computed in at least float32, then cast."""
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        spatial, inputs, outputs = taps.dimensions(shape, "DeltaOrthogonal")
        each = taps.in_groups("groups", self.groups, outputs)
        if inputs > each:
            raise ValueError(
                "DeltaOrthogonal needs at least as many outputs as inputs in each group: no map into fewer channels "
                f"keeps norms. Received: shape={tuple(shape)}, groups={self.groups}"
            )
        draws = keras.random.normal((self.groups, each, inputs), dtype=wide_dtype(dtype), seed=self.seed)
        columns, triangle = ops.qr(draws)
        # With the signs of R's diagonal the matrices are uniform over all orthogonal ones.
        signs = ops.sign(ops.diagonal(triangle, axis1=-2, axis2=-1))
        columns = columns * ops.expand_dims(signs, -2)
        matrix = ops.reshape(ops.transpose(columns, (2, 0, 1)), (inputs, outputs))
        return ops.cast(taps.at_centre(self.gain * matrix, spatial), dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "groups": self.groups}

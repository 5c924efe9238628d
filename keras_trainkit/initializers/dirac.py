"""Convolutions that begin as the identity."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.initializers import taps


@keras.saving.register_keras_serializable("keras_trainkit")
class Dirac(keras.initializers.Initializer):
    """The identity for convolutions: each output channel begins as the input channel of the same number.

    Kernels are (..., inputs, outputs), as in Conv1D, Conv2D and Conv3D; with padding "same" and stride 1 the output
    equals the input in as many channels as both have, further output channels are zero. It is what torch's `dirac_`
    gives, `groups` included, and what `keras.initializers.Identity` is for Dense. A square kernel of a transposed
    convolution of stride 1 with an odd number of taps works, too. With padding "causal" the output is the input,
    delayed by half the kernel.

    Args:
        groups: the `groups` of the layer; or `"depthwise"` for a kernel (..., channels, multiplier), the
            `depthwise_initializer` of depthwise and separable convolutions, where the first of the outputs of
            each channel is the channel.
        gain: what the input is multiplied by.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for a shape of another
            rank, or whose outputs the groups do not divide.

    >>> import keras, numpy as np
    >>> layer = keras.layers.Conv1D(2, 3, padding="same", kernel_initializer=Dirac())
    >>> np.array(layer(np.array([[[1.0, 2.0], [3.0, 4.0]]]))).tolist()
    [[[1.0, 2.0], [3.0, 4.0]]]
    """

    def __init__(self, groups: int | str = 1, gain: float = 1.0) -> None:
        self.groups = groups if groups == "depthwise" else checks.integer("groups", groups, at_least=1)
        self.gain = checks.number("gain", gain)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of `shape` in `dtype` (Keras's `floatx` where None)."""
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        spatial, inputs, outputs = taps.dimensions(shape, "Dirac")
        if self.groups == "depthwise":
            matrix = np.zeros((inputs, outputs))
            matrix[:, 0] = 1
        else:
            each = taps.in_groups("groups", int(self.groups), outputs)
            matrix = np.tile(np.eye(inputs, each), int(self.groups))
        return taps.at_centre(ops.convert_to_tensor(self.gain * matrix, dtype), spatial)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"groups": self.groups, "gain": self.gain}

"""A start of zeros and ones, without randomness."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.initializers import taps


@keras.saving.register_keras_serializable("keras_trainkit")
class ZerO(keras.initializers.Initializer):
    """The identity as far as the sizes allow, and a Hadamard matrix where a layer widens: no randomness.

    A Dense kernel (inputs, outputs) is the identity, with outputs cut off where there are fewer than inputs. With more
    outputs than inputs it is the corner of a Hadamard matrix of the next power of two, over the root of its size:
    every output then gets a mix of all inputs, where a partial identity would leave the added units zero and the rank
    of what they learn at that of the inputs (the paper's section 3). Convolution kernels (..., inputs, outputs)
    have that matrix at the central tap. Signals are neither random nor shrinking, in residual nets of any depth; the
    last layer of each residual branch, and a classifier, begin with `"zeros"` in the paper.

    The paper's Algorithm 1 scales the Hadamard matrix by 2^(-(m - 1) / 2), the authors' code by 2^(-m / 2), as here:
    with that the matrix keeps norms where the outputs are a power of two. `gain=2 ** 0.5` gives the paper's, for the
    layers that widen.

    Reference: Zhao et al. 2022, arXiv 2110.12661.

    Args:
        gain: what the values are multiplied by, above 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for a shape that is no
            matrix and no kernel of a 1D, 2D or 3D convolution.

    >>> keras.ops.convert_to_numpy(ZerO()((3, 2))).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    >>> keras.ops.convert_to_numpy(ZerO()((2, 4))).tolist()
    [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = checks.number("gain", gain, above=0)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of `shape` in `dtype` (Keras's `floatx` where None)."""
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        if len(shape) == 2:
            return ops.convert_to_tensor(self.gain * _matrix(int(shape[0]), int(shape[1])), dtype)
        spatial, inputs, outputs = taps.dimensions(shape, "ZerO, but for matrices,")
        return taps.at_centre(ops.convert_to_tensor(self.gain * _matrix(inputs, outputs), dtype), spatial)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"gain": self.gain}


def _matrix(inputs: int, outputs: int) -> np.ndarray:
    if outputs <= inputs:
        return np.eye(inputs, outputs)
    power = (outputs - 1).bit_length()
    # Sylvester's Hadamard matrix: its sign is the parity of the bits that row and column number have in common.
    common = np.arange(inputs)[:, None] & np.arange(outputs)
    odd = np.zeros_like(common)
    for bit in range(power):
        odd ^= common >> bit & 1
    return (1.0 - 2.0 * odd) / 2 ** (power / 2)

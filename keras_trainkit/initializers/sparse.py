"""Units that begin with few connections."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import wide_dtype


@keras.saving.register_keras_serializable("keras_trainkit")
class Sparse(keras.initializers.RandomNormal):
    """Normal values, of which each unit keeps the same number and all others are zero.

    In every column of a kernel (..., units), that is among all that enters one unit or filter,
    ceil(sparsity * inputs) weights, chosen at random, are zero: the count is exact. The rest is normal with mean 0.
    Units then differ from each other more than with dense weights, and saturate less: Martens 2010 gave each unit 15
    inputs, which is `sparsity=1 - 15 / inputs`.

    The rule is the same as torch's `sparse_`, but that goes column by column through a weight of shape
    (outputs, inputs), and so thins out what leaves each input instead; for the same values on a Dense layer
    transpose, or give torch the transposed weight.

    Reference: Martens 2010, "Deep learning via Hessian-free optimization", section 5.

    Args:
        sparsity: the share of zeros, from 0 to below 1.
        stddev: standard deviation of the other weights, above 0; torch's default is 0.01, Martens's is 1.
        seed: an int or a `keras.random.SeedGenerator`; as in Keras, an int gives the same values at every call.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for a shape with fewer
            than two axes.

    >>> kernel = Sparse(0.7, seed=1)((10, 4))
    >>> keras.ops.convert_to_numpy(keras.ops.sum(kernel == 0, axis=0)).tolist()
    [7, 7, 7, 7]
    """

    def __init__(self, sparsity: float, stddev: float = 0.01, seed: Any = None) -> None:
        self.sparsity = checks.number("sparsity", sparsity, at_least=0, below=1)
        super().__init__(mean=0.0, stddev=checks.number("stddev", stddev, above=0), seed=seed)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of `shape` in `dtype` (Keras's `floatx` where None); drawn in at least float32, then cast."""
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        if len(shape) < 2:
            raise ValueError(f"Sparse is for kernels with at least two axes. Received: shape={tuple(shape)}")
        inputs, units = math.prod(int(size) for size in shape[:-1]), int(shape[-1])
        # 0.85 * 100 must be 85 whatever the last bit of 0.85 is.
        zeros = math.ceil(round(self.sparsity * inputs, 6))
        # One draw for both: two with the same seed would not be independent.
        values, order = super().__call__((2, inputs, units), dtype=wide_dtype(dtype))
        ranks = ops.argsort(ops.argsort(order, axis=0), axis=0)
        return ops.cast(ops.reshape(ops.where(ranks < zeros, 0.0, values), shape), dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        config = super().get_config()
        return {"sparsity": self.sparsity, "stddev": config["stddev"], "seed": config["seed"]}

"""Smaller output projections for deep residual networks."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.initializers.seeding import with_seed


@keras.saving.register_keras_serializable("keras_trainkit")
class ScaledResidual(keras.initializers.Initializer):
    """Another initializer's values over sqrt(branches depth), for the last projection of each residual branch.

    A residual stream adds up `branches` times `depth` branches. With this scale on the projection that writes each
    branch into the stream, the variance of the stream does not grow with the depth. Use
    it for the output projection of attention and of the MLP in a transformer (two branches per block, the default) or
    the last convolution of a residual block (`branches=1`); the other layers keep their usual initializer.

    Radford et al. 2019 (the GPT-2 report, section 2.3) divide by the root of the number of residual layers, which
    their code counts as two per block; the base there is a normal distribution with standard deviation 0.02, the
    default here. The paper gives no more detail, and some re-implementations leave the scaling out.

    Args:
        depth: residual blocks in the model, at least 1.
        initializer: what to scale: a Keras initializer, its name, or None for `RandomNormal(stddev=0.02)`.
        branches: residual branches per block, at least 1.
        seed: an int or a `keras.random.SeedGenerator` for the default or named initializer; as in Keras, an int gives
            the same values at every call. An initializer given as an object brings its own seed.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range, an unknown initializer, or a `seed`
            that the initializer cannot take.

    >>> import keras
    >>> projection = keras.layers.Dense(256, kernel_initializer=ScaledResidual(depth=12, seed=1))
    >>> projection.build((None, 256))
    >>> round(float(keras.ops.std(projection.kernel)), 4)  # 0.02 / sqrt(24) = 0.0041
    0.0041
    """

    def __init__(self, depth: int, initializer: Any = None, branches: int = 2, seed: Any = None) -> None:
        self.depth = checks.integer("depth", depth, at_least=1)
        self.branches = checks.integer("branches", branches, at_least=1)
        self.initializer = (
            keras.initializers.RandomNormal(stddev=0.02, seed=seed)
            if initializer is None
            else with_seed(initializer, seed)
        )

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of `shape` in `dtype` (Keras's `floatx` where None); scaled in at least float32, then cast."""
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        values = self.initializer(shape, dtype=wide_dtype(dtype))
        return ops.cast(values / math.sqrt(self.branches * self.depth), dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name; the seed is inside the initializer's own configuration."""
        return {
            "depth": self.depth,
            "initializer": keras.initializers.serialize(self.initializer),
            "branches": self.branches,
        }

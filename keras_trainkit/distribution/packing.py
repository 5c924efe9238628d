"""The results of a step in one vector, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


class Packing:
    """What a step returns, as an array of shape (1, numbers): one exchange between workers instead of one for each.

    The structure is learnt while the step is traced, and used when its results come back.
    """

    def __init__(self) -> None:
        self._template: Any = None
        self._kinds: list[tuple[tuple[int, ...], str]] = []

    def packed(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`step` with its results in one array."""

        def call(data: Any) -> Any:
            results = step(data)
            leaves = [ops.convert_to_tensor(leaf) for leaf in keras.tree.flatten(results)]
            self._template = keras.tree.map_structure(lambda _: 0, results)
            self._kinds = [(tuple(leaf.shape), keras.backend.standardize_dtype(leaf.dtype)) for leaf in leaves]
            wide = "float64" if "float64" in {kind for _, kind in self._kinds} else "float32"
            flat = [ops.reshape(ops.cast(leaf, wide), (-1,)) for leaf in leaves]
            return ops.expand_dims(ops.concatenate(flat) if flat else ops.zeros((0,)), 0)

        return call

    def unpacked(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`function`, whose step is packed, with the results that the step had."""

        def call(iterator: Any) -> Any:
            values, leaves, start = function(iterator), [], 0
            for shape, kind in self._kinds:
                size = math.prod(shape)
                leaf = ops.reshape(values[start : start + size], shape)
                leaves.append(ops.cast(leaf, kind) if kind.startswith(("float", "bfloat")) else leaf)
                start += size
            return keras.tree.pack_sequence_as(self._template, leaves)

        return call


def one_at_a_time(model: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function`, which runs one step for each call, made to run as many as the model's `steps_per_execution` says.

    Keras puts the steps into a loop inside the graph, and TensorFlow cannot run exchanges between workers in there.
    """
    import tensorflow as tf

    def call(iterator: Any) -> Any:
        steps, results = model.steps_per_execution, None
        model.steps_per_execution = 1  # read while the step is traced
        try:
            for _ in range(steps):
                try:
                    results = function(iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if results is None:
                        raise
                    break
        finally:
            model.steps_per_execution = steps
        return results

    return call

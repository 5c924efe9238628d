"""Which axes of a variable a layer sums over and which it puts out, and how far initializers spread their values."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_trainkit.core import backend

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_BY_CHANNEL = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_NORMAL = (keras.initializers.RandomNormal, keras.initializers.TruncatedNormal)
_TRUNCATED = 0.87962566103423978  # the standard deviation of a normal distribution cut at two of its own


def owners(model: Any) -> dict[int, Any]:
    """The innermost layer of each trainable variable, by the variable's id."""
    found = {}
    for layer in backend.flat_layers(model):  # the outer ones come first
        found.update({id(variable): layer for variable in layer.trainable_variables})
    return found


def queries(model: Any) -> set[int]:
    """The ids of the variables that make the queries of Keras's attention layers."""
    attention = [layer for layer in backend.flat_layers(model) if isinstance(layer, _ATTENTION)]
    projections = [inner for layer in attention for inner in backend.sublayers(layer) if inner.name == "query"]
    return {id(variable) for layer in projections for variable in layer.trainable_variables}


def axes(layer: Any, name: str, rank: int) -> tuple[list[int], list[int]]:
    """The axes of a variable that its layer sums over, and those that stay in its output.

    Axes of neither kind are those of a vocabulary, of a convolution's window, and of what is computed once for each.
    What is no matrix (biases, factors and shifts of normalizations) puts out all of its axes.
    """
    every = list(range(rank))
    if rank < 2 or name.endswith("bias"):
        return [], every
    if isinstance(layer, keras.layers.Embedding) and name == "embeddings":
        return [], [1]
    if isinstance(layer, _BY_CHANNEL) or name == "depthwise_kernel":
        return [], every[-2:]
    if isinstance(layer, _TRANSPOSED):
        return [rank - 1], [rank - 2]
    if isinstance(layer, keras.layers.EinsumDense) and name == "kernel":
        return _einsum_axes(layer.equation)
    return every[:-1], every[-1:]


def initializer_of(layer: Any, name: str) -> Any:
    """The initializer that a layer keeps for its variable of this name, or None."""
    part = "depthwise" if isinstance(layer, _BY_CHANNEL) and name == "kernel" else name
    for attribute in (part, part.removesuffix("_kernel")):
        found = getattr(layer, f"{attribute}_initializer", None)
        if found is not None:
            return found
    return None


def spread(initializer: Any, shape: tuple[int, ...], axes: tuple[list[int], list[int]] | None = None) -> float | None:
    """The standard deviation of what an initializer of Keras draws for this shape; None where it is not known.

    `axes` are those summed over and those put out, where the layer tells its initializer; some Keras layers do.

    >>> round(spread(keras.initializers.HeNormal(), (50, 10)), 6)
    0.2
    >>> round(spread(keras.initializers.HeNormal(), (5, 10, 10), ([0, 1], [2])), 6)
    0.2
    """
    if isinstance(initializer, keras.initializers.VarianceScaling):
        fan_in, fan_out = _fans(initializer, shape, axes)
        fan = {"fan_in": fan_in, "fan_out": fan_out}.get(initializer.mode, (fan_in + fan_out) / 2)
        return math.sqrt(initializer.scale / max(1.0, fan))
    if isinstance(initializer, keras.initializers.TruncatedNormal):
        return abs(initializer.stddev) * _TRUNCATED
    if isinstance(initializer, keras.initializers.RandomNormal):
        return abs(initializer.stddev)
    if isinstance(initializer, keras.initializers.RandomUniform):
        return (initializer.maxval - initializer.minval) / math.sqrt(12)
    if isinstance(initializer, keras.initializers.OrthogonalInitializer):
        return abs(initializer.gain) / math.sqrt(max(math.prod(shape[:-1]), shape[-1]))
    return None


def is_constant(initializer: Any) -> bool:
    """Whether every element begins with the same value, whatever the shape."""
    return isinstance(initializer, (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant))


def center(initializer: Any) -> float:
    """The mean of what an initializer of Keras draws; 0 where it is not known."""
    if isinstance(initializer, _NORMAL):
        return float(initializer.mean)
    if isinstance(initializer, keras.initializers.RandomUniform):
        return (initializer.maxval + initializer.minval) / 2
    if isinstance(initializer, keras.initializers.Constant):
        value = keras.ops.convert_to_numpy(initializer.value)
        return float(abs(value).max())
    return 1.0 if isinstance(initializer, keras.initializers.Ones) else 0.0


def _fans(initializer: Any, shape: tuple[int, ...], axes: tuple[list[int], list[int]] | None) -> tuple[float, float]:
    """The fans as Keras's initializers count them: all axes but the last two are a window, unless they are told."""
    own = getattr(initializer, "input_axes", None), getattr(initializer, "output_axes", None)
    summed, out = (axes or own) if None in own else own
    if summed is not None and out is not None:
        return math.prod(shape[axis] for axis in summed), math.prod(shape[axis] for axis in out)
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    window = math.prod(shape[:-2])
    return shape[-2] * window, shape[-1] * window


def _einsum_axes(equation: str) -> tuple[list[int], list[int]]:
    inputs, rest = equation.replace(" ", "").split(",")
    kernel, outputs = rest.split("->")
    summed = [axis for axis, letter in enumerate(kernel) if letter in inputs and letter not in outputs]
    return summed, [axis for axis, letter in enumerate(kernel) if letter in outputs and letter not in inputs]

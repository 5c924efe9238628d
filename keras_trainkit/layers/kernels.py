"""Dense and convolutional layers whose kernels differ from sample to sample."""

from __future__ import annotations

import itertools
import string
from typing import Any

import keras
from keras import ops

PER_SAMPLE = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


def kind_of(layer: Any) -> type | None:
    """The class of Keras that computes for the layer; None for another, or one that computes otherwise."""
    for kind in PER_SAMPLE:
        if isinstance(layer, kind) and type(layer).call is kind.call:
            return kind
    return None


def with_kernels(layer: Any, inputs: Any, kernels: Any) -> Any:
    """What the layer makes of `inputs` (batch, ...) with a kernel for each sample, before bias and activation."""
    kind = kind_of(layer)
    if kind is keras.layers.Dense:
        return _einsum("...x,xy->...y", inputs, kernels)
    if kind is keras.layers.EinsumDense:
        return _einsum(layer.equation, inputs, kernels)
    return _convolution(layer, inputs, kernels)


def beside(layer: Any, biases: Any, rank: int) -> Any:
    """Biases (batch, ...) in a shape that adds to the layer's output of `rank` axes."""
    own = ops.shape(biases)[1:]
    ones = [1] * (rank - 1 - len(own))
    first = getattr(layer, "data_format", None) == "channels_first"
    return ops.reshape(biases, (ops.shape(biases)[0], *own, *ones) if first else (ops.shape(biases)[0], *ones, *own))


def sample_equation(equation: str, rank: int) -> str:
    """The equation of an `EinsumDense` for inputs of `rank` axes, with the batch's letter put before the kernel's.

    >>> sample_equation("...x,xy->...y", 3)
    'abx,axy->aby'
    """
    left, result = equation.replace(" ", "").split("->")
    given, kernel = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    dots = "".join(free[: rank - len(given.replace("...", ""))]) if "..." in given else ""
    given, result = given.replace("...", dots), result.replace("...", dots)
    return f"{given},{given[0]}{kernel}->{result}"


def check_equation(equation: str) -> None:
    """Raises where the first axis of an `EinsumDense` is not the batch's alone.

    Raises:
        ValueError: where it is summed over, moved, or the kernel's, too.
    """
    left, result = equation.replace(" ", "").split("->")
    given, kernel = left.split(",")
    if result[:1] != given[0] or given[0] in kernel.replace("...", ""):
        raise ValueError(
            f"`equation` must keep its first axis, the batch's, for a kernel per sample. Received: {equation!r}"
        )


def _einsum(equation: str, inputs: Any, kernels: Any) -> Any:
    return ops.einsum(sample_equation(equation, len(inputs.shape)), inputs, kernels)


def _convolution(layer: Any, inputs: Any, kernels: Any) -> Any:
    """Patches times kernels: no backend has a convolution with a kernel per sample, nor its gradient on processors."""
    first = layer.data_format == "channels_first"
    x = ops.moveaxis(inputs, 1, -1) if first else inputs
    batch, *sizes, channels = ops.shape(x)
    around, steps = [], []
    for size, length, stride, dilation in zip(
        sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
    ):
        span = (length - 1) * dilation + 1
        before, behind = _padding(layer.padding, size, span, stride)
        around.append([before, behind])
        steps.append((size + before + behind - span) // stride + 1)
    x = ops.pad(x, [[0, 0], *around, [0, 0]])
    pieces = []
    for offsets in itertools.product(*map(range, layer.kernel_size)):
        cuts = [
            slice(offset * dilation, offset * dilation + (count - 1) * stride + 1, stride)
            for offset, dilation, count, stride in zip(offsets, layer.dilation_rate, steps, layer.strides, strict=True)
        ]
        pieces.append(x[(slice(None), *cuts)])
    groups, number = layer.groups, len(pieces)
    patches = ops.reshape(ops.stack(pieces, axis=-2), (batch, -1, number, groups, channels // groups))
    split = (batch, number, channels // groups, groups, layer.filters // groups)
    out = ops.einsum("npkgc,nkcgf->npgf", patches, ops.reshape(kernels, split))
    out = ops.reshape(out, (batch, *steps, layer.filters))
    return ops.moveaxis(out, -1, 1) if first else out


def _padding(padding: str, size: Any, span: int, stride: int) -> tuple[Any, Any]:
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return span - 1, 0
    missing = (-(-size // stride) - 1) * stride + span - size if stride > 1 else span - 1
    missing = max(missing, 0) if isinstance(missing, int) else ops.maximum(missing, 0)
    return missing // 2, missing - missing // 2

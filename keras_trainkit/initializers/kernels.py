"""What is input and what is output in the kernels of Keras's linear layers."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend

_K = keras.layers
_CONVOLUTIONS = (_K.Conv1D, _K.Conv2D, _K.Conv3D)
_TRANSPOSED = (_K.Conv1DTranspose, _K.Conv2DTranspose, _K.Conv3DTranspose)
_DEPTHWISE = (_K.DepthwiseConv1D, _K.DepthwiseConv2D)
_SEPARABLE = (_K.SeparableConv1D, _K.SeparableConv2D)

ATTENTION = (_K.MultiHeadAttention, _K.GroupQueryAttention)
NORMALIZATIONS = (_K.BatchNormalization, _K.LayerNormalization, _K.GroupNormalization) + (
    (_K.RMSNormalization,) if hasattr(_K, "RMSNormalization") else ()
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as a stack of matrices (inputs, outputs), each of which maps on its own.

    Attributes:
        layer: whose it is.
        variable: the kernel.
        split: the kernel's shape, groups apart.
        stack: axes of `split` that number the matrices: groups, the channels of depthwise convolutions.
        inputs: axes that are summed over.
        outputs: axes that the output has.
        fan_in: how many numbers enter one output.
    """

    layer: Any
    variable: Any
    split: list[int]
    stack: list[int]
    inputs: list[int]
    outputs: list[int]
    fan_in: float

    @property
    def path(self) -> str:
        """The variable's."""
        return self.variable.path

    @property
    def fan_out(self) -> int:
        """The outputs of one matrix."""
        return self._sizes()[2]

    def assign_normal(self, stddev: float, generator: np.random.Generator) -> None:
        """Draws normal values."""
        self.variable.assign(generator.normal(0.0, stddev, self.variable.shape))

    def assign_uniform(self, stddev: float, generator: np.random.Generator) -> None:
        """Draws uniform values with this standard deviation."""
        bound = math.sqrt(3) * stddev
        self.variable.assign(generator.uniform(-bound, bound, self.variable.shape))

    def assign_orthonormal(self, generator: np.random.Generator) -> None:
        """Draws matrices with orthonormal columns, or orthonormal rows where there are more columns than rows."""
        stack, inputs, outputs = self._sizes()
        tall = generator.normal(size=(stack, max(inputs, outputs), min(inputs, outputs)))
        columns, triangle = np.linalg.qr(tall)
        columns = columns * np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
        self.variable.assign(self._as_kernel(columns if inputs >= outputs else columns.swapaxes(1, 2)))

    def _sizes(self) -> tuple[int, int, int]:
        stack, inputs, outputs = (math.prod(self.split[a] for a in x) for x in (self.stack, self.inputs, self.outputs))
        return stack, inputs, outputs

    def _as_kernel(self, matrices: np.ndarray) -> np.ndarray:
        axes = [*self.stack, *self.inputs, *self.outputs]
        apart = matrices.reshape([self.split[axis] for axis in axes])
        return apart.transpose(np.argsort(axes)).reshape(tuple(self.variable.shape))


def kernels(layer: Any) -> list[Kernel]:
    """The kernels of a built linear layer in the order of their use; none of frozen, quantized and other layers."""
    if not layer.built:
        return []
    found = [kernel for name, make in _makers(layer) if (kernel := _kernel(layer, name, make)) is not None]
    return found


def layers_in_order(layer: Any) -> list[Any]:
    """The layer and all inside of it, once each, in the order of a functional model's computation or of their making.

    Keras's own flat list has what lies inside of layers backwards.
    """
    found: dict[int, Any] = {}

    def walk(one: Any) -> None:
        if id(one) not in found:
            found[id(one)] = one
            for inner in backend.sublayers(one):
                walk(inner)

    walk(layer)
    return list(found.values())


def model_kernels(model: Any) -> list[Kernel]:
    """Those of all layers of a model, at any depth, in the order of `layers_in_order`."""
    return [kernel for layer in layers_in_order(model) for kernel in kernels(layer)]


def other_matrices(model: Any) -> list[str]:
    """The paths of trainable variables with two axes and more that are none of `model_kernels`, nor their biases."""
    every = model_kernels(model)
    known = {id(v) for kernel in every for v in (kernel.variable, getattr(kernel.layer, "bias", None))}
    return [v.path for v in model.trainable_variables if len(v.shape) >= 2 and id(v) not in known]


def generator_for(seed: Any) -> np.random.Generator:
    """The random numbers of `seed`; None takes one that follows from `keras.utils.set_random_seed`, as in Keras."""
    return np.random.default_rng(random.randrange(2**31) if seed is None else seed)


def _makers(layer: Any) -> list[tuple[str, Any]]:
    # Depthwise and transposed convolutions first: a subclass of another kind of convolution is none of them.
    if isinstance(layer, _SEPARABLE):
        return [("depthwise_kernel", _depthwise), ("pointwise_kernel", _plain)]
    if isinstance(layer, _DEPTHWISE):
        return [("kernel", _depthwise)]
    if isinstance(layer, _TRANSPOSED):
        return [("kernel", _transposed)]
    if isinstance(layer, _CONVOLUTIONS):
        return [("kernel", _grouped)]
    if isinstance(layer, _K.EinsumDense):
        return [("kernel", _einsum)]
    return [("kernel", _plain)] if isinstance(layer, _K.Dense) else []


def _kernel(layer: Any, name: str, make: Any) -> Kernel | None:
    variable = getattr(layer, name, None)
    if not isinstance(variable, keras.Variable) or not variable.trainable or not layer.trainable:
        return None
    split, stack, inputs, outputs = make(layer, [int(size) for size in variable.shape])
    fan_in = math.prod(split[axis] for axis in inputs)
    if make is _transposed:
        fan_in = max(fan_in / math.prod(layer.strides), split[-1])
    return Kernel(layer, variable, split, stack, inputs, outputs, fan_in)


def _plain(layer: Any, shape: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    last = len(shape) - 1
    return shape, [], list(range(last)), [last]


def _grouped(layer: Any, shape: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    *front, outputs = shape
    last = len(front)
    return [*front, layer.groups, outputs // layer.groups], [last], list(range(last)), [last + 1]


def _transposed(layer: Any, shape: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    last = len(shape) - 1
    return shape, [], [*range(last - 1), last], [last - 1]


def _depthwise(layer: Any, shape: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    last = len(shape) - 1
    return shape, [last - 1], list(range(last - 1)), [last]


def _einsum(layer: Any, shape: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    operands, result = layer.equation.replace(" ", "").replace(".", "").split("->")
    data, kernel = operands.split(",")
    axes = range(len(kernel))
    stack = [i for i in axes if kernel[i] in result and kernel[i] in data]
    outputs = [i for i in axes if kernel[i] in result and kernel[i] not in data]
    return shape, stack, [i for i in axes if kernel[i] not in result], outputs

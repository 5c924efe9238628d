"""Wrappers with which a layer computes with other kernels than those that it holds."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, numerics


@dataclass(frozen=True)
class Kernel:
    """A kernel of a layer: `kept` are its axes that count outputs; over the others an output's weights are summed."""

    name: str
    variable: Any
    kept: tuple[int, ...]

    @property
    def summed(self) -> tuple[int, ...]:
        """The axes over which an output's weights are summed."""
        return tuple(axis for axis in range(len(self.variable.shape)) if axis not in self.kept)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The sizes of the axes that count outputs."""
        return tuple(self.variable.shape[axis] for axis in self.kept)

    def beside(self, values: Any) -> Any:
        """Values of the shape `outputs` in a shape that broadcasts to the kernel."""
        shape = [size if axis in self.kept else 1 for axis, size in enumerate(self.variable.shape)]
        return ops.reshape(values, shape)


def kernels_of(layer: Any) -> list[Kernel]:
    """The kernels of a built layer, in the order in which they are applied; of an RNN those of its cell.

    Raises:
        ValueError: if it has none, or none of its own, as under LoRA and quantization.
    """
    holder = layer.cell if isinstance(layer, keras.layers.RNN) else layer
    found = [
        Kernel(name, getattr(holder, name), _kept(holder, name, len(getattr(holder, name).shape)))
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel")
        if getattr(holder, name, None) is not None
    ]
    if not found or not all(isinstance(kernel.variable, keras.Variable) for kernel in found):
        raise ValueError(
            "`layer` must have a kernel that is a variable of its own: Dense, EinsumDense, the convolutions, and the "
            f"recurrent layers with one cell do. Received: layer={layer}"
        )
    return found


def _kept(layer: Any, name: str, rank: int) -> tuple[int, ...]:
    transposed = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    if isinstance(layer, keras.layers.EinsumDense):
        kernel, output = layer.equation.replace(" ", "").split(",")[1].split("->")
        return tuple(axis for axis, letter in enumerate(kernel) if letter in output)
    if isinstance(layer, depthwise) or name == "depthwise_kernel":
        return (rank - 2, rank - 1)
    return (rank - 2,) if isinstance(layer, transposed) else (rank - 1,)


class KernelWrapper(keras.layers.Wrapper):
    """A layer around another that computes with `reparametrized` kernels; the other's own stay what is learned.

    The kernels are put in for the length of the call, as values of the same variables, so that any layer which reads
    them in the usual way can be wrapped. They are computed in the variables' dtype, and cast to the compute dtype by
    the layer, as always.

    Args:
        layer: the layer to wrap. Its policy is the wrapper's, too.
        **kwargs: `name` and the like.
    """

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        if isinstance(layer, keras.layers.Layer):
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        # Kernels must be read as they are stored; the wrapped layer casts inputs and kernels by itself.
        self.autocast = False
        self.supports_masking = self.layer.supports_masking

    def build(self, input_shape: Any = None) -> None:
        """Builds the wrapped layer."""
        super().build(input_shape)
        for kernel in kernels_of(self.layer):
            self.build_kernel(kernel)
        self.built = True

    def build_kernel(self, kernel: Kernel) -> None:
        """Makes the wrapper's own weights for a kernel, if it needs any."""

    def reparametrized(self, kernel: Kernel) -> Any:
        """The kernel to compute with, in the shape of the variable."""
        raise NotImplementedError

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The wrapped layer's output with the reparametrized kernels."""
        given = {"training": training, "mask": mask}
        takes = inspect.signature(self.layer.call).parameters
        arguments = {name: value for name, value in given.items() if name in takes and value is not None}
        with backend.Substituted(self.values()) as scope:
            outputs = self.layer(inputs, **arguments)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def values(self) -> list[tuple[Any, Any]]:
        """Pairs of each kernel's variable and the value to compute with."""
        return [(kernel.variable, self.reparametrized(kernel)) for kernel in kernels_of(self.layer)]

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The wrapped layer's."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The wrapped layer's."""
        shape = self.layer.compute_output_shape(input_shape)
        # Keras's transposed convolutions give a list, which elsewhere means several outputs.
        single = isinstance(shape, list) and not any(isinstance(part, (list, tuple)) for part in shape)
        return tuple(shape) if single else shape

    def remove(self) -> Any:
        """A plain layer that computes the same: of the wrapped layer's class, with the kernels computed once and for
        all. The wrapper stays as it is. Of a whole model, see `layers.fold_kernels`.

        Raises:
            ValueError: if the layer is not built.
        """
        if not self.built:
            raise ValueError(f"{self.name!r} is not built: it has no kernels yet. Call it on an input first.")
        plain = type(self.layer).from_config(self.layer.get_config())
        plain.build_from_config(self.layer.get_build_config())
        self.fold_into(plain)
        return plain

    def fold_into(self, plain: Any) -> None:
        """Gives a built layer like the wrapped one its weights, with the kernels that the wrapper computes with."""
        computed = {id(variable): value for variable, value in self.values()}
        for variable, new in zip(self.layer.weights, plain.weights, strict=True):
            new.assign(computed.get(id(variable), variable))


def fold_kernels(model: keras.Model) -> keras.Model:
    """A copy of a model in which no layer is wrapped in `WeightNormalization` or `WeightStandardization` any more.

    It computes the same, with the kernels computed once and for all, and needs nothing of this package for it: for
    inference and export. The model itself stays as it is.

    Args:
        model: a built functional or `Sequential` model, whose nested models are such, too.

    Raises:
        ValueError: if the model is none of these (from Keras), or if a wrapper stands inside of another layer, where a
            copy cannot leave it out.

    >>> import keras, numpy as np
    >>> from keras_trainkit import layers
    >>> model = keras.Sequential([keras.Input((3,)), layers.WeightNormalization(keras.layers.Dense(2))])
    >>> plain = fold_kernels(model)
    >>> type(plain.layers[0]).__name__
    'Dense'
    >>> bool(np.allclose(plain(np.ones((1, 3))), model(np.ones((1, 3))), atol=1e-6))
    True
    """
    pairs: list[tuple[Any, Any]] = []

    def clone(layer: Any) -> Any:
        of = layer.layer if isinstance(layer, KernelWrapper) else layer
        new = type(of).from_config(of.get_config())
        pairs.append((layer, new))
        return new

    def call(layer: Any, *inputs: Any, **arguments: Any) -> Any:
        takes = inspect.signature(layer.call).parameters
        # The model remembers what wrappers were called with, of which plain layers may not take all.
        left_out = {"training", "mask"} - set(takes)
        return layer(*inputs, **{name: value for name, value in arguments.items() if name not in left_out})

    sequential = isinstance(model, keras.Sequential)
    plain = keras.models.clone_model(
        model, clone_function=clone, call_function=None if sequential else call, recursive=True
    )
    left = [layer.name for layer in backend.flat_layers(plain) if isinstance(layer, KernelWrapper)]
    if left:
        raise ValueError(f"`model` must not hold a wrapper inside of another layer. Received: {left}")
    for layer, new in pairs:
        if isinstance(layer, KernelWrapper):
            layer.fold_into(new)
        else:
            new.set_weights(layer.get_weights())
    return plain


def squared_norm(kernel: Any, summed: tuple[int, ...]) -> Any:
    """The sum of squares over the axes `summed`, kept as axes of size 1, in at least float32."""
    return ops.sum(ops.square(numerics.widened(kernel)), axis=summed, keepdims=True)

"""Kernels as a direction and a length, learned apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend, numerics
from keras_trainkit.layers.kernel_wrapper import Kernel, KernelWrapper, kernels_of, squared_norm

_SMALLEST = 1e-30  # below it float32 has no digits left for a squared norm


@keras.saving.register_keras_serializable("keras_trainkit")
class WeightNormalization(KernelWrapper):
    """Wraps a layer so that it computes with `g * v / norm(v)` instead of its kernel: direction and length apart.

    `v` is the wrapped layer's own kernel, and the norm is that of the weights of one output: over all axes of the
    kernel but that of the units or filters (but the last two of a depthwise kernel; of an EinsumDense over those that
    are summed). `g` is a weight of the wrapper, one number for each output, the norm of v at the start: before
    training the layer computes what it would without the wrapper. The gradient for v is orthogonal to v, so steps of
    gradient descent make it longer and its direction steadier. Salimans and Kingma 2016, arXiv 1602.07868.

    The paper also sets g and the bias by a first batch, so that each output starts with mean 0 and variance 1 on it:
    `layers.initialize_weight_normalization(model, batch)`, once, before `fit`. (TensorFlow Addons does that inside of
    the first call; then each later step asks whether it is done, and each replica takes its own share of the batch.)
    PyTorch's `weight_norm` has no such step.

    Wraps Dense, EinsumDense, all convolutions (of separable ones both kernels), and recurrent layers with one cell
    (`kernel` and `recurrent_kernel`, each column by itself, so each unit of each gate). To wrap a layer inside of
    `TimeDistributed` or `Bidirectional`, wrap what stands inside. Not for `Embedding`.

    A regularizer or a constraint of the wrapped layer acts on v, where it does nothing useful: the length of v does not
    matter. A kernel that starts at zeros has no direction, and never learns. Weight decay of the optimizer shrinks v
    without an effect, and g, which it should leave alone or not, as one likes: `g` is in its name.

    Args:
        layer: the layer to wrap.
        **kwargs: `name` and the like; the policy is the wrapped layer's.

    Raises:
        ValueError: for something that is no layer, and when built around a layer without a kernel of its own.

    >>> import keras, numpy as np
    >>> layer = WeightNormalization(keras.layers.Dense(1, kernel_initializer="ones"))
    >>> round(float(layer(np.ones((1, 4), "float32"))[0, 0]), 4)
    4.0
    >>> _ = layer.g[0].assign([6.0])  # the length was 2: each weight is 3 now
    >>> round(float(layer(np.ones((1, 4), "float32"))[0, 0]), 4)
    12.0
    """

    def build_kernel(self, kernel: Kernel) -> None:
        """Makes `g` for a kernel, of the shape of its outputs."""

        def norm(shape: Any, dtype: Any = None) -> Any:
            return ops.cast(ops.reshape(ops.sqrt(squared_norm(kernel.variable, kernel.summed)), shape), dtype)

        self.add_weight(
            name=_g_name(kernel), shape=kernel.outputs, initializer=norm, dtype=kernel.variable.dtype, autocast=False
        )

    @property
    def g(self) -> list[Any]:
        """The lengths, a variable for each kernel."""
        names = [_g_name(kernel) for kernel in kernels_of(self.layer)]
        own = {variable.name: variable for variable in self.weights}
        return [own[name] for name in names]

    def reparametrized(self, kernel: Kernel) -> Any:
        """g v / norm(v)."""
        v = numerics.widened(kernel.variable)
        g = next(g for g in self.g if g.name == _g_name(kernel))
        squares = squared_norm(v, kernel.summed)
        some = squares > _SMALLEST
        # The slope of the root near 0 is infinite, and times 0 no number: so it is taken of 1 there.
        scale = ops.where(some, ops.rsqrt(ops.where(some, squares, 1.0)), _SMALLEST**-0.5)
        return ops.cast(v * scale * kernel.beside(ops.cast(g, v.dtype)), kernel.variable.dtype)


def _g_name(kernel: Kernel) -> str:
    return "g" if kernel.name == "kernel" else f"g_{kernel.name.removesuffix('_kernel')}"


def initialize_weight_normalization(model: Any, batch: Any) -> int:
    """Sets the lengths and biases of a model's `WeightNormalization` layers so that each output, before the activation,
    has mean 0 and variance 1 on a batch.

    g becomes 1 / deviation and the bias - mean / deviation, of what `v x / norm(v)` gives on the batch, over its
    samples and positions; the layers follow one another as the model calls them, so each sees inputs from layers that
    are done. Of a separable convolution the second kernel's g is set. An output that does not vary keeps its g and
    bias; without a bias for each output only the variance is set; recurrent layers stay as they are. Nothing else
    changes: the model runs as at inference.

    Call it once, on a new model and before `fit`, with a few hundred samples. On several replicas call it outside of
    `fit` as well: it runs once, on the whole batch, and all replicas get the same. A second call on the same batch
    changes nothing; one after training would throw away what g and the biases have learned. Salimans and Kingma 2016,
    arXiv 1602.07868, section 3.

    Args:
        model: a built model, or layer.
        batch: inputs as the model takes them: an array, or a list or dictionary of arrays.

    Returns:
        How many layers were set.

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((3,)), WeightNormalization(keras.layers.Dense(2))])
    >>> x = np.random.default_rng(0).normal(5.0, 3.0, (200, 3)).astype("float32")
    >>> initialize_weight_normalization(model, x)
    1
    >>> np.round(np.array(model(x)).std(axis=0), 3).tolist()
    [1.0, 1.0]
    """
    wrappers = [layer for layer in backend.flat_layers(model) if isinstance(layer, WeightNormalization)]
    done: set[int] = set()
    with contextlib.ExitStack() as stack:
        for wrapper in wrappers:
            if not isinstance(wrapper.layer, keras.layers.RNN):
                stack.enter_context(_set_on_call(wrapper, done))
        model(batch, training=False)
    return len(done)


@contextlib.contextmanager
def _set_on_call(wrapper: Any, done: set[int]) -> Iterator[None]:
    original = wrapper.call

    def call(inputs: Any, **arguments: Any) -> Any:
        if id(wrapper) not in done:  # a layer that is called twice is set by its first inputs
            done.add(id(wrapper))
            _set(wrapper, inputs, original)
        return original(inputs, **arguments)

    wrapper.call = call
    try:
        yield
    finally:
        del wrapper.call


def _set(wrapper: WeightNormalization, inputs: Any, call: Any) -> None:
    layer, kernel, g = wrapper.layer, kernels_of(wrapper.layer)[-1], wrapper.g[-1]
    before = ops.convert_to_numpy(g)
    bias = getattr(layer, "bias", None)
    activation, layer.activation = layer.activation, None
    try:
        g.assign(np.ones_like(before))
        outputs = ops.convert_to_numpy(ops.cast(call(inputs, training=False), "float32")).astype("float64")
    finally:
        layer.activation = activation
        g.assign(before)
    if bias is not None:
        outputs = outputs - _beside_output(layer, ops.convert_to_numpy(bias), outputs.ndim)
    axes = _output_axes(layer, kernel, outputs.ndim)
    others = tuple(axis for axis in range(outputs.ndim) if axis not in axes)
    mean, deviation = outputs.mean(axis=others, keepdims=True), outputs.std(axis=others, keepdims=True)
    varies = deviation > 1e-6 * np.abs(outputs).max(initial=1e-30)
    factor = 1.0 / np.where(varies, deviation, 1.0)

    def of_kernel(values: Any) -> Any:
        """From the order of the output's axes to that of the kernel's, in the shape of g."""
        return np.transpose(values, [*axes, *others]).reshape(before.shape)

    g.assign(np.where(of_kernel(varies), of_kernel(factor), before))
    if bias is not None and np.size(bias) == mean.size:
        old = ops.convert_to_numpy(bias)
        bias.assign(np.where(varies.reshape(old.shape), (-mean * factor).reshape(old.shape), old))


def _output_axes(layer: Any, kernel: Kernel, rank: int) -> list[int]:
    """The axes of the output that count what the kept axes of the kernel count, in the kernel's order."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return [1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1]
    inputs, output = layer.equation.replace(" ", "").split("->")
    letters = inputs.split(",")[1]
    before, _, behind = output.partition("...")
    found = {letter: axis for axis, letter in enumerate(before)}
    found |= {letter: rank - len(behind) + axis for axis, letter in enumerate(behind)} if "..." in output else {}
    return [found[letters[axis]] for axis in kernel.kept]


def _beside_output(layer: Any, bias: Any, rank: int) -> Any:
    if getattr(layer, "data_format", None) == "channels_first":
        return bias.reshape([1, -1] + [1] * (rank - 2))
    return bias

"""Kernels with mean 0 and variance 1 for each filter."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, numerics
from keras_trainkit.layers.kernel_wrapper import Kernel, KernelWrapper


@keras.saving.register_keras_serializable("keras_trainkit")
class WeightStandardization(KernelWrapper):
    """Wraps a convolution so that it computes with a kernel whose filters have mean 0 and variance 1.

    `(w - mean) / sqrt(variance + epsilon)`, with the mean and the variance (divided by n) of the weights of one output:
    over all axes of the kernel but that of the filters. Scale and offset of the kernel no longer matter, so a
    normalization without a batch should follow, group normalization above all. Qiao et al. 2019, arXiv 1903.10520.

    With `scaled=True` it is the scaled weight standardization of nets without any normalization (NFNets; Brock et al.
    2021, arXiv 2101.08692 and 2102.06171): `gain * (w - mean) / sqrt(max(n * variance, epsilon))`, n weights to an
    output, where `gain` is learned, one number for each output, 1 at the start. Outputs then have the variance of the
    inputs; the constant that makes up for the activation (1.7139 for ReLU) is left to the model.

    The wrapped layer keeps its kernel as it is, and its regularizers and constraints act on that. It is a wrapper, as
    Keras's `SpectralNormalization` is, so one class serves Conv1D to Conv3D, transposed, depthwise and separable ones
    (both kernels), and Dense; weights of a plain layer fit the wrapped one; `remove` gives the plain layer back. But
    Keras's writes the kernel anew in each training step, here gradients go through the standardization.

    Implementations differ: the authors' PyTorch code divides by n - 1 and adds epsilon to the deviation, timm's takes
    1e-6, and NFNets' code has max(..., 1e-4) as here.

    Args:
        layer: the layer to wrap.
        scaled: whether to divide by the root of the number of weights too, and to learn a gain.
        epsilon: float above 0; by default 1e-5, or 1e-4 with `scaled`.
        **kwargs: `name` and the like; the policy is the wrapped layer's.

    Raises:
        ValueError: for an `epsilon` out of range, for a recurrent layer, and when built around a layer without a kernel
            of its own.

    >>> import keras, numpy as np
    >>> layer = WeightStandardization(keras.layers.Conv1D(8, 3))
    >>> layer(np.ones((1, 5, 4), "float32")).shape == (1, 3, 8)
    True
    >>> kernel = np.array(layer.remove().kernel)  # (3, 4, 8)
    >>> bool(np.allclose(kernel.std(axis=(0, 1)), 1.0, atol=1e-3))
    True
    """

    def __init__(self, layer: Any, scaled: bool = False, epsilon: float | None = None, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        if isinstance(layer, keras.layers.RNN):
            raise ValueError(f"`layer` must not be recurrent. Received: layer={layer}")
        self.scaled = checks.boolean("scaled", scaled)
        self.epsilon = epsilon if epsilon is None else checks.number("epsilon", epsilon, above=0)

    def build_kernel(self, kernel: Kernel) -> None:
        """Makes a gain for a kernel, of the shape of its outputs."""
        if self.scaled:
            self.add_weight(
                name=_gain_name(kernel),
                shape=kernel.outputs,
                initializer="ones",
                dtype=kernel.variable.dtype,
                autocast=False,
            )

    def reparametrized(self, kernel: Kernel) -> Any:
        """The standardized kernel."""
        w = numerics.widened(kernel.variable)
        apart = w - ops.mean(w, axis=kernel.summed, keepdims=True)
        variance = ops.mean(ops.square(apart), axis=kernel.summed, keepdims=True)
        if not self.scaled:
            new = apart * ops.rsqrt(variance + (1e-5 if self.epsilon is None else self.epsilon))
        else:
            count = math.prod(w.shape[axis] for axis in kernel.summed)
            gain = next(weight for weight in self.weights if weight.name == _gain_name(kernel))
            least = 1e-4 if self.epsilon is None else self.epsilon
            new = apart * ops.rsqrt(ops.maximum(count * variance, least)) * kernel.beside(ops.cast(gain, w.dtype))
        return ops.cast(new, kernel.variable.dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "scaled": self.scaled, "epsilon": self.epsilon}


def _gain_name(kernel: Kernel) -> str:
    return "gain" if kernel.name == "kernel" else f"gain_{kernel.name.removesuffix('_kernel')}"

"""Dropout of weights."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.layers.drawing import Dropping, drawn_below, kept_and_scaled, never
from keras_trainkit.layers.kernels import PER_SAMPLE, beside, check_equation, kind_of, with_kernels

_KERNELS = (
    *PER_SAMPLE,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


@keras.saving.register_keras_serializable("keras_trainkit")
class DropConnect(Dropping, keras.layers.Wrapper):
    """Drops single weights of a dense or convolutional layer at random during training; the layer itself otherwise.

    Where dropout takes units away, this takes connections: each element of kernel and bias is 0 with probability
    `rate`, and else scaled by `1 / (1 - rate)`, so that the layer's expected output, before its activation, does not
    change. Wan et al. 2013, "Regularization of neural networks using DropConnect", ICML. Outside of training the
    weights are what they are, as with Keras's `Dropout`; the paper draws from a normal distribution there instead.

    It wraps a layer, new or trained, and leaves its kernel, regularizers, constraints and configuration alone.
    (EfficientNet's "drop connect" is another thing: `StochasticDepth`.)

    In mode `"sample"`, the paper's, each sample has weights of its own: its kernels take the memory of the layer's
    weights times the batch, and a convolution also that of its patches, the input times the kernel's size. In mode
    `"batch"` all samples share one draw, which costs no more than the layer itself but is a stronger noise to the step,
    whose gradient averages over samples.

    Args:
        layer: a `Dense`, `EinsumDense`, `Conv1D`, `Conv2D` or `Conv3D`; in mode `"batch"` also a transposed or a
            depthwise convolution. Without LoRA or quantization.
        rate: the probability to drop a weight, from 0 to 1, or a schedule of it (see `ScheduledDropout`).
        mode: `"sample"` or `"batch"`.
        drop_bias: whether the bias is dropped, too, as in the paper.
        seed: an int for reproducible draws.
        **kwargs: what every Keras layer takes (`name`, `dtype`); the dtype policy is the layer's unless given.

    Call arguments:
        inputs: what the layer takes; in mode `"sample"` the first axis is the batch.
        training: as in Keras's `Dropout`.

    Returns:
        What the layer returns.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range, or a layer of another kind.

    >>> import keras, numpy as np
    >>> layer = DropConnect(keras.layers.Dense(1, kernel_initializer="ones"), rate=0.5, seed=2)
    >>> x = np.ones((1000, 10), "float32")
    >>> float(layer(x)[0, 0]), float(np.std(layer(x, training=True))) > 2
    (10.0, True)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: Any,
        mode: str = "sample",
        drop_bias: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.one_of("mode", mode, ["sample", "batch"])
        if not isinstance(layer, _KERNELS) or (mode == "sample" and kind_of(layer) is None):
            names = ", ".join(kind.__name__ for kind in (PER_SAMPLE if mode == "sample" else _KERNELS))
            raise TypeError(
                f'`layer` must be one of {names} in mode "{mode}", with the `call` of its class. '
                f"Received: layer={layer!r}"
            )
        if mode == "sample" and kind_of(layer) is keras.layers.EinsumDense:
            check_equation(layer.equation)
        super().__init__(layer, rate=rate, seed=seed, **{"dtype": layer.dtype_policy, **kwargs})
        self.mode = mode
        self.drop_bias = checks.boolean("drop_bias", drop_bias)
        self.supports_masking = layer.supports_masking
        # In mode "sample" the layer is not called. Versions of Keras differ in what they make of its regularizer.
        regularizer = layer.activity_regularizer if mode == "sample" else None
        self._recorder = None
        if regularizer is not None:
            self._recorder = keras.layers.Activation(
                "linear", activity_regularizer=regularizer, dtype=layer.dtype_policy
            )

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The layer's output, in training without some of its weights."""
        if not training:
            return self.layer(inputs)
        rate = self.next_rate()
        if never(rate):
            return self.layer(inputs)
        if self.mode == "sample":
            return self._by_sample(inputs, rate)
        own = {id(v): v.value for v in self.layer.variables}
        for variable in self._dropped():
            kept = drawn_below(variable.shape, 1.0 - rate, self.seed_generator)
            own[id(variable)] = kept_and_scaled(own[id(variable)], kept, rate)
        mapping = [(v, own[id(v)]) for v in self.layer.variables]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            outputs = self.layer(inputs)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The layer's."""
        return self.layer.compute_mask(inputs, mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "mode": self.mode, "drop_bias": self.drop_bias}

    def _dropped(self) -> list[Any]:
        """The variables of which elements are dropped: the kernel, and the bias where there is one."""
        kernel, bias = self.layer.kernel, self.layer.bias
        if not isinstance(kernel, keras.Variable):
            raise ValueError(f"DropConnect needs a layer without LoRA or quantization. Received: {self.layer!r}")
        return [kernel, bias] if self.drop_bias and bias is not None else [kernel]

    def _by_sample(self, inputs: Any, rate: Any) -> Any:
        layer, batch = self.layer, ops.shape(inputs)[0]
        drawn = {}
        for variable in self._dropped():
            kept = drawn_below((batch, *variable.shape), 1.0 - rate, self.seed_generator)
            drawn[id(variable)] = kept_and_scaled(ops.convert_to_tensor(variable)[None], kept, rate)
        dtype = layer.compute_dtype
        outputs = with_kernels(layer, ops.cast(inputs, dtype), ops.cast(drawn[id(layer.kernel)], dtype))
        if layer.bias is not None:
            bias = drawn.get(id(layer.bias), layer.bias[None])
            outputs = outputs + ops.cast(beside(layer, bias, len(outputs.shape)), dtype)
        if layer.activation is not None:
            outputs = layer.activation(outputs)
        return outputs if self._recorder is None else self._recorder(outputs)

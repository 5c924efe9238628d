"""Tokens left out at random during training."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.layers.drawing import Drawing


@keras.saving.register_keras_serializable("keras_trainkit")
class PatchDropout(Drawing):
    """Keeps a random part of the tokens of each sample during training; all of them otherwise.

    What follows, a vision transformer say, sees a shorter sequence: half of the tokens cost half of the time in the
    dense layers and a quarter in attention. Put it behind the position embedding. Nothing is scaled. Liu et al. 2023,
    arXiv 2208.07220.

    Of L tokens behind the prefix `(1 - rate) * L` are kept, to the nearest whole number and at least 1; for each sample
    others, all subsets being equally likely. The number is known when the step is traced, so that XLA compiles it; it
    cannot follow a schedule. In a symbolic model the axis of the tokens has no size, because it depends on `training`:
    behind this layer use what takes any length (attention, normalization, dense layers, global pooling).

    timm's `PatchDropout` is the same, but returns the tokens in random order unless told otherwise, rounds their number
    down (19 of 196 for 0.9, here 20), and `num_prefix_tokens` is 1.

    Args:
        rate: the share of tokens to leave out, from 0 to below 1.
        num_prefix_tokens: how many tokens at the beginning always stay, such as CLS; none unless said.
        ordered: whether tokens stay in their order; else it is random.
        return_indices: whether to return `(tokens, indices)`.
        seed: an int for reproducible draws.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: tokens (batch, prefix + L, ...), of any dtype.
        training: as in Keras's `Dropout`.

    Returns:
        Tokens (batch, prefix + kept, ...) of the input's kind. With `return_indices` also the positions of those behind
        the prefix (batch, kept), int32, counted from the first behind the prefix; outside of training 0 to L - 1. A
        mask (batch, prefix + L) goes with its tokens.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when built, for inputs with no axis of
            tokens, or none behind the prefix.

    >>> import numpy as np
    >>> drop = PatchDropout(0.5, num_prefix_tokens=1, return_indices=True, seed=1)
    >>> tokens, indices = drop(np.arange(9.0)[None, :, None] * np.ones((2, 1, 4)), training=True)
    >>> tokens.shape, indices.shape
    (TensorShape([2, 5, 4]), TensorShape([2, 4]))
    >>> bool(np.all(np.array(tokens)[:, 1:, 0] == np.array(indices) + 1))
    True
    """

    def __init__(
        self,
        rate: float,
        num_prefix_tokens: int = 0,
        ordered: bool = True,
        return_indices: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        self.rate = checks.number("rate", rate, at_least=0, below=1)
        self.num_prefix_tokens = checks.integer("num_prefix_tokens", num_prefix_tokens, at_least=0)
        self.ordered = checks.boolean("ordered", ordered)
        self.return_indices = checks.boolean("return_indices", return_indices)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks the shape; there are no weights."""
        tokens = input_shape[1] if len(input_shape) > 1 else 0
        if tokens is not None and tokens <= self.num_prefix_tokens:
            raise ValueError(
                "PatchDropout takes (batch, tokens, ...) with tokens behind the prefix. "
                f"Received: input_shape={tuple(input_shape)}, num_prefix_tokens={self.num_prefix_tokens}"
            )
        self.built = True

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """The tokens that are kept, behind the prefix."""
        batch, length = ops.shape(inputs)[0], ops.shape(inputs)[1] - self.num_prefix_tokens
        if not training or self.rate == 0:
            everything = ops.broadcast_to(ops.arange(length, dtype="int32"), (batch, length))
            return (inputs, everything) if self.return_indices else inputs
        order = keras.random.uniform((batch, length), dtype="float32", seed=self.seed_generator)
        indices = ops.cast(ops.top_k(order, self.kept(length))[1], "int32")
        if self.ordered:
            indices = ops.sort(indices, axis=1)
        tokens = self._taken(inputs, indices)
        if mask is not None:
            backend.set_mask(tokens, self._taken(mask, indices))
        return (tokens, indices) if self.return_indices else tokens

    def kept(self, length: Any) -> Any:
        """How many of `length` tokens behind the prefix stay in training."""
        share = (1.0 - self.rate) * (length if isinstance(length, int) else ops.cast(length, "float32")) + 0.5
        if isinstance(length, int):
            # Of 0.1 * 45 + 0.5 the float lies below 5.
            return max(1, math.floor(share + 1e-9))
        return ops.maximum(ops.cast(ops.floor(share + 1e-4), "int32"), 1)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask outside of training; in training `call` has given the tokens theirs."""
        return (mask, None) if self.return_indices else mask

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape, with an unknown number of tokens; and that of the indices."""
        tokens = (input_shape[0], None if self.rate else input_shape[1], *input_shape[2:])
        known = None if self.rate or input_shape[1] is None else input_shape[1] - self.num_prefix_tokens
        return (tokens, (input_shape[0], known)) if self.return_indices else tokens

    def compute_output_spec(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """Shapes and dtypes: indices are int32."""
        shapes = self.compute_output_shape(inputs.shape)
        if not self.return_indices:
            return keras.KerasTensor(shapes, inputs.dtype)
        return keras.KerasTensor(shapes[0], inputs.dtype), keras.KerasTensor(shapes[1], "int32")

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "num_prefix_tokens": self.num_prefix_tokens,
            "ordered": self.ordered,
            "return_indices": self.return_indices,
        }

    def _taken(self, values: Any, indices: Any) -> Any:
        """The prefix of `values` (batch, tokens, ...), and behind it what stands at `indices`."""
        rank = len(values.shape)
        places = ops.reshape(indices, (*ops.shape(indices), *[1] * (rank - 2)))
        behind = ops.take_along_axis(values[:, self.num_prefix_tokens :], places, axis=1)
        if not self.num_prefix_tokens:
            return behind
        return ops.concatenate([values[:, : self.num_prefix_tokens], behind], axis=1)

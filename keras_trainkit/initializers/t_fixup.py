"""T-Fixup: transformers without layer normalization and without warmup, by their initialization alone."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_trainkit.core import backend, matching
from keras_trainkit.initializers import report
from keras_trainkit.initializers.fixup import normalization_notes, zero_bias
from keras_trainkit.initializers.kernels import (
    ATTENTION,
    Kernel,
    generator_for,
    kernels,
    layers_in_order,
    model_kernels,
    other_matrices,
)


def t_fixup(
    model: keras.Model,
    decoder: str | None = None,
    feed_forward: str | None = None,
    head: str | None = "auto",
    seed: int | None = None,
) -> report.InitializationReport:
    """Initializes a transformer without layer normalization so that it trains, and without warmup.

    With N blocks, as the paper's rules say:

    1. all kernels are Xavier's (uniform, of the true fans, those of attention too), input embeddings normal with
       standard deviation 1 / sqrt(size);
    2. in an encoder the value and output projections of attention and the feed-forward kernels are multiplied by
       0.67 N^(-1/4);
    3. in a decoder with cross-attention they are multiplied by (9 N)^(-1/4);
    4. embeddings are multiplied by (9 N)^(-1/4).

    A decoder without cross-attention, as in GPT, has the two sublayers of an encoder's block, and is treated as one.
    Biases of the kernels are zero. Take the normalization layers out of the model yourself, and train with Adam
    without warmup. The paper's own models multiply the embeddings by sqrt(size) when they are looked up.

    Attention is Keras's `MultiHeadAttention` and `GroupQueryAttention` and what derives from them.

    Reference: Huang et al. 2020, "Improving Transformer Optimization Through Better Initialization" (ICML), section 3.

    Args:
        model: a built model.
        decoder: a regular expression for the paths of what belongs to a decoder with cross-attention: its attention
            layers (two in a block), feed-forward kernels and embeddings.
        feed_forward: a regular expression for the paths of the kernels in feed-forward blocks, and of hand-written
            value and output projections. None takes every Dense and EinsumDense kernel outside of attention but the
            head; give one if something else projects the inputs.
        head: a regular expression for the paths of the kernels that give the output and are not scaled; `"auto"` for
            the last one outside of attention; None for no head, as where it is the embedding.
        seed: an int for the same weights again.

    Returns:
        An `InitializationReport`.

    Raises:
        TypeError, ValueError: for an argument out of its range, a model without attention, a pattern that is found
            nowhere, or a decoder with an odd number of attention layers. The model is then as it was before.

    >>> import keras
    >>> x = inputs = keras.Input((6,), dtype="int32")
    >>> x = keras.layers.Embedding(10, 16)(x)
    >>> for i in range(4):
    ...     x = x + keras.layers.MultiHeadAttention(2, 8, name=f"attention_{i}")(x, x)
    ...     x = x + keras.layers.Dense(16)(keras.layers.Dense(32, "relu")(x))
    >>> model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    >>> result = t_fixup(model, seed=1)
    >>> [row.rule for row in result.variables if "attention_0" in row.path]
    ['Xavier', 'Xavier', 'Xavier * 0.4738', 'Xavier * 0.4738']
    """
    for name, value in (("decoder", decoder), ("feed_forward", feed_forward), ("head", head)):
        if value is not None:
            matching.require_pattern(name, value)
    every, layers = model_kernels(model), layers_in_order(model)
    attention = [layer for layer in layers if isinstance(layer, ATTENTION) and layer.built]
    embeddings = [x for x in layers if isinstance(x, keras.layers.Embedding) and x.built and x.trainable]
    factors = _Factors(attention, decoder)
    inside, scaled = _projections(attention)
    outside = [kernel for kernel in every if id(kernel.variable) not in inside]
    scaled |= _feed_forward(outside, feed_forward, _heads(outside, head))
    generator, rows = generator_for(seed), []
    for layer in embeddings:
        variable = layer.embeddings
        factor = factors.embedding(variable.path)
        variable.assign(generator.normal(0.0, factor / int(variable.shape[-1]) ** 0.5, variable.shape))
        rows.append(report.entry(variable, f"normal * {factor:.4g}"))
    for kernel in every:
        factor = factors.kernel(kernel.path) if id(kernel.variable) in scaled else 1.0
        kernel.assign_uniform(factor * (2 / (kernel.fan_in + kernel.fan_out)) ** 0.5, generator)
        zero_bias(kernel)
        rows.append(report.entry(kernel.variable, "Xavier" if factor == 1 else f"Xavier * {factor:.4g}"))
    set_here = {row.path for row in rows}
    left = [path for path in other_matrices(model) if path not in set_here]
    notes = normalization_notes(model) + ([f"Left as they are: {report.listed(left)}."] if left else [])
    return report.InitializationReport("t_fixup", rows, notes)


class _Factors:
    """The numbers by which the paper scales, from how many blocks encoder and decoder have."""

    def __init__(self, attention: list[Any], decoder: str | None) -> None:
        if not attention:
            raise ValueError("`model` must have MultiHeadAttention or GroupQueryAttention layers. Received: none")
        self._pattern = decoder
        in_decoder = [self._in_decoder(layer.path) for layer in attention]
        twice = sum(in_decoder)
        if decoder is not None and (twice == 0 or twice % 2):
            raise ValueError(
                "`decoder` must be found in the paths of the two attention layers of each decoder block. "
                f"Received: decoder={decoder!r}, found in {twice} of {report.listed([x.path for x in attention])}"
            )
        self._decoder_blocks = twice // 2
        self._encoder_blocks = len(attention) - twice

    def kernel(self, path: str) -> float:
        """For a value or output projection, or a feed-forward kernel."""
        if self._in_decoder(path):
            return (9 * self._decoder_blocks) ** -0.25
        # With a decoder alone, what the pattern leaves out belongs to no block.
        return 0.67 * self._encoder_blocks**-0.25 if self._encoder_blocks else 1.0

    def embedding(self, path: str) -> float:
        """For an input embedding."""
        blocks = self._decoder_blocks if self._in_decoder(path) else self._encoder_blocks
        return (9 * (blocks or self._decoder_blocks)) ** -0.25

    def _in_decoder(self, path: str) -> bool:
        return self._pattern is not None and re.search(self._pattern, path) is not None


def _projections(attention: list[Any]) -> tuple[set[int], set[int]]:
    """All kernels of the attention layers, and those of their value and output projections."""
    inside, scaled = set(), set()
    for layer in attention:
        for part in backend.sublayers(layer):
            own = {id(kernel.variable) for kernel in kernels(part)}
            inside |= own
            if part.name in ("value", "attention_output"):
                scaled |= own
    return inside, scaled


def _heads(outside: list[Kernel], head: str | None) -> set[int]:
    if head is None or not outside:
        return set()
    if head == "auto":
        return {id(outside[-1].variable)}
    return _found("head", head, outside)


def _feed_forward(outside: list[Kernel], pattern: str | None, heads: set[int]) -> set[int]:
    if pattern is not None:
        return _found("feed_forward", pattern, outside) - heads
    kinds = (keras.layers.Dense, keras.layers.EinsumDense)
    return {id(kernel.variable) for kernel in outside if isinstance(kernel.layer, kinds)} - heads


def _found(name: str, pattern: str, outside: list[Kernel]) -> set[int]:
    found = {id(kernel.variable) for kernel in outside if re.search(pattern, kernel.path)}
    if not found:
        paths = report.listed([kernel.path for kernel in outside])
        raise ValueError(f"`{name}` must be found in the path of a kernel: {paths}. Received: {name}={pattern!r}")
    return found

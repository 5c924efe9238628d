"""Adam with one second moment for a whole block of parameters, such as an output neuron or an attention head."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.transform import LeafContext, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend, debiased_direction
from keras_trainkit.transforms.routing import EMBEDDING, VECTOR

QUERY_OR_KEY = r"(?i)(^|[/_.])(query|key|q_proj|k_proj|wq|wk)(/kernel)?$"


@register_transform
class ScaleByBlockAdam(Transform):
    """Adam's direction with the mean square of each block in place of each parameter's (Adam-mini).

    `heads` and `blocks` are those of `optimizers.AdamMini`, whose docstring names the blocks.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    heads: int | None = None
    blocks: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        if self.heads is not None:
            checks.integer("heads", self.heads, at_least=1)
        _check_blocks(self.blocks)

    def check_variables(self, variables: list[Any]) -> None:
        shapes = [(variable_path(v), [int(size) for size in v.shape]) for v in variables]
        listed = ", ".join(f"`{path}` {tuple(shape)}" for path, shape in shapes)
        for pattern, letters in self.blocks:
            if not any(re.search(pattern, path) and len(letters) == len(shape) for path, shape in shapes):
                raise ValueError(
                    f"`blocks` must match a variable by path and number of axes. Received: {[pattern, letters]}, with "
                    f"the variables {listed}"
                )
        for path, shape in shapes:
            if _has_flat_heads(path, shape, self.heads, self.blocks) and shape[1] % (self.heads or 1):
                raise ValueError(f"`heads` must divide the outputs of `{path}` {tuple(shape)}. Received: {self.heads}")

    def slots(self, variable: Any) -> dict[str, Any]:
        shape, letters = block_layout(variable_path(variable), list(variable.shape), self.heads, self.blocks)
        return {"momentum": 0.0, "velocity": Slot(shape=_block_shape(shape, letters))}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        own = [int(size) for size in update.shape]
        shape, letters = block_layout(context.path, own, self.heads, self.blocks)
        inside = [axis for axis, letter in enumerate(letters) if letter == "m"]
        squares = ops.reshape(ops.square(update), shape)
        mean = ops.mean(squares, axis=inside, keepdims=True) if inside else squares
        momentum = blend(self.beta_1, state["momentum"], update)
        velocity = blend(self.beta_2, state["velocity"], mean)
        direction = debiased_direction(
            ops.reshape(momentum, shape), velocity, self.beta_1, self.beta_2, self.epsilon, context.step, False
        )
        return ops.reshape(direction, own), {"momentum": momentum, "velocity": velocity}


def block_layout(path: str, shape: list[int], heads: int | None, blocks: list) -> tuple[list[int], str]:
    """How a variable is cut: the shape to see it in, and a letter for each axis.

    `b` is an axis with a block for each index, `m` one over which a block takes the mean.

    >>> block_layout("mlp/kernel", [8, 32], None, [])
    ([8, 32], 'mb')
    >>> block_layout("embeddings", [1000, 8], None, [])
    ([1000, 8], 'bm')
    >>> block_layout("attention/query/kernel", [8, 8], 2, [])
    ([8, 2, 4], 'mbm')
    """
    for pattern, letters in blocks:
        if len(letters) == len(shape) and re.search(pattern, path):
            return shape, letters
    rank = len(shape)
    if rank < 2 or re.search(VECTOR, path):
        return shape, "m" * rank
    if re.search(EMBEDDING, path):
        return shape, "b" + "m" * (rank - 1)
    if _has_flat_heads(path, shape, heads, blocks):
        return [shape[0], heads or 1, shape[1] // (heads or 1)], "mbm"
    if re.search(QUERY_OR_KEY, path) and rank == 3:
        return shape, "mbm"
    if re.search(r"(^|/)value/kernel$", path) and rank == 3:
        return shape, "mbb"
    return shape, "m" * (rank - 1) + "b"


def _has_flat_heads(path: str, shape: list[int], heads: int | None, blocks: list) -> bool:
    ruled = any(len(letters) == len(shape) and re.search(pattern, path) for pattern, letters in blocks)
    return heads is not None and not ruled and len(shape) == 2 and bool(re.search(QUERY_OR_KEY, path))


def _block_shape(shape: list[int], letters: str) -> list[int]:
    return [int(size) if letter == "b" else 1 for size, letter in zip(shape, letters, strict=True)]


def _check_blocks(blocks: Any) -> None:
    message = f"`blocks` must hold [pattern, letters] pairs, letters of b and m. Received: blocks={blocks!r}"
    if not isinstance(blocks, list):
        raise TypeError(message)
    for rule in blocks:
        if not (isinstance(rule, list) and len(rule) == 2 and all(isinstance(part, str) for part in rule)):
            raise ValueError(message)
        if not set(rule[1]) <= set("bm"):
            raise ValueError(message)
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"`blocks` must hold regular expressions ({error}). Received: {rule[0]!r}") from error

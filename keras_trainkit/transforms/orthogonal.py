"""Orthogonalized momentum, and how variables of any rank are seen as matrices."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.linear_algebra import newton_schulz
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend

QUINTIC = [3.4445, -4.7750, 2.0315]
"""The author's coefficients: the steepest slope at zero that keeps singular values about 1."""

SCALES: dict[str, Callable[[int, int], float]] = {
    "original": lambda outputs, inputs: math.sqrt(max(1.0, outputs / inputs)),
    "rms": lambda outputs, inputs: 0.2 * math.sqrt(max(outputs, inputs)),
    "match_rms_adamw": lambda outputs, inputs: 0.2 * math.sqrt(max(outputs, inputs)),
    "spectral": lambda outputs, inputs: math.sqrt(outputs / inputs),
    "none": lambda outputs, inputs: 1.0,
}
"""What an orthogonal update is multiplied by, from the numbers of outputs and inputs."""

# Keras's attention projects to (heads, size) in one kernel of three axes; that is one matrix, not one with rows mixed
# of inputs and heads.
ATTENTION = [["(^|/)(query|key|value)/kernel$", "ioo"]]

_SIGNIFICAND_BITS = {"float32": None, "bfloat16": 8}


@register_transform
class AverageGradient(Transform):
    """An exponential average m of the gradients; with `nesterov` the direction is the average's next value.

    m = momentum m + (1 - momentum) g, and the direction is m, or momentum m + (1 - momentum) g once more.
    """

    scope = "element"

    momentum: float = 0.95
    nesterov: bool = True

    def validate(self) -> None:
        checks.number("momentum", self.momentum, at_least=0, below=1)
        checks.boolean("nesterov", self.nesterov)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        average = blend(self.momentum, state["momentum"], update)
        direction = blend(self.momentum, average, update) if self.nesterov else average
        return direction, {"momentum": average}


@register_transform
class Orthogonalize(Transform):
    """The nearest orthogonal matrix to each update, nearly, times a factor of its shape (Jordan et al., 2024).

    `layouts` holds `[pattern, letters]` pairs: a variable whose path contains the pattern, and which has as many axes
    as there are letters, is seen as the letters say, axis by axis: `i` an input, `o` an output, `b` one of a stack of
    matrices. Otherwise its last axis is the output and all others are inputs (the flattened kernel of a convolution).
    `scale` and `ns_dtype` are those of `optimizers.Muon`.
    """

    scale: str = "original"
    coefficients: list = dataclasses.field(default_factory=lambda: list(QUINTIC))
    steps: int = 5
    epsilon: float = 1e-7
    ns_dtype: str = "float32"
    layouts: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        checks.one_of("scale", self.scale, SCALES)
        if not isinstance(self.coefficients, list) or len(self.coefficients) != 3:
            raise ValueError(f"`coefficients` must hold three numbers. Received: coefficients={self.coefficients!r}")
        for number in self.coefficients:
            checks.number("coefficients", number)
        checks.integer("steps", self.steps, at_least=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.one_of("ns_dtype", self.ns_dtype, _SIGNIFICAND_BITS)
        check_layouts(self.layouts)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        shape = [int(size) for size in update.shape]
        layout = layout_of(context.path, shape, self.layouts)
        inputs, outputs = matrix_shape(shape, layout)
        stack = to_matrices(update, layout)
        stack = newton_schulz(stack, self.coefficients, self.steps, self.epsilon, _SIGNIFICAND_BITS[self.ns_dtype])
        return from_matrices(stack, shape, layout) * SCALES[self.scale](outputs, inputs), state


def check_layouts(layouts: Any) -> None:
    """Raises ValueError unless `layouts` is a list of a regular expression and letters i, o and b, each."""
    message = f"`layouts` must hold [pattern, letters] pairs, letters of i, o and b. Received: layouts={layouts!r}"
    if not isinstance(layouts, list):
        raise TypeError(message)
    for rule in layouts:
        if not (isinstance(rule, list) and len(rule) == 2 and all(isinstance(part, str) for part in rule)):
            raise ValueError(message)
        if not set("io") <= set(rule[1]) <= set("iob"):
            raise ValueError(message)
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"`layouts` must hold regular expressions ({error}). Received: {rule[0]!r}") from error


def layout_of(path: str, shape: list[int], layouts: list) -> str:
    """The letters of the first rule that takes a variable; Keras's own convention where none does.

    >>> layout_of("conv/kernel", [3, 3, 16, 32], [])
    'iiio'
    >>> layout_of("attention/query/kernel", [64, 4, 16], [])
    'ioo'
    """
    for pattern, letters in [*layouts, *ATTENTION]:
        if len(letters) == len(shape) and re.search(pattern, path):
            return letters
    return "i" * (len(shape) - 1) + "o"


def matrix_shape(shape: list[int], layout: str) -> tuple[int, int]:
    """The numbers of inputs and outputs of one matrix.

    >>> matrix_shape([3, 3, 16, 32], "iiio")
    (144, 32)
    """
    sizes = {letter: math.prod(s for s, each in zip(shape, layout, strict=True) if each == letter) for letter in "io"}
    return sizes["i"], sizes["o"]


def to_matrices(x: Tensor, layout: str) -> Tensor:
    """A stack of matrices of shape (stack, inputs, outputs)."""
    inputs, outputs = matrix_shape([int(size) for size in x.shape], layout)
    return ops.reshape(ops.transpose(x, _axes(layout)), (-1, inputs, outputs))


def from_matrices(stack: Tensor, shape: list[int], layout: str) -> Tensor:
    """A tensor of `shape` again, from what `to_matrices` returned."""
    axes = _axes(layout)
    moved = ops.reshape(stack, [shape[axis] for axis in axes])
    return ops.transpose(moved, sorted(range(len(axes)), key=axes.__getitem__))


def _axes(layout: str) -> list[int]:
    return sorted(range(len(layout)), key=lambda axis: ("bio".index(layout[axis]), axis))

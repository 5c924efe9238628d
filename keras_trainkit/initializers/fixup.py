"""Fixup: deep residual nets without normalization, by their initialization alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras

from keras_trainkit.core import checks, matching
from keras_trainkit.initializers import report
from keras_trainkit.initializers.kernels import (
    ATTENTION,
    NORMALIZATIONS,
    Kernel,
    generator_for,
    kernels,
    layers_in_order,
    model_kernels,
    other_matrices,
)
from keras_trainkit.layers.scalar_affine import ScalarAffine


def fixup(
    model: keras.Model,
    branches: str | Sequence[Sequence[Any]],
    head: str | None = "auto",
    gain: float = 2**0.5,
    seed: int | None = None,
) -> report.InitializationReport:
    """Initializes a residual net without normalization so that a step changes its output by as much at any depth.

    With L residual branches of m kernels each, as the paper's rules say:

    1. the last kernel of each branch, and the head, are zero;
    2. all other kernels are normal with standard deviation gain / sqrt(fan in) (He's), those inside a branch times
       L^(-1 / (2 m - 2));
    3. `layers.ScalarAffine` layers are the identity. The paper has a shift before each convolution, dense layer and
       activation, and a factor at the end of each branch; put them into the model for the best accuracy.

    Biases of the layers above are zero. What the theorem says of kernels is not true of these: the bias at the end of a
    branch moves the output as far in each of them, L times in all. The paper has none (`use_bias=False`), only the
    scalars, which learn at a tenth of the rate (`transforms.ScaleByPath`).

    A separable convolution counts as two kernels. The fan in is what truly enters one output, for depthwise, transposed
    and einsum kernels, too. Frozen layers, embeddings and recurrent layers stay as they are.

    Reference: Zhang et al. 2019, arXiv 1901.09321, section 4.

    Args:
        model: a built model, without normalization in its branches.
        branches: which layers are the residual branches: a list with a list of layers, or of their names, for each
            branch, in the order of their use; or a regular expression for paths of kernels. Kernels for which it
            finds the same text are one branch (of the groups in parentheses, where there are some), in the order of
            the model: `r"block_\\d+"` for layers named `block_3_conv_1` and `block_3_conv_2`.
        head: a regular expression for the paths of the kernels that give the output; `"auto"` for the last kernel of
            the model, if it is in no branch; None for no head.
        gain: sqrt(2), the default, for ReLU; 1 for tanh and for no activation.
        seed: an int for the same kernels again.

    Returns:
        An `InitializationReport`.

    Raises:
        TypeError, ValueError: for an argument out of its range, branches that are not found, that have no kernel, or
            share one; for attention inside of a branch (see `t_fixup`). The model is then as it was before.

    >>> import keras
    >>> x = inputs = keras.Input((8,))
    >>> for i in range(16):
    ...     branch = keras.layers.Dense(8, "relu", name=f"block_{i}_first")(x)
    ...     x = keras.layers.Add()([x, keras.layers.Dense(8, name=f"block_{i}_last")(branch)])
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    >>> result = fixup(model, r"block_\\d+", seed=1)
    >>> [row.rule for row in result.variables[:2]], result.variables[-1].rule
    (['branch 1 of 16: normal * 0.25', 'branch 1 of 16: zero'], 'head: zero')
    """
    checks.number("gain", gain, above=0)
    every = model_kernels(model)
    found = _by_pattern(every, branches) if isinstance(branches, str) else _by_layers(model, branches)
    place = _places(found)
    heads = _heads(every, place, head)
    generator, rows = generator_for(seed), []
    for kernel in every:
        if id(kernel.variable) in place:
            number, position = place[id(kernel.variable)]
            rule = _in_branch(kernel, len(found), number, position, len(found[number]), gain, generator)
        elif kernel.path in heads:
            kernel.variable.assign(0.0 * kernel.variable)
            rule = "head: zero"
        else:
            kernel.assign_normal(gain / kernel.fan_in**0.5, generator)
            rule = "normal"
        rows.append(report.entry(kernel.variable, rule))
        zero_bias(kernel)
    scalars = [layer for layer in layers_in_order(model) if isinstance(layer, ScalarAffine) and layer.built]
    for layer in scalars:
        for variable, value in ((layer.scale, 1.0), (layer.bias, 0.0)):
            if variable is not None:
                variable.assign(value)
                rows.append(report.entry(variable, "the identity"))
    return report.InitializationReport("fixup", rows, _notes(model, bool(scalars)))


def zero_bias(kernel: Kernel) -> None:
    """Sets the bias of the kernel's layer to zero."""
    bias = getattr(kernel.layer, "bias", None)
    if bias is not None:
        bias.assign(0.0 * bias)


def _in_branch(
    kernel: Kernel, branches: int, number: int, position: int, length: int, gain: float, generator: Any
) -> str:
    which = f"branch {number + 1} of {branches}"
    if position == length - 1:
        kernel.variable.assign(0.0 * kernel.variable)
        return f"{which}: zero"
    scale = branches ** (-1 / (2 * length - 2))
    kernel.assign_normal(scale * gain / kernel.fan_in**0.5, generator)
    return f"{which}: normal * {scale:.4g}"


def _by_pattern(every: list[Kernel], pattern: str) -> list[list[Kernel]]:
    matching.require_pattern("branches", pattern)
    found: dict[Any, list[Kernel]] = {}
    for kernel in every:
        if match := re.search(pattern, kernel.path):
            found.setdefault(match.groups() or match[0], []).append(kernel)
    if not found:
        paths = report.listed([kernel.path for kernel in every])
        raise ValueError(f"`branches` must be found in the path of a kernel: {paths}. Received: branches={pattern!r}")
    for each in found.values():
        _refuse_attention([kernel.layer for kernel in each])
    return list(found.values())


def _by_layers(model: Any, branches: Any) -> list[list[Kernel]]:
    if not isinstance(branches, (list, tuple)) or not branches:
        raise TypeError(
            "`branches` must be a regular expression, or a list of lists of layers, at least one. "
            f"Received: branches={branches!r}"
        )
    found = []
    for number, members in enumerate(branches):
        if not isinstance(members, (list, tuple)):
            raise TypeError(f"`branches` must hold lists of layers. Received: {members!r}")
        inside = [layer for member in members for layer in layers_in_order(_layer(model, member))]
        _refuse_attention(inside)
        found.append([kernel for layer in inside for kernel in kernels(layer)])
        if not found[-1]:
            raise ValueError(f"`branches` must hold layers with kernels that train. Received: branch {number} without")
    return found


def _layer(model: Any, member: Any) -> Any:
    every = layers_in_order(model)
    named = [layer for layer in every if layer.name == member] if isinstance(member, str) else [member]
    if len(named) != 1 or not any(named[0] is layer for layer in every):
        raise ValueError(f"`branches` must hold layers of the model, or names that one layer has. Received: {member!r}")
    return named[0]


def _refuse_attention(layers: list[Any]) -> None:
    attention = [layer.name for layer in layers if isinstance(layer, ATTENTION)]
    if attention:
        raise ValueError(
            "`branches` must not hold attention, whose kernels do not follow each other; `t_fixup` is for that. "
            f"Received: {attention[0]!r}"
        )


def _places(found: list[list[Kernel]]) -> dict[int, tuple[int, int]]:
    """The branch and the position in it for each kernel in one."""
    place: dict[int, tuple[int, int]] = {}
    for number, each in enumerate(found):
        for position, kernel in enumerate(each):
            if id(kernel.variable) in place:
                raise ValueError(f"`branches` must not share kernels. Received: {kernel.path} twice")
            place[id(kernel.variable)] = (number, position)
    return place


def _heads(every: list[Kernel], place: dict[int, Any], head: str | None) -> list[str]:
    if head is None:
        return []
    if head == "auto":
        return [every[-1].path] if id(every[-1].variable) not in place else []
    matching.require_pattern("head", head)
    found = [k.path for k in every if re.search(head, k.path) and id(k.variable) not in place]
    if not found:
        raise ValueError(f"`head` must be found in the path of a kernel outside of branches. Received: head={head!r}")
    return found


def _notes(model: Any, has_scalars: bool) -> list[str]:
    notes = normalization_notes(model)
    if not has_scalars:
        notes.append("No layers.ScalarAffine in the model: the paper's third rule is left out.")
    left = other_matrices(model)
    return notes + ([f"Left as they are: {report.listed(left)}."] if left else [])


def normalization_notes(model: Any) -> list[str]:
    """Says which normalization layers there are, for methods that are made for models without."""
    names = [layer.name for layer in layers_in_order(model) if isinstance(layer, NORMALIZATIONS)]
    return [f"Made for models without normalization, and there is {report.listed(names)}."] if names else []

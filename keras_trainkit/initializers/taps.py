"""Convolution kernels that are zero but for one tap: what several initializers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops


def dimensions(shape: Sequence[int], name: str) -> tuple[list[int], int, int]:
    """The spatial sizes, input and output channels of a kernel (..., inputs, outputs).

    Raises:
        ValueError: for another rank than that of a 1D, 2D or 3D convolution.
    """
    if not 3 <= len(shape) <= 5:
        raise ValueError(
            f"{name} is for kernels of 1D, 2D and 3D convolutions, of shape (..., inputs, outputs) with 3 to 5 axes. "
            f"Received: shape={tuple(shape)}"
        )
    *spatial, inputs, outputs = (int(size) for size in shape)
    return spatial, inputs, outputs


def at_centre(matrix: Any, spatial: Sequence[int]) -> Any:
    """The kernel whose central tap is `matrix` (inputs, outputs), zero elsewhere.

    Of an even number of taps it is the one before the middle, which stands over the output's own position where the
    padding is "same".
    """
    before = [(size - 1) // 2 for size in spatial]
    widths = [(left, size - 1 - left) for left, size in zip(before, spatial, strict=True)]
    return ops.pad(ops.reshape(matrix, (*[1] * len(spatial), *matrix.shape)), [*widths, (0, 0), (0, 0)])


def in_groups(name: str, groups: int, outputs: int) -> int:
    """The output channels of each group.

    Raises:
        ValueError: if they cannot be divided.
    """
    if outputs % groups:
        raise ValueError(f"`{name}` must divide the {outputs} output channels of the kernel. Received: {name}={groups}")
    return outputs // groups

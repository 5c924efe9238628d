"""Twins of the optimizers that see a variable as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array


class Muon:
    """Jordan et al., 2024: momentum, Newton-Schulz; the scales of Liu et al., 2025, arXiv:2502.16982, and others.

    The array is a matrix (inputs, outputs) once all axes but the last are flattened; `stacked` keeps the first axis
    apart and treats each of its matrices alone.
    """

    def __init__(
        self,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale: str = "original",
        steps: int = 5,
        weight_decay: float = 0.0,
        stacked: bool = False,
    ) -> None:
        self.momentum, self.nesterov, self.scale, self.steps = momentum, nesterov, scale, steps
        self.weight_decay, self.stacked, self.mean = weight_decay, stacked, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.mean = self.momentum * self.mean + (1 - self.momentum) * gradient
        ahead = self.momentum * self.mean + (1 - self.momentum) * gradient if self.nesterov else self.mean
        if self.stacked:
            direction = np.stack([self._orthogonal(matrix) for matrix in ahead])
        else:
            direction = self._orthogonal(ahead)
        return -rate * direction - rate * self.weight_decay * parameter

    def _orthogonal(self, kernel: Array) -> Array:
        # Written on torch's (outputs, inputs), as the author has it.
        x = kernel.reshape(-1, kernel.shape[-1]).T
        outputs, inputs = x.shape
        factor = {
            "original": max(1.0, outputs / inputs) ** 0.5,
            "rms": 0.2 * max(outputs, inputs) ** 0.5,
            "spectral": (outputs / inputs) ** 0.5,
            "none": 1.0,
        }[self.scale]
        x = x / max(float(np.linalg.norm(x)), 1e-7)
        for _ in range(self.steps):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        return factor * x.T.reshape(kernel.shape)


class Ratio:
    """Another twin at a fraction of the learning rate, with decoupled decay."""

    def __init__(self, inner: Any, ratio: float, weight_decay: float = 0.0) -> None:
        self.inner, self.ratio, self.weight_decay = inner, ratio, weight_decay

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        rate = rate * self.ratio
        return self.inner.displacement(parameter, gradient, rate) - rate * self.weight_decay * parameter

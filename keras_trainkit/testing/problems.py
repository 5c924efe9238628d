"""Small problems with known answers, on which an optimizer either arrives or does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """A smooth loss with its gradient, in NumPy.

    Attributes:
        initial: list of arrays to start from.
        loss: list of arrays -> float; its minimum is 0.
        gradient: list of arrays -> list of arrays.
        steps: how many updates a good learning rate needs at most.
        target: the loss to reach.
    """

    initial: list[np.ndarray]
    loss: Callable[[list[np.ndarray]], float]
    gradient: Callable[[list[np.ndarray]], list[np.ndarray]]
    steps: int
    target: float


def parabola() -> Problem:
    """An axis-parallel bowl whose curvatures are 1 to 10."""
    curvature = np.linspace(1.0, 10.0, 6)
    return Problem(
        [np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5])],
        lambda p: float(0.5 * (curvature * p[0] ** 2).sum()),
        lambda p: [curvature * p[0]],
        steps=500,
        target=1e-2,
    )


def rosenbrock() -> Problem:
    """A bent valley (Rosenbrock, 1960), from (-1.2, 1); the minimum is at (1, 1). The scale is 1/100."""

    def loss(p: list[np.ndarray]) -> float:
        x, y = p[0]
        return float(((1 - x) ** 2 + 100 * (y - x**2) ** 2) / 100)

    def gradient(p: list[np.ndarray]) -> list[np.ndarray]:
        x, y = p[0]
        return [np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)]) / 100]

    return Problem([np.array([-1.2, 1.0])], loss, gradient, steps=4000, target=1e-3)


def matrix() -> Problem:
    """Linear regression onto a known matrix and bias: 0.5 mean |x W + b - y|^2 over 32 points in 6 dimensions."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(32, 6))
    weights, bias = rng.normal(size=(6, 4)), rng.normal(size=4)
    y = x @ weights + bias

    def residual(p: list[np.ndarray]) -> np.ndarray:
        return x @ p[0] + p[1] - y

    return Problem(
        [rng.normal(size=(6, 4)) * 0.1, np.zeros(4)],
        lambda p: float(0.5 * (residual(p) ** 2).sum(axis=1).mean()),
        lambda p: [x.T @ residual(p) / len(x), residual(p).mean(axis=0)],
        steps=1500,
        target=2e-2,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {"parabola": parabola, "rosenbrock": rosenbrock, "matrix": matrix}


def minimize(optimizer: Any, problem: Problem) -> float:
    """The smallest loss that `optimizer` saw in `problem.steps` updates, in float64."""
    import keras

    variables = [keras.Variable(p, dtype="float64", name=f"p{i}") for i, p in enumerate(problem.initial)]
    optimizer.build(variables)
    best = np.inf
    for _ in range(problem.steps):
        values = [keras.ops.convert_to_numpy(v) for v in variables]
        best = min(best, problem.loss(values))
        if best <= problem.target:
            break
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in problem.gradient(values)], variables)
    return best

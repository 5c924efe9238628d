"""Small problems with known answers, on which an optimizer either arrives or does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# Keras computes in float64 on TensorFlow, but in float32 at most on JAX.
WIDEST = "float64" if keras.backend.backend() == "tensorflow" else "float32"
EXACT = 1e-10 if WIDEST == "float64" else 3e-5
"""How far a value may be off, relative or absolute, and still count as the same."""


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
    """The smallest loss that `optimizer` saw in `problem.steps` updates."""
    step = Stepper(optimizer, problem.initial)
    best = np.inf
    for _ in range(problem.steps):
        values = step.parameters()
        best = min(best, problem.loss(values))
        if best <= problem.target:
            break
        step(problem.gradient(values))
    return best


class Stepper:
    """Drives an optimizer on free variables, compiled as `fit` compiles it, on TensorFlow and JAX.

    Args:
        optimizer: not yet built.
        initial: list of arrays; variable i is named `p<i>`.
        dtype: of the variables.
        jit_compile: compile with XLA; JAX always does.
        names: of the variables, instead of `p<i>`.
    """

    def __init__(
        self,
        optimizer: Any,
        initial: list[np.ndarray],
        dtype: str = WIDEST,
        jit_compile: bool = False,
        names: list[str] | None = None,
    ) -> None:
        self.optimizer, self.dtype = optimizer, dtype
        names = names or [f"p{i}" for i in range(len(initial))]
        self.variables = [keras.Variable(p, dtype=dtype, name=n) for p, n in zip(initial, names, strict=True)]
        optimizer.build(self.variables)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            apply = tf.function(lambda g: optimizer.apply(g, self.variables), jit_compile=jit_compile)
            self._step: Callable[[list[Any]], Any] = apply
        else:
            import jax

            compiled = jax.jit(optimizer.stateless_apply)
            self._step = lambda g: self._assign(compiled(self._own(), g, [v.value for v in self.variables]))

    def __call__(self, gradients: list[Any]) -> None:
        """One step with these gradients."""
        self._step([self._tensor(g) for g in gradients])

    def parameters(self) -> list[np.ndarray]:
        """The variables' values."""
        return [keras.ops.convert_to_numpy(v) for v in self.variables]

    def run(self, gradients: list[list[Any]]) -> list[np.ndarray]:
        """The variables' values after a step with each list of gradients."""
        for step in gradients:
            self(step)
        return self.parameters()

    def _tensor(self, gradient: Any) -> Any:
        return keras.ops.convert_to_tensor(gradient, self.dtype) if isinstance(gradient, np.ndarray) else gradient

    def _own(self) -> list[Any]:
        return [v.value for v in self.optimizer.variables]

    def _assign(self, new: Any) -> None:
        for variable, value in zip([*self.variables, *self.optimizer.variables], [*new[0], *new[1]], strict=True):
            variable.assign(value)

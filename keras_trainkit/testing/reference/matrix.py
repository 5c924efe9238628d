"""Twins of the optimizers that see a variable as a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Callable
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


class SOAP:
    """Vyas et al., 2024, arXiv:2409.11321, algorithm 3: every axis has its basis; the first gradient only makes them.

    `turns` says which axes of the array, seen in the shape `view`, have a basis; None takes all, of arrays of two axes
    and more.
    """

    def __init__(
        self,
        beta_1: float = 0.95,
        beta_2: float = 0.95,
        shampoo_beta: float = 0.95,
        epsilon: float = 1e-8,
        frequency: int = 10,
        turns: list[bool] | None = None,
        view: list[int] | None = None,
        normalize: bool = False,
        debias: bool = True,
    ) -> None:
        self.beta_1, self.beta_2, self.shampoo_beta, self.epsilon = beta_1, beta_2, shampoo_beta, epsilon
        self.frequency, self.turns, self.view = frequency, turns, view
        self.normalize, self.debias = normalize, debias
        self.mean, self.squares, self.step = ZERO, ZERO, -1
        self.covariances: list[Array] = []
        self.bases: list[Array] = []

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        gradient = gradient.reshape(self.view or gradient.shape)
        self.step += 1
        move = self._move(gradient, rate) if self.step else np.zeros_like(gradient)
        turns = self.turns if self.turns is not None else [gradient.ndim > 1] * gradient.ndim
        for axis, size in enumerate(gradient.shape):
            if self.step == 0:
                self.covariances.append(np.zeros((size, size)))
                self.bases.append(np.eye(size))
            if not turns[axis]:
                continue
            flat = np.moveaxis(gradient, axis, 0).reshape(size, -1)
            mixed = self.shampoo_beta * self.covariances[axis] + (1 - self.shampoo_beta) * flat @ flat.T
            self.covariances[axis] = mixed
            if self.step == 0:
                self.bases[axis] = np.linalg.eigh(mixed)[1][:, ::-1]
            elif self.step % self.frequency == 0:
                values = np.diag(self.bases[axis].T @ mixed @ self.bases[axis])
                order = np.argsort(-values)
                self.squares = np.take(self.squares, order, axis)
                self.bases[axis] = np.linalg.qr(mixed @ self.bases[axis][:, order])[0]
        return move.reshape(parameter.shape)

    def _move(self, gradient: Array, rate: float) -> Array:
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * self._turn(gradient, False) ** 2
        direction = self._turn(self._turn(self.mean, False) / (np.sqrt(self.squares) + self.epsilon), True)
        if self.debias:
            direction = direction * np.sqrt(1 - self.beta_2**self.step) / (1 - self.beta_1**self.step)
        if self.normalize:
            direction = direction / np.sqrt(np.mean(direction**2))
        return -rate * direction

    def _turn(self, x: Array, back: bool) -> Array:
        for axis, basis in enumerate(self.bases):
            x = np.moveaxis(np.tensordot(basis if back else basis.T, x, axes=(1, axis)), 0, axis)
        return x


class Shampoo:
    """Gupta et al., 2018, arXiv:1802.09568, algorithm 2; blocks and grafts of arXiv:2002.09018 and 2309.06497.

    The array is seen in the shape `view`, and cut along its axes at multiples of `blocks`.
    """

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        frequency: int = 10,
        start: int = 10,
        root: float | None = None,
        grafting: str = "adam",
        grafting_beta_2: float = 0.999,
        grafting_epsilon: float = 1e-8,
        view: list[int] | None = None,
        blocks: list[int] | None = None,
        momentum: float = 0.0,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.frequency, self.start, self.root, self.grafting = frequency, start, root, grafting
        self.grafting_beta_2, self.grafting_epsilon = grafting_beta_2, grafting_epsilon
        self.view, self.blocks, self.momentum, self.velocity = view, blocks, momentum, ZERO
        self.mean, self.squares, self.step = ZERO, ZERO, 0
        self.covariances: dict[Any, Array] = {}
        self.roots: dict[Any, Array] = {}

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        gradient = gradient.reshape(self.view or gradient.shape or [1])
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        mean = self.mean / (1 - self.beta_1**self.step)
        graft = self._graft(gradient, mean)
        move = np.zeros_like(gradient)
        sizes = self.blocks or list(gradient.shape)
        starts = [range(0, length, size) for length, size in zip(gradient.shape, sizes, strict=True)]
        for corner in itertools.product(*starts):
            part = tuple(slice(begin, begin + size) for begin, size in zip(corner, sizes, strict=True))
            move[part] = self._block(corner, gradient[part], mean[part], graft[part])
        self.velocity = self.momentum * self.velocity - rate * move.reshape(parameter.shape)
        return self.velocity

    def _graft(self, gradient: Array, mean: Array) -> Array:
        if self.grafting in ("none", "sgd"):
            return mean
        if self.grafting == "adagrad":
            self.squares = self.squares + gradient**2
            return mean / (np.sqrt(self.squares) + self.grafting_epsilon)
        self.squares = self.grafting_beta_2 * self.squares + (1 - self.grafting_beta_2) * gradient**2
        bias = 1 - self.grafting_beta_2**self.step if self.grafting == "adam" else 1.0
        return mean / (np.sqrt(self.squares / bias) + self.grafting_epsilon)

    def _block(self, corner: tuple[int, ...], gradient: Array, mean: Array, graft: Array) -> Array:
        direction = mean
        for axis, size in enumerate(gradient.shape):
            key = (*corner, "axis", axis)
            flat = np.moveaxis(gradient, axis, 0).reshape(size, -1)
            decay, share = (1.0, 1.0) if self.beta_2 == 1 else (self.beta_2, 1 - self.beta_2)
            self.covariances[key] = decay * self.covariances.get(key, ZERO) + share * flat @ flat.T
            if self.step >= self.start and (self.step - self.start) % self.frequency == 0:
                bias = 1.0 if self.beta_2 == 1 else 1 - self.beta_2**self.step
                values, vectors = np.linalg.eigh(self.covariances[key] / bias)
                damped = np.maximum(values, 0) + self.epsilon * values[-1]
                power = -1 / (self.root or 2 * gradient.ndim)
                self.roots[key] = vectors @ np.diag(damped**power) @ vectors.T
            if self.step >= self.start:
                direction = np.moveaxis(np.tensordot(self.roots[key], direction, axes=(1, axis)), 0, axis)
        if self.step < self.start:
            return graft
        if self.grafting == "none":
            return direction
        return direction * np.linalg.norm(graft) / np.linalg.norm(direction)


class Kron:
    """Li, 2022, arXiv:2211.04422, section 3, whitening, with the schedules of Walters' Kron.

    `triangular` says so of each axis. `uniform(step, stream)` and `normal(shape, step)` are the random numbers that the
    optimizer draws.
    """

    def __init__(
        self,
        triangular: list[bool],
        uniform: Callable[[int, int], float],
        normal: Callable[[tuple[int, ...], int], Array],
        beta_1: float = 0.9,
        probability: float | None = None,
        momentum_fits: bool = True,
        rate: float = 0.1,
        scale: float = 1.0,
    ) -> None:
        self.triangular, self.uniform, self.normal = triangular, uniform, normal
        self.beta_1, self.probability, self.momentum_fits = beta_1, probability, momentum_fits
        self.rate, self.scale, self.mean, self.step = rate, scale, ZERO, 0
        self.factors: list[Array] = []

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        if self.step == 1:
            self.factors = [self.scale ** (1 / gradient.ndim) * np.eye(size) for size in gradient.shape]
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        mean = self.mean / (1 - self.beta_1**self.step)
        chance = self.probability
        if chance is None:
            chance = min(1.0, max(0.03, float(np.exp(-0.001 * (self.step - 500)))))
        if self.uniform(self.step, 0) < chance:
            if gradient.ndim > 1 and self.uniform(self.step, 1) < 0.01:
                sizes = [np.abs(factor).max() for factor in self.factors]
                common = np.prod(sizes) ** (1 / len(sizes))
                self.factors = [factor * common / size for factor, size in zip(self.factors, sizes, strict=True)]
            self._fit(mean if self.momentum_fits else gradient, self.normal(gradient.shape, self.step))
        direction = mean
        for axis, factor in enumerate(self.factors):
            direction = self._along(factor.T @ factor, direction, axis)
        direction = direction * min(1.0, 1.1 / (np.sqrt(np.mean(direction**2)) + 1e-12))
        return -rate * direction

    def _fit(self, signal: Array, noise: Array) -> None:
        for axis, factor in enumerate(self.factors):
            signal = self._along(factor, signal, axis)
            noise = self._along(np.linalg.inv(factor).T, noise, axis)
        for axis, factor in enumerate(self.factors):
            x, y = (np.moveaxis(z, axis, 0).reshape(len(factor), -1) for z in (signal, noise))
            difference, total = x @ x.T - y @ y.T, x @ x.T + y @ y.T
            if self.triangular[axis]:
                norm = self._bound(total)
                self.factors[axis] = factor - self.rate / norm * np.triu(difference) @ factor
            else:
                norm = np.diag(total).max()
                self.factors[axis] = factor - self.rate / norm * np.diag(np.diag(difference)) @ factor

    def _along(self, matrix: Array, x: Array, axis: int) -> Array:
        return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)

    def _bound(self, matrix: Array) -> float:
        column = matrix[:, np.argmax((matrix**2).sum(axis=0))]
        start = column @ matrix
        return float(np.linalg.norm(matrix @ (start / np.linalg.norm(start))))

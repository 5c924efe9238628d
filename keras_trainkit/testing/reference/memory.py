"""Twins of the optimizers that save memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array
from keras_trainkit.testing.reference.randomness import bits, normal


def numbered(algorithm: Callable[..., Any]) -> Callable[[], Any]:
    """Gives each twin that it makes the next number as `stream`, because every variable has its own random numbers."""
    count = itertools.count()
    return lambda: algorithm(stream=next(count))


def bfloat16(value: float, random: int) -> float:
    """`value` rounded to one of its two neighbours in bfloat16: to the larger one, if `random` of 2**16 carries."""
    word = int(np.float32(value).view(np.uint32))
    below = word // 2**16 * 2**16
    carries = word - below + random >= 2**16
    return float(np.uint32(below + 2**16 * carries).view(np.float32))


class Adam16:
    """Adam (Kingma and Ba, 2014) whose two averages are rounded to bfloat16 at random (Gupta et al., 2015)."""

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        epsilon_hat: bool = True,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.epsilon_hat = beta_1, beta_2, epsilon, epsilon_hat
        self.seed, self.stream = seed, stream
        self.mean, self.squares, self.step = ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        words = bits(gradient.shape, self.seed, self.step, self.stream)
        self.mean, self.squares = np.empty_like(gradient), np.empty_like(gradient)
        for place in np.ndindex(gradient.shape):
            word = int(words[place])
            self.mean[place] = bfloat16(mean[place], word % 2**16)
            self.squares[place] = bfloat16(squares[place], word // 2**16)
        bias_1, bias_2 = 1 - self.beta_1**self.step, 1 - self.beta_2**self.step
        if self.epsilon_hat:
            return -rate * np.sqrt(bias_2) / bias_1 * mean / (np.sqrt(squares) + self.epsilon)
        return -rate * (mean / bias_1) / (np.sqrt(squares / bias_2) + self.epsilon)


class AdamMini:
    """Zhang et al., 2024, arXiv:2406.16793, algorithm 1; `cut` lists the axes that have a block for each index."""

    def __init__(
        self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8, cut: list[int] | None = None
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.cut = beta_1, beta_2, epsilon, cut
        self.mean, self.step = ZERO, 0
        self.squares: dict[Any, float] = {}

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        cut = self.cut
        if cut is None:  # a vector is one block, each output of a kernel another
            cut = [gradient.ndim - 1] if gradient.ndim > 1 else []
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        bias_1, bias_2 = 1 - self.beta_1**self.step, 1 - self.beta_2**self.step
        move = np.zeros_like(gradient)
        for index in np.ndindex(*[gradient.shape[axis] for axis in cut]):
            block: Any = [slice(None)] * gradient.ndim
            for axis, place in zip(cut, index, strict=True):
                block[axis] = place
            block = tuple(block)
            last = self.squares.get(index, 0.0)
            self.squares[index] = self.beta_2 * last + (1 - self.beta_2) * np.mean(gradient[block] ** 2)
            root = np.sqrt(self.squares[index] / bias_2)
            move[block] = -rate * (self.mean[block] / bias_1) / (root + self.epsilon)
        return move


class APOLLO:
    """Zhu et al., 2024, arXiv:2412.05270, algorithm 1, with the limit of Chen et al., 2024, arXiv:2410.01623.

    The array is a matrix (inputs, outputs) once all axes but the last are flattened.
    """

    def __init__(
        self,
        rank: int,
        scale: float = 1.0,
        scaling: str = "channel",
        update_interval: int = 200,
        growth_limit: float | None = 1.01,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        self.rank, self.scale, self.scaling, self.interval = rank, scale, scaling, update_interval
        self.limit, self.seed, self.stream = growth_limit, seed, stream
        self.mean, self.squares, self.norm, self.step = ZERO, ZERO, 0.0, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        matrix = gradient.reshape(-1, gradient.shape[-1])
        if matrix.shape[0] > matrix.shape[1]:
            return self._wide(matrix.T, rate).T.reshape(gradient.shape)
        return self._wide(matrix, rate).reshape(gradient.shape)

    def _wide(self, matrix: Array, rate: float) -> Array:
        interval = self.step // self.interval
        self.step += 1
        projection = normal([self.rank, matrix.shape[0]], self.seed, interval, self.stream) / np.sqrt(self.rank)
        seen = projection @ matrix
        self.mean = 0.9 * self.mean + 0.1 * seen
        self.squares = 0.999 * self.squares + 0.001 * seen**2
        adam = self.mean / (np.sqrt(self.squares) + 1e-6)
        scaled = np.zeros_like(matrix)
        for column in range(matrix.shape[1]):
            chosen = column if self.scaling == "channel" else slice(None)
            factor = np.linalg.norm(adam[:, chosen]) / (np.linalg.norm(seen[:, chosen]) + 1e-8)
            scaled[:, column] = factor * matrix[:, column]
        if self.limit is not None:
            norm = float(np.linalg.norm(scaled))
            if self.norm > 0:
                divisor = max(norm / (self.norm + 1e-8), self.limit) / self.limit
                scaled, norm = scaled / divisor, norm / divisor
            self.norm = norm
        return -rate * np.sqrt(1 - 0.999**self.step) / (1 - 0.9**self.step) * np.sqrt(self.scale) * scaled

"""Twins of the optimizers that save memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array
from keras_trainkit.testing.reference.randomness import bits


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

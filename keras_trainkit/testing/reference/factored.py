"""The twin of Adafactor."""

from __future__ import annotations

import itertools

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array


class Adafactor:
    """Shazeer and Stern, 2018, arXiv:1804.04235, algorithms 4 to 6, a matrix at a time."""

    def __init__(
        self,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        scale_parameter: bool = True,
        beta_1: float = 0.0,
        largest: bool = False,
        smallest: int = 1,
    ) -> None:
        self.exponent, self.epsilon_1, self.epsilon_2 = beta_2_decay, epsilon_1, epsilon_2
        self.threshold, self.relative, self.scaled = clip_threshold, relative_step, scale_parameter
        self.beta_1, self.largest, self.smallest = beta_1, largest, smallest
        self.squares, self.mean, self.step = ZERO, ZERO, 0
        self.rows: dict[tuple[int, ...], Array] = {}
        self.columns: dict[tuple[int, ...], Array] = {}

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        decay = 1 - self.step**self.exponent
        square = gradient**2 + self.epsilon_1
        update = gradient / np.sqrt(self._second_moment(square, decay))
        update = update / max(1.0, float(np.sqrt((update**2).mean())) / self.threshold)
        rho = min(rate, 1 / np.sqrt(self.step)) if self.relative else rate
        size = max(self.epsilon_2, float(np.sqrt((parameter**2).mean()))) if self.scaled else 1.0
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * -rho * size * update
        return self.mean

    def _second_moment(self, square: Array, decay: float) -> Array:
        axes = list(np.argsort(square.shape, kind="stable")) if self.largest else list(range(square.ndim))
        pair = sorted(axes[-2:])
        if square.ndim < 2 or min(square.shape[axis] for axis in pair) < self.smallest:
            self.squares = decay * self.squares + (1 - decay) * square
            return self.squares
        # Every matrix that the other axes leave has rows and columns of its own.
        moved = np.moveaxis(square, pair, (-2, -1))
        result = np.empty_like(moved)
        for place in itertools.product(*(range(size) for size in moved.shape[:-2])):
            matrix = moved[place]
            self.rows[place] = decay * self.rows.get(place, ZERO) + (1 - decay) * matrix.mean(axis=1)
            self.columns[place] = decay * self.columns.get(place, ZERO) + (1 - decay) * matrix.mean(axis=0)
            result[place] = np.outer(self.rows[place], self.columns[place]) / self.rows[place].mean()
        return np.moveaxis(result, (-2, -1), pair)

"""Twins of the Schedule-Free optimizers, in the words of the paper: three sequences x, y and z."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array


class ScheduleFreeSGD:
    """Defazio et al., 2024, arXiv:2405.15682, equations 3 to 5, with the authors' warm-up and weights.

    The whole history of z and its weights is kept, and `x` is their weighted average, as the paper defines it.
    """

    def __init__(
        self,
        beta: float = 0.9,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.beta, self.warmup_steps, self.r, self.power = beta, warmup_steps, r, weight_lr_power
        self.weight_decay, self.step, self.largest = weight_decay, 0, 0.0
        self.z: Any = None
        self.history: list[Array] = []
        self.weights: list[float] = []

    def direction(self, gradient: Array) -> Array:
        """What to go against."""
        return gradient

    def warmed(self, rate: float) -> float:
        """The rate of this step."""
        return rate * min(1.0, self.step / self.warmup_steps) if self.warmup_steps else rate

    def x(self) -> Array:
        """The average of the z's; the first point, as long as no z counts."""
        if sum(self.weights) == 0:
            return self.first
        return np.average(np.stack(self.history), axis=0, weights=np.array(self.weights))

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        if self.z is None:
            self.first = self.z = np.array(parameter)
        self.step += 1
        step = self.warmed(rate)
        self.largest = max(self.largest, step)
        decayed = self.direction(gradient) + self.weight_decay * parameter
        self.z = self.z - step * decayed
        self.history.append(self.z)
        self.weights.append(self.step**self.r * self.largest**self.power)
        return (1 - self.beta) * self.z + self.beta * self.x() - parameter


class ScheduleFreeAdamW(ScheduleFreeSGD):
    """The same, section 4.1: the direction is divided by the root of the debiased average of squares."""

    def __init__(self, beta: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8, **others: Any) -> None:
        super().__init__(beta, **others)
        self.beta_2, self.epsilon, self.squares = beta_2, epsilon, ZERO

    def direction(self, gradient: Array) -> Array:
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        return gradient / (np.sqrt(self.squares / (1 - self.beta_2**self.step)) + self.epsilon)


class ScheduleFreeRAdam(ScheduleFreeAdamW):
    """With the rectification of Liu et al., 2019, arXiv:1908.03265, where rho exceeds 4, as the authors' package."""

    def __init__(self, *arguments: Any, silent_sgd_phase: bool = True, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.silent = silent_sgd_phase

    def rho(self) -> float:
        """The length of the approximated simple average."""
        decayed = self.beta_2**self.step
        return 2 / (1 - self.beta_2) - 1 - 2 * self.step * decayed / (1 - decayed)

    def direction(self, gradient: Array) -> Array:
        scaled = super().direction(gradient)
        return scaled if self.rho() > 4 else gradient

    def warmed(self, rate: float) -> float:
        rho, longest = self.rho(), 2 / (1 - self.beta_2) - 1
        if rho <= 4:
            return 0.0 if self.silent else rate
        return rate * np.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))

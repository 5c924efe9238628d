"""Twins of the optimizers without a learning rate to tune."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array
from keras_trainkit.testing.reference.twin import Twin


class JointTwin(Twin):
    """A twin whose algorithm sees all arrays at once: `displacements(parameters, gradients, rate)`."""

    def run(self, initial: list[Array], gradients: list[list[Array]], rate: float) -> list[Array]:
        algorithm = self.make()
        parameters = [np.array(p) for p in initial]
        for step in gradients:
            moves = algorithm.displacements(parameters, step, rate)
            parameters = [p + move for p, move in zip(parameters, moves, strict=True)]
        return parameters


class Prodigy:
    """Mishchenko and Defazio, 2023, arXiv:2306.06101, algorithm 4, on all arrays end to end."""

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        beta_3: float | None = None,
        epsilon: float = 1e-8,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = np.inf,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        slice_p: int = 1,
        weight_decay: float = 0.0,
        decouple: bool = True,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.d0 = beta_1, beta_2, epsilon, d0
        self.beta_3 = beta_2**0.5 if beta_3 is None else beta_3
        self.d_coef, self.growth = d_coef, growth_rate
        self.debias, self.safeguard = use_bias_correction, safeguard_warmup
        self.every, self.decay, self.decouple = slice_p, weight_decay, decouple
        self.d = self.d_max = d0
        self.mean, self.squares, self.sum, self.top, self.step = ZERO, ZERO, ZERO, 0.0, 0
        self.start: Any = None

    def displacements(self, parameters: list[Array], gradients: list[Array], rate: float) -> list[Array]:
        self.step += 1
        w, g = _joined(parameters), _joined(gradients)
        if not self.decouple:
            g = g + self.decay * w
        chosen = np.concatenate([np.arange(p.size) % self.every == 0 for p in parameters])
        if self.start is None:
            self.start = w
        size = self.d * rate
        if self.debias:
            size *= np.sqrt(1 - self.beta_2**self.step) / (1 - self.beta_1**self.step)
        weight = self.d if self.safeguard else size
        self.top = self.beta_3 * self.top + self.d / self.d0 * size * float((g * (self.start - w))[chosen].sum())
        self.sum = self.beta_3 * self.sum + self.d / self.d0 * weight * g
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * self.d * g
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * self.d**2 * g**2
        found = self.d_coef * self.top / float(np.abs(self.sum[chosen]).sum())
        if self.d == self.d0:
            self.d = max(self.d, found)
        self.d_max = max(self.d_max, found)
        self.d = min(self.d_max, self.d * self.growth)
        move = -size * self.mean / (np.sqrt(self.squares) + self.d * self.epsilon)
        if self.decouple:
            move = move - size * self.decay * w
        return _parted(move, parameters)


class DAdaptAdam:
    """Defazio and Mishchenko, 2023, arXiv:2301.07733, algorithm 5, on all arrays end to end."""

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        d0: float = 1e-6,
        growth_rate: float = np.inf,
        use_bias_correction: bool = False,
        weight_decay: float = 0.0,
        decouple: bool = True,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.d = beta_1, beta_2, epsilon, d0
        self.growth, self.debias, self.decay, self.decouple = growth_rate, use_bias_correction, weight_decay, decouple
        self.mean, self.squares, self.sum, self.top, self.step = ZERO, ZERO, ZERO, 0.0, 0

    def displacements(self, parameters: list[Array], gradients: list[Array], rate: float) -> list[Array]:
        self.step += 1
        w, g = _joined(parameters), _joined(gradients)
        if not self.decouple:
            g = g + self.decay * w
        slow = self.beta_2**0.5
        size = self.d * rate
        if self.debias:
            size *= np.sqrt(1 - self.beta_2**self.step) / (1 - self.beta_1**self.step)
        progress = size * float((g * self.sum / (np.sqrt(self.squares) + self.epsilon)).sum())
        self.top = slow * self.top + (1 - slow) * progress
        self.sum = slow * self.sum + (1 - slow) * size * g
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * size * g
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * g**2
        found = self.top / ((1 - slow) * float(np.abs(self.sum).sum()))
        self.d = max(self.d, min(found, self.d * self.growth))
        move = -self.mean / (np.sqrt(self.squares) + self.epsilon)
        if self.decouple:
            move = move - size * self.decay * w
        return _parted(move, parameters)


class COCOB:
    """Orabona and Tommasi, 2017, arXiv:1705.07795, algorithm 2, with a multiplier of the distance from the start."""

    def __init__(self, alpha: float = 100.0, epsilon: float = 1e-8) -> None:
        self.alpha, self.largest = alpha, ZERO + epsilon
        self.sizes, self.reward, self.theta, self.bet = ZERO, ZERO, ZERO, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.largest = np.maximum(self.largest, np.abs(gradient))
        self.sizes = self.sizes + np.abs(gradient)
        self.reward = np.maximum(self.reward + self.bet * -gradient, 0)
        self.theta = self.theta - gradient
        share = self.theta / (self.largest * np.maximum(self.sizes + self.largest, self.alpha * self.largest))
        last, self.bet = self.bet, share * (self.largest + self.reward)
        return rate * (self.bet - last)


def _joined(arrays: list[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


def _parted(flat: Array, like: list[Array]) -> list[Array]:
    ends = np.cumsum([array.size for array in like])
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends[:-1]), like, strict=True)]

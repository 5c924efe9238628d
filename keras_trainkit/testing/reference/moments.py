"""Twins of the optimizers on running moments."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array


class Adam:
    """Kingma and Ba, 2014, arXiv:1412.6980, in the form at the end of section 2; AMSGrad: Reddi et al., 2018."""

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        epsilon_hat: bool = True,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.amsgrad, self.epsilon_hat = amsgrad, epsilon_hat
        self.mean, self.squares, self.largest, self.step = ZERO, ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        self.largest = np.maximum(self.largest, self.squares)
        second = self.largest if self.amsgrad else self.squares
        bias_1, bias_2 = 1 - self.beta_1**self.step, 1 - self.beta_2**self.step
        if self.epsilon_hat:
            return -rate * np.sqrt(bias_2) / bias_1 * self.mean / (np.sqrt(second) + self.epsilon)
        return -rate * (self.mean / bias_1) / (np.sqrt(second / bias_2) + self.epsilon)


class RAdam:
    """Liu et al., 2019, arXiv:1908.03265, algorithm 2, with the authors' epsilon."""

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.mean, self.squares, self.step = ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        t = self.step
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        debiased = self.mean / (1 - self.beta_1**t)
        rho_inf = 2 / (1 - self.beta_2) - 1
        rho = rho_inf - 2 * t * self.beta_2**t / (1 - self.beta_2**t)
        if rho <= 5:
            return -rate * debiased
        rectification = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        adaptive = np.sqrt(1 - self.beta_2**t) / (np.sqrt(self.squares) + self.epsilon)
        return -rate * rectification * debiased * adaptive


class Lion:
    """Chen et al., 2023, arXiv:2302.06675, program 1."""

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.99) -> None:
        self.beta_1, self.beta_2, self.momentum = beta_1, beta_2, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        direction = np.sign(self.beta_1 * self.momentum + (1 - self.beta_1) * gradient)
        self.momentum = self.beta_2 * self.momentum + (1 - self.beta_2) * gradient
        return -rate * direction


class AdaBelief:
    """Zhuang et al., 2020, arXiv:2010.07468, algorithm 2; rectified as Liu et al., 2019."""

    def __init__(
        self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-16, rectify: bool = False
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.rectify = beta_1, beta_2, epsilon, rectify
        self.mean, self.surprise, self.step = ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        t = self.step
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        deviation = (gradient - self.mean) ** 2
        self.surprise = self.beta_2 * self.surprise + (1 - self.beta_2) * deviation + self.epsilon
        debiased = self.mean / (1 - self.beta_1**t)
        bias_2 = 1 - self.beta_2**t
        if not self.rectify:
            return -rate * debiased / (np.sqrt(self.surprise / bias_2) + self.epsilon)
        rho_inf = 2 / (1 - self.beta_2) - 1
        rho = rho_inf - 2 * t * self.beta_2**t / bias_2
        if rho <= 5:
            return -rate * debiased
        rectification = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        return -rate * rectification * debiased * np.sqrt(bias_2) / (np.sqrt(self.surprise) + self.epsilon)


class Yogi:
    """Zaheer et al., 2018, algorithm 2, with debiasing."""

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-3,
        initial_momentum: float = 1e-6,
        initial_accumulator_value: float = 1e-6,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.mean, self.squares, self.step = ZERO + initial_momentum, ZERO + initial_accumulator_value, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        change = np.sign(self.squares - gradient**2) * gradient**2
        self.squares = self.squares - (1 - self.beta_2) * change
        debiased = self.mean / (1 - self.beta_1**self.step)
        return -rate * debiased / (np.sqrt(self.squares / (1 - self.beta_2**self.step)) + self.epsilon)


class NAdam:
    """Dozat, 2016, algorithm 2, with the momentum schedule of its section 2."""

    def __init__(
        self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8, momentum_decay: float = 4e-3
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.decay = beta_1, beta_2, epsilon, momentum_decay
        self.mean, self.squares, self.product, self.step = ZERO, ZERO, 1.0, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        t = self.step
        now = self.beta_1 * (1 - 0.5 * 0.96 ** (t * self.decay))
        then = self.beta_1 * (1 - 0.5 * 0.96 ** ((t + 1) * self.decay))
        self.product *= now
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        ahead = then * self.mean / (1 - self.product * then) + (1 - now) * gradient / (1 - self.product)
        return -rate * ahead / (np.sqrt(self.squares / (1 - self.beta_2**t)) + self.epsilon)


class Adamax:
    """Kingma and Ba, 2014, arXiv:1412.6980, algorithm 2, with Keras's epsilon."""

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.mean, self.largest, self.step = ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        self.largest = np.maximum(self.beta_2 * self.largest, np.abs(gradient))
        return -rate / (1 - self.beta_1**self.step) * self.mean / (self.largest + self.epsilon)


class ADOPT:
    """Taniguchi et al., 2024, arXiv:2411.02853, algorithm 2, with the clipping of its section 5."""

    def __init__(
        self, beta_1: float = 0.9, beta_2: float = 0.9999, epsilon: float = 1e-6, clip_exponent: float = 0.25
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon, self.exponent = beta_1, beta_2, epsilon, clip_exponent
        self.mean, self.squares, self.step = ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        if self.step == 1:
            self.squares = gradient**2
            return np.zeros_like(gradient)
        limit = (self.step - 1) ** self.exponent
        quotient = np.clip(gradient / np.maximum(np.sqrt(self.squares), self.epsilon), -limit, limit)
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * quotient
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        return -rate * self.mean


class AdEMAMix:
    """Pagliardini et al., 2024, arXiv:2409.03137, algorithm 1 with constant alpha and beta_3."""

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        beta_3: float = 0.9999,
        alpha: float = 5.0,
        epsilon: float = 1e-8,
    ) -> None:
        self.beta_1, self.beta_2, self.beta_3, self.alpha, self.epsilon = beta_1, beta_2, beta_3, alpha, epsilon
        self.fast, self.slow, self.squares, self.step = ZERO, ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        self.fast = self.beta_1 * self.fast + (1 - self.beta_1) * gradient
        self.slow = self.beta_3 * self.slow + (1 - self.beta_3) * gradient
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        mixed = self.fast / (1 - self.beta_1**self.step) + self.alpha * self.slow
        return -rate * mixed / (np.sqrt(self.squares / (1 - self.beta_2**self.step)) + self.epsilon)


class Adan:
    """Xie et al., 2022, arXiv:2208.06677, algorithm 1, with debiasing and the authors' betas; proximal decay."""

    def __init__(
        self,
        beta_1: float = 0.98,
        beta_2: float = 0.92,
        beta_3: float = 0.99,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.beta_1, self.beta_2, self.beta_3 = beta_1, beta_2, beta_3
        self.epsilon, self.weight_decay = epsilon, weight_decay
        self.mean, self.change, self.squares, self.step = ZERO, ZERO, ZERO, 0
        self.last: Any = None

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        moved = gradient - (gradient if self.last is None else self.last)
        self.last = gradient
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * gradient
        self.change = self.beta_2 * self.change + (1 - self.beta_2) * moved
        self.squares = self.beta_3 * self.squares + (1 - self.beta_3) * (gradient + self.beta_2 * moved) ** 2
        root = np.sqrt(self.squares / (1 - self.beta_3**self.step)) + self.epsilon
        step = self.mean / (1 - self.beta_1**self.step) / root
        step = step + self.beta_2 * self.change / (1 - self.beta_2**self.step) / root
        return (parameter - rate * step) / (1 + rate * self.weight_decay) - parameter


class MARS:
    """Yuan et al., 2024, arXiv:2411.10438, algorithm 2, the approximate form."""

    def __init__(self, beta_1: float = 0.95, beta_2: float = 0.99, epsilon: float = 1e-8, gamma: float = 0.025) -> None:
        self.scale, self.last = gamma * beta_1 / (1 - beta_1), ZERO
        self.adam = Adam(beta_1, beta_2, epsilon, epsilon_hat=False)

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        corrected = gradient + self.scale * (gradient - self.last)
        self.last = gradient
        return self.adam.displacement(parameter, corrected / max(1.0, float(np.linalg.norm(corrected))), rate)


class LaProp:
    """Ziyin et al., 2020, arXiv:2002.04839, algorithm 1."""

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-15) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.mean, self.squares, self.step = ZERO, ZERO, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        self.squares = self.beta_2 * self.squares + (1 - self.beta_2) * gradient**2
        normalized = gradient / (np.sqrt(self.squares / (1 - self.beta_2**self.step)) + self.epsilon)
        self.mean = self.beta_1 * self.mean + (1 - self.beta_1) * rate * normalized
        return -self.mean / (1 - self.beta_1**self.step)


class MADGRAD:
    """Defazio and Jelassi, 2021, arXiv:2101.11075, algorithm 1, with the authors' epsilon."""

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-6) -> None:
        self.momentum, self.epsilon = momentum, epsilon
        self.total, self.squares, self.step = ZERO, ZERO, 0
        self.initial: Any = None

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        if self.initial is None:
            self.initial = parameter.copy()
        self.step += 1
        weight = (rate + self.epsilon) * np.sqrt(self.step)
        self.total = self.total + weight * gradient
        self.squares = self.squares + weight * gradient**2
        target = self.initial - self.total / (np.cbrt(self.squares) + self.epsilon)
        return (1 - self.momentum) * (target - parameter)


class LAMB:
    """You et al., 2019, arXiv:1904.00962, algorithm 2, with the identity for phi."""

    def __init__(
        self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        self.adam, self.weight_decay = Adam(beta_1, beta_2, epsilon, epsilon_hat=False), weight_decay

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        step = -self.adam.displacement(parameter, gradient, 1.0) + self.weight_decay * parameter
        return -rate * np.linalg.norm(parameter) / np.linalg.norm(step) * step


class NovoGrad:
    """Ginsburg et al., 2019, arXiv:1905.11286, algorithm 1."""

    def __init__(
        self,
        beta_1: float = 0.95,
        beta_2: float = 0.98,
        epsilon: float = 1e-8,
        grad_averaging: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.share, self.weight_decay = (1 - beta_1 if grad_averaging else 1.0), weight_decay
        self.momentum, self.square, self.step = ZERO, 0.0, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        now = float((gradient**2).sum())
        self.square = now if self.step == 1 else self.beta_2 * self.square + (1 - self.beta_2) * now
        normalized = gradient / (np.sqrt(self.square) + self.epsilon) + self.weight_decay * parameter
        self.momentum = self.beta_1 * self.momentum + self.share * normalized
        return -rate * self.momentum

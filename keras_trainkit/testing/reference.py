"""Slow NumPy twins of the optimizers, written from the papers with no regard for speed: one array at a time.

A twin holds its state in plain attributes. `step(parameter, gradient, rate)` returns the new parameter. The twins of
`before` and `after` transforms are functions and classes of their own; `Twin` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
_ZERO: Any = 0.0  # the state of an array before its first step, whatever its shape


class GradientDescent:
    """SGD with momentum: Polyak, 1964; Nesterov's form by Sutskever et al., 2013."""

    def __init__(self, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.momentum, self.nesterov, self.velocity = momentum, nesterov, _ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.velocity = self.momentum * self.velocity - rate * gradient
        if self.nesterov:
            return self.momentum * self.velocity - rate * gradient
        return self.velocity


class Adagrad:
    """Duchi et al., 2011."""

    def __init__(self, initial_accumulator_value: float = 0.1, epsilon: float = 1e-7) -> None:
        self.total, self.epsilon = _ZERO + initial_accumulator_value, epsilon

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.total = self.total + gradient**2
        return -rate * gradient / np.sqrt(self.total + self.epsilon)


class Adadelta:
    """Zeiler, 2012, arXiv:1212.5701, algorithm 1."""

    def __init__(self, rho: float = 0.95, epsilon: float = 1e-7) -> None:
        self.rho, self.epsilon, self.gradients, self.steps = rho, epsilon, _ZERO, _ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.gradients = self.rho * self.gradients + (1 - self.rho) * gradient**2
        step = -np.sqrt(self.steps + self.epsilon) / np.sqrt(self.gradients + self.epsilon) * gradient
        self.steps = self.rho * self.steps + (1 - self.rho) * step**2
        return rate * step


class RMSprop:
    """Tieleman and Hinton, 2012; centered: Graves, 2013, arXiv:1308.0850."""

    def __init__(self, rho: float = 0.9, momentum: float = 0.0, epsilon: float = 1e-7, centered: bool = False) -> None:
        self.rho, self.momentum, self.epsilon, self.centered = rho, momentum, epsilon, centered
        self.squares, self.mean, self.velocity = _ZERO, _ZERO, _ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.squares = self.rho * self.squares + (1 - self.rho) * gradient**2
        variance = self.squares
        if self.centered:
            self.mean = self.rho * self.mean + (1 - self.rho) * gradient
            variance = self.squares - self.mean**2
        self.velocity = self.momentum * self.velocity - rate * gradient / np.sqrt(variance + self.epsilon)
        return self.velocity


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
        self.mean, self.squares, self.largest, self.step = _ZERO, _ZERO, _ZERO, 0

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
        self.mean, self.squares, self.step = _ZERO, _ZERO, 0

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
        self.beta_1, self.beta_2, self.momentum = beta_1, beta_2, _ZERO

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
        self.mean, self.surprise, self.step = _ZERO, _ZERO, 0

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
        self.mean, self.squares, self.step = _ZERO + initial_momentum, _ZERO + initial_accumulator_value, 0

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
        self.mean, self.squares, self.product, self.step = _ZERO, _ZERO, 1.0, 0

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
        self.mean, self.largest, self.step = _ZERO, _ZERO, 0

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
        self.mean, self.squares, self.step = _ZERO, _ZERO, 0

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
        self.fast, self.slow, self.squares, self.step = _ZERO, _ZERO, _ZERO, 0

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
        self.mean, self.change, self.squares, self.step = _ZERO, _ZERO, _ZERO, 0
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
        self.scale, self.last = gamma * beta_1 / (1 - beta_1), _ZERO
        self.adam = Adam(beta_1, beta_2, epsilon, epsilon_hat=False)

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        corrected = gradient + self.scale * (gradient - self.last)
        self.last = gradient
        return self.adam.displacement(parameter, corrected / max(1.0, float(np.linalg.norm(corrected))), rate)


class LaProp:
    """Ziyin et al., 2020, arXiv:2002.04839, algorithm 1."""

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-15) -> None:
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.mean, self.squares, self.step = _ZERO, _ZERO, 0

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
        self.total, self.squares, self.step = _ZERO, _ZERO, 0
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
        self.momentum, self.square, self.step = _ZERO, 0.0, 0

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.step += 1
        now = float((gradient**2).sum())
        self.square = now if self.step == 1 else self.beta_2 * self.square + (1 - self.beta_2) * now
        normalized = gradient / (np.sqrt(self.square) + self.epsilon) + self.weight_decay * parameter
        self.momentum = self.beta_1 * self.momentum + self.share * normalized
        return -rate * self.momentum


class LARS:
    """You et al., 2017, arXiv:1708.03888, algorithm 1."""

    def __init__(
        self,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum, self.trust, self.epsilon = momentum, trust_coefficient, epsilon
        self.weight_decay, self.velocity = weight_decay, _ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        weight, slope = float(np.linalg.norm(parameter)), float(np.linalg.norm(gradient))
        ratio = self.trust * weight / (slope + self.weight_decay * weight + self.epsilon)
        self.velocity = self.momentum * self.velocity - rate * ratio * (gradient + self.weight_decay * parameter)
        return self.velocity


def centralize(parameter: Array, gradient: Array) -> Array:
    """Yong et al., 2020, arXiv:2004.01461: every output unit's gradient has mean zero."""
    if gradient.ndim < 2:
        return gradient
    flat = gradient.reshape(-1, gradient.shape[-1])
    return np.stack([column - column.mean() for column in flat.T], axis=1).reshape(gradient.shape)


def adaptive_clip(parameter: Array, gradient: Array, clip_factor: float = 0.01, epsilon: float = 1e-3) -> Array:
    """Brock et al., 2021, arXiv:2102.06171, equation 3."""
    units = parameter.shape[-1] if parameter.ndim > 1 else 1
    weights, flat = parameter.reshape(-1, units), gradient.reshape(-1, units).copy()
    for unit in range(units):
        limit = clip_factor * max(float(np.linalg.norm(weights[:, unit])), epsilon)
        norm = np.linalg.norm(flat[:, unit])
        if norm > limit:
            flat[:, unit] *= limit / norm
    return flat.reshape(gradient.shape)


def cautious(displacement: Array, gradient: Array) -> Array:
    """Liang et al., 2024, arXiv:2411.16085, algorithm 2, with the authors' floor of 0.001 on the share."""
    agrees = (-displacement * gradient > 0).astype(displacement.dtype)
    return displacement * agrees / max(agrees.mean(), 1e-3)


class Lookahead:
    """Zhang et al., 2019, arXiv:1907.08610, algorithm 1."""

    def __init__(self, initial: Array, sync_period: int = 6, slow_step_size: float = 0.5) -> None:
        self.slow, self.period, self.size, self.step = np.array(initial), sync_period, slow_step_size, 0

    def __call__(self, fast: Array) -> Array:
        self.step += 1
        if self.step % self.period:
            return fast
        self.slow = self.slow + self.size * (fast - self.slow)
        return self.slow


class Twin:
    """One optimizer on a list of arrays, with the order of the kit: clip, before, decay, algorithm, after.

    Args:
        algorithm: makes the state of one array, such as `Adam`.
        global_clipnorm: the largest joint norm of the gradients, or None.
        weight_decay: the decoupled decay.
        before: list of functions (parameter, gradient) -> gradient.
        cautious_mask: whether `cautious` edits the displacements.
        lookahead: (sync_period, slow_step_size), or None.
    """

    def __init__(
        self,
        algorithm: Callable[[], Any],
        global_clipnorm: float | None = None,
        weight_decay: float = 0.0,
        before: list[Callable[[Array, Array], Array]] | None = None,
        cautious_mask: bool = False,
        lookahead: tuple[int, float] | None = None,
    ) -> None:
        self.make, self.clip, self.decay = algorithm, global_clipnorm, weight_decay
        self.before, self.cautious, self.lookahead = before or [], cautious_mask, lookahead

    def run(self, initial: list[Array], gradients: list[list[Array]], rate: float) -> list[Array]:
        """The parameters after one step for each list of gradients."""
        parameters = [np.array(p) for p in initial]
        states = [self.make() for _ in parameters]
        averages = [Lookahead(p, *self.lookahead) for p in parameters] if self.lookahead else None
        for step in gradients:
            reduced = list(step)
            if self.clip is not None:
                norm = np.sqrt(sum(float((g**2).sum()) for g in reduced))
                reduced = [g * min(1.0, self.clip / norm) for g in reduced]
            for i, (parameter, gradient) in enumerate(zip(parameters, reduced, strict=True)):
                parameter = parameter - rate * self.decay * parameter
                edited = gradient
                # The kit's `before` sees the parameter after decay, as the algorithm does.
                for edit in self.before:
                    edited = edit(parameter, edited)
                move = states[i].displacement(parameter, edited, rate)
                if self.cautious:
                    move = cautious(move, gradient)
                parameters[i] = parameter + move
                if averages:
                    parameters[i] = averages[i](parameters[i])
        return parameters

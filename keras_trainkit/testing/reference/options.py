"""Twins of the transforms that work on any optimizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_trainkit.testing.reference.arrays import Array


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


class SkipNonfinite:
    """No step with a NaN or an infinity, but for the one after `max_consecutive` of them."""

    def __init__(self, max_consecutive: int | None = None) -> None:
        self.most, self.skipped, self.consecutive = max_consecutive, 0, 0

    def __call__(self, gradients: list[Array]) -> tuple[list[Array], bool]:
        if all(np.isfinite(g).all() for g in gradients):
            self.consecutive = 0
            return gradients, True
        patient = self.most is None or self.consecutive < self.most
        self.consecutive += 1
        self.skipped += patient
        return gradients, not patient


class SkipSpikes:
    """No step whose norm is above `factor` times the running mean of the norms."""

    def __init__(self, factor: float, decay: float, warmup: int) -> None:
        self.factor, self.decay, self.warmup = factor, decay, warmup
        self.mean, self.seen, self.skipped = 0.0, 0, 0

    def __call__(self, gradients: list[Array]) -> tuple[list[Array], bool]:
        norm = joint_norm(gradients)
        if not np.isfinite(norm):
            self.skipped += 1
            return gradients, False
        admitted = True
        if self.seen >= self.warmup and norm > self.factor * self.mean > 0:
            admitted, norm = False, self.factor * self.mean
            self.skipped += 1
        self.seen += 1
        weight = max(1 / self.seen, 1 - self.decay)
        self.mean = (1 - weight) * self.mean + weight * norm
        return gradients, admitted


class ZClip:
    """Kumar et al., 2025, arXiv:2504.02507, algorithm 1: the first norms are kept in a list."""

    def __init__(self, threshold: float = 2.5, decay: float = 0.97, warmup: int = 25, epsilon: float = 1e-6) -> None:
        self.threshold, self.decay, self.warmup, self.epsilon = threshold, decay, warmup, epsilon
        self.first: list[float] = []
        self.mean, self.variance, self.clipped = 0.0, 0.0, 0

    def __call__(self, gradients: list[Array]) -> tuple[list[Array], bool]:
        norm = joint_norm(gradients)
        if not np.isfinite(norm):
            return gradients, True
        if len(self.first) < self.warmup:
            self.first.append(norm)
            self.mean, self.variance = float(np.mean(self.first)), float(np.var(self.first))
            return gradients, True
        deviation = self.variance**0.5
        score = (norm - self.mean) / (deviation + self.epsilon)
        if score > self.threshold:
            limit = self.mean + self.threshold * deviation / (score / self.threshold)
            gradients, norm = [g * (limit / norm) for g in gradients], limit
            self.clipped += 1
        self.mean = self.decay * self.mean + (1 - self.decay) * norm
        self.variance = self.decay * self.variance + (1 - self.decay) * (norm - self.mean) ** 2
        return gradients, True


def joint_norm(gradients: list[Array]) -> float:
    """The norm of all arrays together."""
    return float(np.sqrt(sum(float((g**2).sum()) for g in gradients)))


def decoupled_decay(fractions: Callable[[int], float]) -> Callable[[int, int, Array, Array], Array]:
    """Loshchilov and Hutter, 2017, arXiv:1711.05101: the weights shrink by a fraction that depends on the step alone.

    `fractions` maps the number of updates done before to the fraction.
    """
    return lambda step, index, parameter, move: move - fractions(step - 1) * parameter


def corrected_decay(
    weight_decay: float, rates: Callable[[int], float], peak_rate: float, normalized: list[int]
) -> Callable[[int, int, Array, Array], Array]:
    """Defazio, 2025, arXiv:2506.02285, algorithm 1 (AdamC); `normalized` lists the arrays to correct."""

    def edit(step: int, index: int, parameter: Array, move: Array) -> Array:
        rate = rates(step - 1)
        decay = weight_decay * rate / peak_rate if index in normalized else weight_decay
        return move - rate * decay * parameter

    return edit


def factors(values: list[float]) -> Callable[[int, int, Array, Array], Array]:
    """A learning-rate factor for each array."""
    return lambda step, index, parameter, move: values[index] * move


def decoupled_l1(strengths: Callable[[int], float], rates: Callable[[int], float]) -> Callable[..., Array]:
    """Beck and Teboulle, 2009: every weight is shrunk by rate times strength, or to zero.

    Both map the number of updates done before to a number.
    """

    def edit(step: int, index: int, parameter: Array, move: Array) -> Array:
        edge = rates(step - 1) * strengths(step - 1)
        x = parameter + move
        return np.where(x > edge, x - edge, np.where(x < -edge, x + edge, 0.0)) - parameter

    return edit


def decoupled_group_lasso(
    strength: float, rates: Callable[[int], float], axis: int = -1, scale_by_size: bool = True
) -> Callable[..., Array]:
    """Yuan and Lin, 2006: the norms of the groups that share an index along one axis are shortened, one by one."""

    def edit(step: int, index: int, parameter: Array, move: Array) -> Array:
        if parameter.ndim < 2:
            return move
        x = np.moveaxis(parameter + move, axis, 0).copy()
        for i, group in enumerate(x):
            edge = rates(step - 1) * strength * (np.sqrt(group.size) if scale_by_size else 1.0)
            norm = np.linalg.norm(group)
            x[i] = 0.0 if norm <= edge else group * (1 - edge / norm)
        return np.moveaxis(x, 0, axis) - parameter

    return edit

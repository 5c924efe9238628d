"""Twins of the transforms that work on any optimizer."""

from __future__ import annotations

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

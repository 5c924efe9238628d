"""When a value is a spike: robust statistics of a window, and how often they are wrong."""

from __future__ import annotations

import math
from typing import Any

from keras_trainkit.core import checks

NORMAL = 1.4826
"""The median absolute deviation of normal numbers, times this, is their standard deviation."""

FLOOR = 0.01
"""A deviation counts as at least this share of the median, so that values that hardly move make no spikes."""


def false_alarm_rate(threshold: float, window: int) -> float:
    """How often one of many independent normal values is taken for a spike, as a share of them.

    With the median m and the deviation s = 1.4826 MAD of the `window` values before, a value is a spike if it lies
    above m + threshold s. For normal values, m and s are nearly normal and independent, with variances
    pi / (2 window) and 1.3605 / window (MAD has an efficiency of 37%), so that the rate is that of a normal number
    above threshold / sqrt(1 + pi / (2 window) + 1.3605 threshold^2 / window). Values in training have heavier tails,
    and a level that falls.

    Reference: Rousseeuw and Croux, 1993, doi:10.1080/01621459.1993.10476408.

    Args:
        threshold: above 0.
        window: at least 8.

    >>> f"{false_alarm_rate(6.0, 128):.1e}"
    '1.9e-07'
    """
    threshold = checks.number("threshold", threshold, above=0)
    window = checks.integer("window", window, at_least=8)
    spread = math.sqrt(1 + (math.pi / 2 + 1.3605 * threshold**2) / window)
    return 0.5 * math.erfc(threshold / spread / math.sqrt(2))


def judged(value: Any, row: Any, known: Any, threshold: float, warmup: int) -> tuple[Any, Any, Any]:
    """Whether a value is a spike, and the median and the deviation that say so; all scalars.

    Args:
        value: a scalar tensor.
        row: the values before it, in any order, in the first `known` places.
        known: a scalar integer tensor.
        threshold: deviations above the median from where on a value is a spike; one that is not finite always is.
        warmup: values that must be known before others are judged by them.
    """
    from keras import ops

    there = ops.arange(row.shape[0], dtype="int32") < known
    median = _median(row, there, known)
    deviation = NORMAL * _median(ops.abs(row - median), there, known)
    deviation = ops.maximum(deviation, FLOOR * ops.abs(median) + 1e-30)
    high = ops.logical_and(known >= warmup, value > median + threshold * deviation)
    return ops.logical_or(high, ops.logical_not(ops.isfinite(value))), median, deviation


def _median(row: Any, there: Any, known: Any) -> Any:
    from keras import ops

    ordered = ops.sort(ops.where(there, row, ops.full_like(row, float("inf"))))
    middle = ops.stack([ops.maximum(known - 1, 0) // 2, ops.minimum(known // 2, row.shape[0] - 1)])
    return ops.where(known > 0, ops.mean(ops.take(ordered, middle)), ops.zeros((), row.dtype))

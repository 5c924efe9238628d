"""Which learning rate a range test speaks for, by several rules. NumPy alone.

Each rule takes the rates and the smoothed losses of one sweep, and returns a rate, or None where the curve shows no
fall to judge by.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import numpy as np

COMBINED = "combined"
_SLIDE_POINTS = 15
_SLIDE_TOLERANCE = 0.4
_LEFT_OUT = 10  # of the first so many points, one: the moving average has too few losses to go by


def smoothed(losses: np.ndarray, share: float) -> np.ndarray:
    """An exponential moving average without the bias of its beginning: each value weighs the past with `share`.

    Args:
        losses: shape `(n,)`.
        share: of the past, from 0 (no smoothing) to below 1.

    Returns:
        Shape `(n,)`.

    >>> smoothed(np.array([1.0, 2.0, 3.0]), 0.5).round(3).tolist()
    [1.0, 1.667, 2.429]
    """
    average, weight, found = 0.0, 0.0, []
    for loss in losses:
        average = share * average + (1 - share) * float(loss)
        weight = share * weight + (1 - share)
        found.append(average / weight)
    return np.array(found)


def minimum_tenth(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """A tenth of the rate with the lowest loss: an order of magnitude before the loss rises.

    The custom that came from the range test of Smith, 2015, arXiv:1506.01186.

    >>> rates = np.geomspace(1e-4, 1, 9)
    >>> round(minimum_tenth(rates, np.array([5, 5, 4, 3, 2, 1, 2, 4, 9.0])), 4)
    0.0032
    """
    lowest = int(np.argmin(losses))
    return float(rates[lowest] / 10) if lowest > 0 else None


def steepest(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate at which the loss falls fastest over the logarithm of the rate, before its lowest point.

    Smith, 2015, arXiv:1506.01186, looks at the accuracy in this way.

    >>> rates = np.geomspace(1e-4, 1, 9)
    >>> round(steepest(rates, np.array([5, 5, 4.8, 4, 2, 1, 0.9, 4, 9.0])), 4)
    0.01
    """
    lowest = int(np.argmin(losses))
    if lowest == 0:
        return None
    slopes = np.gradient(losses, np.log(rates))[: lowest + 1]
    at = int(np.argmin(slopes))
    return float(rates[at]) if slopes[at] < 0 else None


def valley(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The middle of the longest fall.

    The longest subsequence of ever lower losses (others may stand between) has some number of points; of so many
    points, up to the one where it ends, the middle one is taken. The rule is the default one of fastai, which has it
    from ESRI's arcgis.learn; where several are the longest, this takes the one that ends first.

    >>> rates = np.geomspace(1e-4, 1, 9)
    >>> round(valley(rates, np.array([5, 5, 4.8, 4, 2, 1, 0.9, 4, 9.0])), 4)
    0.0032
    """
    ends: list[float] = []  # for each length, the highest loss (negated: the lowest) that a fall of it can end with
    longest, end = 0, 0
    for at, loss in enumerate(losses):
        length = bisect.bisect_left(ends, -float(loss))
        ends[length : length + 1] = [-float(loss)]
        if length + 1 > longest:
            longest, end = length + 1, at
    return float(rates[end - longest // 2]) if longest > 1 else None


def slide(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The last rate before the slope changes for good.

    Two points 15 points apart slide down from the highest rate, as long as the losses' slopes at the two differ; the
    rate of the left one where they last did is the answer. The rule is fastai's "slide", called interval slide rule by
    its author. There a difference counts from 0.005 on, in the loss's own unit and on a curve that is smoothed more. On
    this one the noise of batches is above that, so that the interval goes on sliding through it to rates that are far
    too low. Here a difference counts from 0.4 times the steepest fall on, which no unit changes (with 0.3 or 0.5
    nearly the same is found), and no rate above that of the lowest loss is the answer.

    >>> rates = np.geomspace(1e-6, 1, 31)
    >>> losses = np.concatenate([np.full(18, 5.0), 5 - np.arange(10) * 0.3, [3, 7, 20]])
    >>> bool(slide(rates, losses) < steepest(rates, losses))
    True
    """
    lowest = int(np.argmin(losses))
    if len(losses) <= _SLIDE_POINTS or lowest == 0:
        return None
    slopes = np.gradient(losses)
    fall = -float(slopes[: lowest + 1].min())
    apart = np.abs(slopes[_SLIDE_POINTS:] - slopes[:-_SLIDE_POINTS]) > _SLIDE_TOLERANCE * fall
    alike = np.flatnonzero(~apart)
    left = int(alike[-1]) + 1 if len(alike) else 0
    return float(rates[min(left, lowest)]) if left < len(apart) else None


RULES: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "minimum/10": minimum_tenth,
    "valley": valley,
    "steepest": steepest,
    "slide": slide,
}


def suggestions(rates: np.ndarray, losses: np.ndarray) -> dict[str, float | None]:
    """What each rule says of one sweep, and their geometric mean as `"combined"`.

    Args:
        rates: shape `(n,)`, ascending.
        losses: the smoothed ones, shape `(n,)`.
    """
    first = len(rates) // _LEFT_OUT
    rates, losses = rates[first:], losses[first:]
    enough = len(rates) >= 3
    found = {name: rule(rates, losses) if enough else None for name, rule in RULES.items()}
    return found | {COMBINED: geometric_mean(list(found.values()))}


def geometric_mean(values: list[float | None]) -> float | None:
    """That of the values there are; None where there are none.

    >>> round(geometric_mean([0.1, None, 10.0]), 6)
    1.0
    """
    logarithms = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None

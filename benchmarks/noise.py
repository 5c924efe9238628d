"""What a handful of measurements can tell apart: an exact rank test, and an interval for a median."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def rank_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value that both come from one distribution: Wilcoxon's rank sums (Mann and Whitney), exact.

    Every way to deal the values out to the two sides counts; equal values share the mean of their ranks, so runs that
    never arrived can be infinity. Five against five can reach 2/252 = 0.008; four against four 0.029; three against
    three only 0.1.
    """
    values = [*first, *second]
    ranks = [sum(v < value for v in values) + (1 + sum(v == value for v in values)) / 2 for value in values]
    middle = len(first) * (len(values) + 1) / 2
    distance = abs(sum(ranks[: len(first)]) - middle)
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, len(first))]
    return sum(abs(total - middle) >= distance - 1e-9 for total in sums) / len(sums)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval that holds the true median with at least this confidence, from order statistics alone.

    Of few values (fewer than 6 at 0.95) no interval is sure enough; then it is the whole range.
    """
    ordered, n, outside, tail = sorted(values), len(values), 0, 0.0
    while outside < (n - 1) // 2:
        tail += math.comb(n, outside) / 2**n  # so likely are at most `outside` values below the median
        if 2 * tail > 1 - confidence:
            break
        outside += 1
    cut = max(outside - 1, 0)
    return ordered[cut], ordered[n - 1 - cut]

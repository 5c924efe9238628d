"""Pruning written slowly: NumPy, one element after the other."""

import math

import numpy as np


def sparsity(step, final, initial, begin, end, frequency, power=3):
    """The sparsity after `step` updates, from the formula of the paper."""
    if step < begin:
        return 0.0
    t = end if step >= end else begin + (step - begin) // frequency * frequency
    return final if t == end else final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power


def count(share, number):
    return math.floor(share * number + 0.5)


def weakest_first(scores):
    """Positions by score; of equal scores the first one first."""
    return [position for _, position in sorted((score, position) for position, score in enumerate(scores))]


def without(scores, number):
    living = np.ones(len(scores), bool)
    for position in weakest_first(scores)[:number]:
        living[position] = False
    return living


def magnitudes(values, old):
    return [abs(float(v)) if alive else -1.0 for v, alive in zip(values.ravel(), old.ravel(), strict=True)]


def unstructured(values, old, share):
    return old & without(magnitudes(values, old), count(share, values.size)).reshape(values.shape)


def everywhere(all_values, all_old, share):
    scores = [s for v, m in zip(all_values, all_old, strict=True) for s in magnitudes(v, m)]
    living, found = without(scores, count(share, len(scores))), []
    for values, old in zip(all_values, all_old, strict=True):
        found.append(old & living[: values.size].reshape(values.shape))
        living = living[values.size :]
    return found


def n_of_m(values, old, share, n, m, axis):
    new, gone = old.copy(), min(count(share, m), m - n)
    moved, moved_old, moved_new = (np.moveaxis(a, axis, -1) for a in (values, old, new))
    for place in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            group = slice(start, start + m)
            moved_new[place][group] &= without(magnitudes(moved[place][group], moved_old[place][group]), gone)
    return new


def filters(values, old, share, norm):
    """Filters lie along the last axis."""
    number, scores = values.shape[-1], []
    for channel in range(number):
        alive, weights = old[..., channel], np.abs(values[..., channel].astype("float64"))
        size = (weights * alive).sum() if norm == "l1" else ((weights * alive) ** 2).sum()
        scores.append(size if alive.any() else -1.0)
    return old & without(scores, min(count(share, number), number - 1))

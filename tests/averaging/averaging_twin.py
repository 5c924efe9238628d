"""The averages as their papers say them, one update after the other, in double precision."""

import numpy as np


def taken(average, updates):
    """The updates, from 1, whose weights count."""
    start, every = average.numbers()
    return [u for u in range(1, updates + 1) if u >= start and (u - start) % every == 0]


def ema(average, trajectory, samples):
    mean, t, since, seen = None, 0, 0, 0
    due = taken(average, len(trajectory))
    for update, (weights, arrived) in enumerate(zip(trajectory, samples, strict=True), 1):
        since += arrived
        if update not in due:
            continue
        if mean is None:
            mean = [w.astype("float64") for w in weights]
        else:
            t += 1
            if average.half_life is None:
                decay = min(average.decay, (1 + t) / (10 + t)) if average.dynamic else average.decay
            else:
                life = min(average.half_life, 0.05 * (seen + since)) if average.dynamic else average.half_life
                decay = 0.5 ** (since / life)
            mean = [decay * m + (1 - decay) * w for m, w in zip(mean, weights, strict=True)]
        seen, since = seen + since, 0
    return trajectory[-1] if mean is None else mean


def swa(average, trajectory, samples):
    snapshots = [trajectory[u - 1] for u in taken(average, len(trajectory))]
    return [np.mean([np.float64(s[i]) for s in snapshots], axis=0) for i in range(len(trajectory[0]))]


def lawa(average, trajectory, samples):
    snapshots = [trajectory[u - 1] for u in taken(average, len(trajectory))][-average.k :]
    return [np.mean([np.float64(s[i]) for s in snapshots], axis=0) for i in range(len(trajectory[0]))]


TWINS = {"EMA": ema, "SWA": swa, "LAWA": lawa}


def averaged(average, trajectory, samples=None):
    """The average after the weights of a trajectory, a list of lists of arrays, one for each update."""
    samples = [1] * len(trajectory) if samples is None else samples
    return TWINS[type(average).__name__](average, trajectory, samples)

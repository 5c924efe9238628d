"""NumPy twins of the normalizations: loops, written from the formulas."""

import numpy as np


def instance(x, epsilon, valid=None):
    out = np.zeros(x.shape)
    for sample in range(len(x)):
        for channel in range(x.shape[-1]):
            values = x[sample, :, channel].astype("float64")
            seen = values if valid is None else values[valid[sample]]
            out[sample, :, channel] = (values - seen.mean()) / np.sqrt(seen.var() + epsilon)
    return out


def filter_response(x, epsilon, valid=None):
    out = np.zeros(x.shape)
    for sample in range(len(x)):
        for channel in range(x.shape[-1]):
            values = x[sample, :, channel].astype("float64")
            seen = values if valid is None else values[valid[sample]]
            out[sample, :, channel] = values / np.sqrt(np.mean(seen**2) + epsilon)
    return out


def evonorm(x, v, groups, epsilon, valid=None):
    out = np.zeros(x.shape)
    size = x.shape[-1] // groups
    for sample in range(len(x)):
        for channel in range(x.shape[-1]):
            first = channel // size * size
            group = x[sample, :, first : first + size].astype("float64")
            seen = group if valid is None else group[valid[sample]]
            values = x[sample, :, channel].astype("float64")
            gate = 1 / (1 + np.exp(-v[channel] * values))
            out[sample, :, channel] = values * gate / np.sqrt(seen.var() + epsilon)
    return out


def ghost_batches(batch, size):
    """Lists of the samples of each ghost batch."""
    ghosts = max(batch // size, 1)
    return [[i for i in range(batch) if i * ghosts // batch == ghost] for ghost in range(ghosts)]


def ghost_batch(x, size, epsilon, valid=None):
    """The normalized x, and the mean and variance that the moving statistics go towards."""
    out, means, variances, counts = np.zeros(x.shape), [], [], []
    for ghost in ghost_batches(len(x), size):
        values = x[ghost].astype("float64")
        seen = values.reshape(-1, x.shape[-1]) if valid is None else values[valid[ghost]]
        out[ghost] = (values - seen.mean(0)) / np.sqrt(seen.var(0) + epsilon)
        means.append(seen.mean(0))
        variances.append(seen.var(0))
        counts.append(len(seen))
    return out, np.average(means, 0, counts), np.average(variances, 0, counts)

"""Figures about arrays that may hold values that are not finite. Needs no Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_SAMPLES = 100


def figures(values: Any) -> dict[str, Any]:
    """Shape, counts of NaN and infinity, and what the finite values are like; ready for JSON.

    >>> found = figures([1.0, float("nan"), -1.0])
    >>> found["nan"], found["minimum"], found["rms"]
    (1, -1.0, 1.0)
    """
    array = np.asarray(values)
    about: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype), "nan": 0, "inf": 0}
    if not is_floating(array):
        return about
    wide = array.astype("float64")
    good = wide[np.isfinite(wide)]
    about |= {"nan": int(np.isnan(wide).sum()), "inf": int(np.isinf(wide).sum())}
    if good.size:
        about |= {"minimum": float(good.min()), "maximum": float(good.max()), "mean": float(good.mean())}
        with np.errstate(over="ignore"):
            rms = float(np.sqrt(np.mean(np.square(good))))
        about |= {"rms": rms if np.isfinite(rms) else None, "zeros": float(np.mean(good == 0))}
    return about


def is_floating(array: Any) -> bool:
    """Whether an array may hold a NaN; `bfloat16` and the like count."""
    return array.dtype.kind == "f" or "float" in str(array.dtype)


def bad_samples(values: Any) -> list[int]:
    """The rows that hold something that is not finite, the first hundred.

    >>> bad_samples([[0.0, 1.0], [float("inf"), 0.0]])
    [1]
    """
    array = np.asarray(values)
    if not is_floating(array) or not array.ndim:
        return []
    finite = np.isfinite(array.astype("float64")).reshape(array.shape[0], -1).all(axis=1)
    return np.flatnonzero(~finite)[:MOST_SAMPLES].tolist()

"""Values near to given ones, for every kind of hyperparameter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from keras_tuner.engine import hyperparameters as types

from keras_trainkit.tuning import spaces


def perturb(
    space: Sequence[types.HyperParameter],
    values: spaces.Values,
    rng: np.random.Generator,
    *,
    names: Collection[str] | None = None,
    factors: Sequence[float] = (0.8, 1.2),
    resample_probability: float = 0.25,
) -> spaces.Values:
    """New values around those of another trial: active ones only, all inside their ranges.

    A number is multiplied by one of the factors; where it has steps, or is whole, it moves by at least one of them. An
    ordered choice moves to a neighbour. Under `"reverse_log"` the distance to the far end is multiplied. What has no
    order stays. Each is drawn anew with some probability instead, and so is what becomes active.

    Args:
        space: the hyperparameters, parents first.
        values: those of the other trial.
        rng: decides.
        names: what may change; None is everything.
        factors: above 0, below and above 1.
        resample_probability: from 0 to 1.
    """
    found: spaces.Values = {}
    for parameter in space:
        if not spaces.is_active(parameter, found):
            continue
        own = values.get(parameter.name)
        fixed = spaces.distribution(parameter) is None or (names is not None and parameter.name not in names)
        if own is not None and fixed:
            found[parameter.name] = own
        elif own is None or rng.random() < resample_probability:
            found[parameter.name] = parameter.random_sample(int(rng.integers(2**31)))
        else:
            found[parameter.name] = near(parameter, own, float(rng.choice(factors)))
    return found


def near(parameter: types.HyperParameter, value: Any, factor: float) -> Any:
    """The value times the factor, in the terms of the hyperparameter.

    >>> near(types.Choice("units", [16, 32, 64]), 32, 1.2), near(types.Int("layers", 1, 9), 3, 0.8)
    (64, 2)
    """
    listed = spaces.steps(parameter)
    if isinstance(parameter, types.Choice | types.Boolean) and listed is None:
        return value
    if listed is not None:
        return _neighbour(listed, value, factor)
    low, high = parameter.min_value, parameter.max_value
    if isinstance(parameter, types.Int):
        step = parameter.step or 1
        return _neighbour(list(range(low, high + 1, step)), value, factor)
    if parameter.sampling == "reverse_log":
        return float(np.clip(high + low - (high + low - value) * factor, low, high))
    return float(np.clip(value * factor, low, high))


def _neighbour(values: list[Any], value: Any, factor: float) -> Any:
    """The listed value nearest to the product, and not the same one unless it is at the end of the list."""
    at = int(np.argmin([abs(each - value) for each in values]))
    wanted = int(np.argmin([abs(each - value * factor) for each in values]))
    direction = 1 if factor > 1 else -1
    reached = wanted if (wanted - at) * direction > 0 else at + direction
    return values[min(max(reached, 0), len(values) - 1)]

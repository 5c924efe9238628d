"""The space of a search in scikit-learn's words, asked of an Optuna trial."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np


class Space:
    """Parameters of which each is a list, a distribution of scipy or one of Optuna's.

    Args:
        distributions: by name.

    Attributes:
        size: how many settings there are; infinite with a continuous parameter.

    Raises:
        TypeError, ValueError: for anything else, and for empty lists.

    >>> Space({"units": [8, 16], "activation": ["relu", "tanh", None]}).size
    6
    """

    def __init__(self, distributions: Any) -> None:
        if not isinstance(distributions, Mapping) or not distributions:
            raise TypeError(
                "`param_distributions` must be a dictionary from names to lists or distributions. "
                f"Received: param_distributions={distributions!r}"
            )
        self._parameters = {name: _parameter(name, given) for name, given in distributions.items()}
        self.size = math.prod(parameter.size for parameter in self._parameters.values())

    def suggest(self, trial: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """A setting, and what it is recognized by."""
        found = {name: parameter.suggest(trial, name) for name, parameter in self._parameters.items()}
        return {name: value for name, (value, _) in found.items()}, tuple(key for _, key in found.values())

    def draw_unseen(self, seen: set[tuple[Any, ...]], random: np.random.RandomState) -> dict[str, Any]:
        """One of the settings whose keys are not in `seen`, as the trial's parameters; for finite spaces only."""
        keys = itertools.product(*(parameter.keys() for parameter in self._parameters.values()))
        left = [key for key in keys if key not in seen]
        return dict(zip(self._parameters, left[random.randint(len(left))], strict=True))


class _List:
    """Values by their index: in order if they are numbers, else without."""

    def __init__(self, values: list[Any]) -> None:
        ordered = all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)
        self._ordered = ordered and len(values) > 2
        self._values = sorted(values) if self._ordered else values
        self.size: float = len(values)

    def suggest(self, trial: Any, name: str) -> tuple[Any, Any]:
        if self._ordered:
            index = trial.suggest_int(name, 0, len(self._values) - 1)
        else:
            index = trial.suggest_categorical(name, list(range(len(self._values))))
        return self._values[index], index

    def keys(self) -> range:
        return range(len(self._values))


class _Native:
    """A distribution that Optuna has, too."""

    def __init__(self, distribution: Any) -> None:
        import optuna

        self._distribution, self._kinds = distribution, optuna.distributions
        self._keys = self._all()
        self.size: float = len(self._keys) if self._keys is not None else math.inf

    def _all(self) -> Any:
        given = self._distribution
        if isinstance(given, self._kinds.IntDistribution):
            return range(given.low, given.high + 1, given.step)
        return list(given.choices) if isinstance(given, self._kinds.CategoricalDistribution) else None

    def suggest(self, trial: Any, name: str) -> tuple[Any, Any]:
        given = self._distribution
        if isinstance(given, self._kinds.CategoricalDistribution):
            value = trial.suggest_categorical(name, given.choices)
        elif isinstance(given, self._kinds.IntDistribution):
            value = trial.suggest_int(name, given.low, given.high, step=given.step, log=given.log)
        else:
            value = trial.suggest_float(name, given.low, given.high, step=given.step, log=given.log)
        return value, value

    def keys(self) -> Any:
        return self._keys


class _Quantiles:
    """Any other distribution of scipy, by its quantile function of a number between 0 and 1."""

    size: float = math.inf

    def __init__(self, distribution: Any) -> None:
        self._distribution = distribution

    def suggest(self, trial: Any, name: str) -> tuple[Any, Any]:
        share = trial.suggest_float(name, 0.0, 1.0)
        # At 0 and 1 the quantiles of many are infinite.
        value = self._distribution.ppf(min(max(share, 1e-9), 1 - 1e-9)).item()
        return (int(value) if hasattr(self._distribution.dist, "pmf") else value), share

    def keys(self) -> Any:
        raise TypeError("a continuous parameter has no list of values")


def _parameter(name: str, given: Any) -> Any:
    if isinstance(given, (list, tuple, range, np.ndarray)):
        if len(given) == 0:
            raise ValueError(f"`param_distributions` must hold lists that are not empty. Received: an empty {name!r}")
        return _List([value.item() if isinstance(value, np.generic) else value for value in given])
    if hasattr(given, "ppf") and hasattr(given, "dist"):
        return _of_scipy(given)
    if hasattr(given, "single") and hasattr(given, "to_internal_repr"):
        return _Native(given)
    raise TypeError(
        f"`param_distributions` must hold lists, or distributions of scipy or Optuna. Received: {given!r} as {name!r}"
    )


def _of_scipy(frozen: Any) -> Any:
    """Those that Optuna has, too, so that the study shows their values; others by their quantiles."""
    import optuna

    low, high = frozen.support()
    if frozen.dist.name == "randint":
        return _Native(optuna.distributions.IntDistribution(int(low), int(high)))
    if frozen.dist.name in ("uniform", "loguniform", "reciprocal"):
        log = frozen.dist.name != "uniform"
        return _Native(optuna.distributions.FloatDistribution(float(low), float(high), log=log))
    return _Quantiles(frozen)

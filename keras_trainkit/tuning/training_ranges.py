"""What of a training can be searched, between which values if nothing else is said, and what the user may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.recipes import catalog
from keras_trainkit.recipes.rates import SCHEDULES
from keras_trainkit.recipes.recipe import AUGMENTATIONS, PRECISIONS

SAMPLING = ("linear", "log", "reverse_log")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        low, high: the ends; of whole numbers both are integers. `low` is below `high`; above 0 unless `sampling` is
            `"linear"`.
        sampling: `"linear"`, `"log"` (each factor of ten alike) or `"reverse_log"` (most of them near `high`).
        step: from one value to the next, above 0; None is without steps. Under `"log"` it is a factor, above 1.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    >>> Range(1e-4, 1e-1, "log")
    Range(low=0.0001, high=0.1, sampling='log', step=None)
    """

    low: float
    high: float
    sampling: str = "linear"
    step: float | None = None

    def __post_init__(self) -> None:
        checks.one_of("sampling", self.sampling, SAMPLING)
        checks.number("low", self.low, above=None if self.sampling == "linear" else 0)
        checks.number("high", self.high, above=self.low)
        if self.step is not None:
            checks.number("step", self.step, above=0 if self.sampling == "linear" else 1)

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a value is a number inside."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


Values = Range | tuple[Any, ...]
"""What a hyperparameter may be: a range, or the values of a choice."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe, as something to search.

    Attributes:
        auto: what it is searched between if nothing else is said; None where that depends on the optimizer or the run.
        sampling: of a range that is given as (low, high).
        names: the words that it may be; empty for numbers.
    """

    auto: Values | None
    sampling: str = "linear"
    names: tuple[str, ...] = ()


KEYS: dict[str, Key] = {
    "optimizer": Key(("adamw", "nadam", "adan", "lion", "muon")),
    "learning_rate": Key(None, "log"),
    "schedule": Key(("cosine", "linear", "onecycle", "wsd", "constant"), names=tuple(SCHEDULES)),
    "warmup": Key(Range(0.0, 0.3)),
    "weight_decay": Key(None, "log"),
    "global_clipnorm": Key(Range(0.1, 10.0, "log"), "log"),
    "batch_size": Key((16, 32, 64, 128, 256), "log"),
    "epochs": Key(None, "log"),
    "accumulation": Key((1, 2, 4), "log"),
    "precision": Key(("float32", "mixed_bfloat16"), names=PRECISIONS),
    "dropout": Key(Range(0.0, 0.5)),
    "initializer": Key(("glorot_uniform", "he_normal", "lecun_normal", "orthogonal")),
    "regularizer": Key(("none", "l2", "grouplasso", "softorthogonal")),
    "augmentation": Key(("none", *AUGMENTATIONS), names=("none", *AUGMENTATIONS)),
    "label_smoothing": Key(Range(0.0, 0.2)),
}
STRENGTH = Range(1e-6, 1e-2, "log")
"""Of a regularizer, if nothing else is said."""

# Optimizers that find their step by themselves; their rate is a factor of it.
_OWN_STEP = ("cocob", "dadaptadam", "prodigy")
# Rates that a default of Keras or of the paper is far below or above.
_RATES = {
    "adadelta": Range(0.01, 10.0, "log"),
    "adagrad": Range(0.003, 0.3, "log"),
    "proximaladagrad": Range(0.003, 0.3, "log"),
    "lars": Range(0.3, 30.0, "log"),
    "muon": Range(0.002, 0.2, "log"),
    "schedulefreesgd": Range(0.03, 10.0, "log"),
}
ARGUMENTS: dict[str, tuple[float, ...]] = {
    "beta_1": (0.8, 0.9, 0.95, 0.98),
    "beta_2": (0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    "momentum": (0.8, 0.9, 0.95, 0.98),
    "rho": (0.9, 0.95, 0.99),
}
"""Averages of optimizers, which have memories of 5 to 1000 steps."""


def rates_of(optimizer: str) -> Range:
    """The learning rates worth a try for an optimizer: from a tenth of its own rate to thirty times of it.

    Defaults are the authors', for large networks and long runs; small ones stand more. Optimizers that find their step
    by themselves have a factor of it here, which stays near 1.

    >>> rates_of("adamw"), rates_of("lion").high
    (Range(low=0.0001, high=0.03, sampling='log', step=None), 0.003)
    """
    if optimizer in _RATES:
        return _RATES[optimizer]
    own = catalog.own_rate(optimizer)
    if optimizer in _OWN_STEP:
        return Range(own / 10, own * 10, "log")
    return Range(_rounded(own / 10), _rounded(own * 30), "log")


def decays_of(optimizer: str) -> Range:
    """The weight decays worth a try: it is multiplied by the rate, so optimizers of a small rate take more of it.

    >>> decays_of("adamw"), decays_of("lion").high
    (Range(low=0.0001, high=0.3, sampling='log', step=None), 3.0)
    """
    return Range(0.001, 3.0, "log") if catalog.own_rate(optimizer) < 3e-4 else Range(0.0001, 0.3, "log")


def arguments_of(optimizer: str) -> dict[str, tuple[float, ...]]:
    """The averages of an optimizer that are worth a try, by argument, each with the optimizer's own value.

    >>> arguments_of("sgd")
    {'momentum': (0.0, 0.8, 0.9, 0.95, 0.98)}
    """
    own = catalog.own_defaults(optimizer)
    return {
        name: tuple(sorted({*values, float(own[name])}))
        for name, values in ARGUMENTS.items()
        if isinstance(own.get(name), int | float)
    }


def values_of(name: str, given: Any, sampling: str = "linear") -> Values:
    """What a user said: a `Range`, a pair (low, high), a list of values, or one value.

    A mapping with `low` and `high` is a range too, for files, which have no tuples.

    >>> values_of("dropout", (0.0, 0.5)), values_of("batch_size", [32, 64]), values_of("epochs", 5)
    (Range(low=0.0, high=0.5, sampling='linear', step=None), (32, 64), (5,))
    """
    if isinstance(given, Range):
        return given
    if isinstance(given, Mapping) and "low" in given:
        known = [field.name for field in dataclasses.fields(Range)]
        for key in given:
            checks.one_of(f"{name}, key of its range", key, known)
        return Range(**{"sampling": sampling, **given})
    if isinstance(given, tuple) and len(given) == 2 and all(_is_number(value) for value in given):
        low, high = given
        wanted = "linear" if low <= 0 else sampling
        return Range(low, high, wanted)
    values = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not values:
        raise ValueError(f"`{name}` must have a value to choose. Received: {name}={given!r}")
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"`{name}` must not have a value twice. Received: {name}={given!r}")
    if not (all(_is_number(value) for value in values) or all(isinstance(value, str) for value in values)):
        raise TypeError(f"`{name}` must be numbers or names, not both. Received: {name}={given!r}")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")

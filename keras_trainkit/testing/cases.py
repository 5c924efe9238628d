"""What a contract needs to know about one optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_trainkit.core import TransformOptimizer
from keras_trainkit.testing.reference import Twin


@dataclasses.dataclass(frozen=True)
class Golden:
    """A third party's result to agree with.

    Attributes:
        method: the row of the golden file.
        source: the implementation to trust.
        arguments: those that bring our optimizer to that implementation's settings.
        learning_rate: the rate of the golden run.
    """

    method: str
    source: str
    arguments: dict[str, Any]
    learning_rate: float = 1e-2


@dataclasses.dataclass(frozen=True)
class Case:
    """One optimizer with one set of arguments.

    Attributes:
        name: unique among the cases.
        make: the class; called with `learning_rate` and `arguments`.
        twin: makes the NumPy twin for the same arguments.
        rates: for each problem of `problems.PROBLEMS`, a learning rate or schedule that arrives.
        state_bytes: bytes of state per float32 parameter.
        arguments: a function without arguments that returns fresh keyword arguments.
        others: for each constructor argument, another value that must change the trajectory; values are functions.
        golden: third parties' results.
        fit_rate: a sensible learning rate for a small network.
    """

    name: str
    make: type[TransformOptimizer]
    twin: Callable[[], Twin]
    rates: dict[str, Any]
    state_bytes: float
    arguments: Callable[[], dict[str, Any]] = dict
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    golden: list[Golden] = dataclasses.field(default_factory=list)
    fit_rate: float = 1e-2

    def optimizer(self, learning_rate: Any, **more: Any) -> TransformOptimizer:
        """A fresh optimizer; `more` replaces arguments."""
        return self.make(**({"learning_rate": learning_rate} | self.arguments() | more))

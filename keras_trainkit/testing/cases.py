"""What a contract needs to know about one optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from keras_trainkit.core import TransformOptimizer
from keras_trainkit.testing.reference import Twin

Shape = tuple[int, ...]
SHAPES: Sequence[Shape] = ((4, 3), (3,), (2, 2, 2, 3))


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
        state_bytes: bytes of state per float32 parameter; where they depend on the shape, a function that takes the
            list of all variables' shapes and returns the bytes of all together.
        arguments: a function without arguments that returns fresh keyword arguments.
        others: for each constructor argument, another value that must change the trajectory; values are functions.
        golden: third parties' results.
        fit_rate: a sensible learning rate for a small network.
        replica_tolerance: how far the weights on several replicas may be from those on one device after 50 updates;
            more than the default where the algorithm magnifies rounding, as the inverse root of a nearly singular
            covariance does.
        names: names for the three variables on which `others` are tried (a kernel, a bias, a convolution kernel), for
            arguments that go by the name.
        slot_dtype: the dtype of the slots, if it is always the same; otherwise that of the variables, at least float32.
        felt_rate: the learning rate at which every argument must count.
        shapes: of the variables on which it is compared with its twin and must feel its arguments.
        drift: the mean of the random gradients there; an estimated rate grows only where gradients agree.
        half_state_bytes: bytes of state per half-precision parameter, where that is not `state_bytes`.
        first_move: the update that moves the weights first; those before it only measure.
        everywhere: whether all environments run its long contracts; those of the others run on the newest Keras alone.
    """

    name: str
    make: type[TransformOptimizer]
    twin: Callable[[], Twin]
    rates: dict[str, Any]
    state_bytes: float | Callable[[list[Shape]], float]
    arguments: Callable[[], dict[str, Any]] = dict
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    golden: list[Golden] = dataclasses.field(default_factory=list)
    fit_rate: float = 1e-2
    replica_tolerance: float = 2e-6
    names: list[str] | None = None
    slot_dtype: str | None = None
    felt_rate: float = 0.05
    shapes: Sequence[Shape] = SHAPES
    drift: float = 0.0
    half_state_bytes: float | None = None
    first_move: int = 1
    everywhere: bool = False

    def total_state_bytes(self, shapes: list[Shape]) -> float:
        """Bytes of state of float32 variables of these shapes."""
        if callable(self.state_bytes):
            return self.state_bytes(shapes)
        return self.state_bytes * sum(math.prod(shape) for shape in shapes)

    def optimizer(self, learning_rate: Any, **more: Any) -> TransformOptimizer:
        """A fresh optimizer; `more` replaces arguments."""
        return self.make(**({"learning_rate": learning_rate} | self.arguments() | more))

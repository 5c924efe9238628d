"""The three averages: exponential, of snapshots with one weight each, and of the last few snapshots."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.spans import checked_span

RAMP = 0.05
MOST_SAMPLES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Average:
    """What the averages have in common: the updates after which weights are taken in.

    These are update `start`, and every `every`-th after it; update 0, the initial weights, never counts.

    Attributes:
        number: says in files which kind of average it is.
    """

    number: ClassVar[int] = 0
    spans: ClassVar[tuple[str, ...]] = ("start", "every")
    may_be_0: ClassVar[tuple[str, ...]] = ("start",)

    @property
    def per_weight(self) -> int:
        """Copies of the weights that the average takes, beside those that are trained."""
        return 1

    @property
    def counts_samples(self) -> bool:
        """Whether the average asks how many samples the updates were made of."""
        return False

    def stages(self, updates: Any) -> Any:
        """How many times the weights were due after so many updates, for an int or an integer tensor."""
        start, every = self.numbers()
        if isinstance(updates, int):
            return 1 + (updates - start) // every if updates >= start else 0
        after = 1 + ops.floor_divide(ops.maximum(updates - start, 0), every)
        return ops.where(updates >= start, after, ops.zeros_like(after))

    def numbers(self) -> tuple[int, int]:
        """`start` and `every` in updates.

        Raises:
            ValueError: if one is a share of a run whose length is not known.
        """
        for name in self.spans:
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"`{name}` is a share of a run whose length is not known yet; `callbacks.WeightAveraging` and "
                    f"`schedules.resolve` make it a number of updates. Received: {name}={getattr(self, name)!r}"
                )
        return int(self.start), int(self.every)  # type: ignore[attr-defined]

    def shape(self, shape: Any) -> tuple[int, ...]:
        """The shape of the memory for a weight of this shape."""
        return tuple(shape)

    def taken_in(self, held: Any, weight: Any, count: Any, samples: Any, total: Any) -> Any:
        """The memory of a weight when the weight has been taken in.

        Args:
            held: the memory, a tensor of shape `shape(weight.shape)`, in at least float32.
            weight: the weight, in the same dtype.
            count: how many times it was taken in before, an integer scalar.
            samples: those since the last time, an integer scalar, if `counts_samples`.
            total: those since the first time, without `samples`.
        """
        share = self.share(ops.cast(count, held.dtype), ops.cast(samples, held.dtype), ops.cast(total, held.dtype))
        return ops.where(count > 0, held + share * (weight - held), weight)

    def share(self, count: Any, samples: Any, total: Any) -> Any:
        """How much the newest weight counts in the average."""
        raise NotImplementedError

    def value(self, held: Any, count: Any) -> Any:
        """The average that the memory holds."""
        return held

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The inverse of `get_config`."""
        return cls(**config)

    def _set(self, **checked: Any) -> None:
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class EMA(Average):
    """An exponential moving average: average + (1 - decay) (weight - average), after each update.

    The first weight that it takes in is the average; there is no bias to correct. After t more updates the decay is
    min(decay, (1 + t) / (10 + t)) if `dynamic`, so that a short run, or the beginning of a long one, is not dominated
    by its first weights.

    With a `half_life` the decay is 0.5 ** (samples / half_life), `samples` being those of the batches since the last
    update, over all replicas and micro-batches: a batch twice as large forgets as much as two. (A batch whose update
    was skipped counts with the next one.) `dynamic` then keeps the half-life below a twentieth of the samples seen
    (as in the code of Karras et al., 2022, arXiv:2206.00364, who measure in images, too).

    Memory: one copy of the weights, in at least float32.

    Reference: Polyak and Juditsky, 1992; Morales-Brotons et al., 2024, arXiv:2411.18704.

    Args:
        decay: from 0 to below 1; 0.999 when left out.
        half_life: samples after which a weight counts half as much, above 0; in place of `decay`.
        dynamic: whether the average is shorter at the beginning.
        start: the first update that counts: a number, or a span such as `"2ep"` or `"0.5run"`. The weights themselves
            are used before it.
        every: updates from one weight to the next: a number, or a span. The decay is for each of them.

    Raises:
        TypeError, ValueError: for an argument out of its range, and for both `decay` and `half_life`.

    >>> EMA(0.9999, start="1ep")
    EMA(decay=0.9999, half_life=None, dynamic=True, start='1ep', every=1)
    >>> [round(1 - float(EMA(0.999).share(keras.ops.cast(t, "float32"), 0, 0)), 4) for t in (1, 10, 10**6)]
    [0.1818, 0.55, 0.999]
    """

    number: ClassVar[int] = 1

    decay: float | None = None
    half_life: float | None = None
    dynamic: bool = True
    start: int | str = 0
    every: int | str = 1

    def __post_init__(self) -> None:
        if self.half_life is not None and self.decay is not None:
            raise ValueError(
                "`half_life` takes the place of `decay`: give one of them. "
                f"Received: decay={self.decay!r}, half_life={self.half_life!r}"
            )
        if self.half_life is not None:
            self._set(half_life=checks.number("half_life", self.half_life, above=0))
        else:
            decay = 0.999 if self.decay is None else self.decay
            self._set(decay=checks.number("decay", decay, at_least=0, below=1))
        checks.boolean("dynamic", self.dynamic)
        self._set(start=checked_span("start", self.start, at_least=0), every=checked_span("every", self.every))

    @property
    def counts_samples(self) -> bool:
        """Whether there is a half-life in samples."""
        return self.half_life is not None

    def share(self, count: Any, samples: Any, total: Any) -> Any:
        """1 - decay, computed as such: float32 would keep three digits of the difference."""
        if self.half_life is not None:
            half_life: Any = self.half_life
            if self.dynamic:
                half_life = ops.minimum(half_life, RAMP * ops.maximum(total + samples, 1))
            return -ops.expm1(-math.log(2.0) * samples / half_life)
        share = 1 - self.decay  # type: ignore[operator]
        return ops.maximum(share, 9 / (10 + count)) if self.dynamic else share


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class SWA(Average):
    """Stochastic weight averaging: the mean of snapshots along a learning rate that stays high, or goes in cycles.

    A snapshot is taken after update `start`, and after every `every`-th update behind it, at the end of each cycle. All
    have the same weight: the n-th brings the average 1/n of the way to itself.

    With a `rate` the learning rate is the optimizer's own up to update `start`, and then the given one: a number is
    constant, two numbers go in a straight line from the first to the second in each cycle of `every` updates:
    (1 - t) first + t second, with t = i / every for the i-th update of the cycle. Snapshots are taken at the second.
    The rate stays with the optimizer when training ends, and is saved with it.

    The weights of the average were never trained at, nor were BatchNormalization's statistics ever theirs: give
    `WeightAveraging` inputs to `refresh` them.

    Memory: one copy of the weights, in at least float32.

    Reference: Izmailov et al., 2018, arXiv:1803.05407, algorithm 1.

    Args:
        start: the update after which the first snapshot is taken: a number, or a span such as `"0.75run"`.
        every: updates from one snapshot to the next: a number, or a span such as `"1ep"`.
        rate: None for the optimizer's own, a number above 0, or a list of two, from which and to which each cycle goes.

    Raises:
        TypeError, ValueError: for an argument out of its range.

    >>> SWA("0.75run", rate=[0.05, 0.01])
    SWA(start='0.75run', every='1ep', rate=[0.05, 0.01])
    """

    number: ClassVar[int] = 2

    start: int | str = "0.75run"
    every: int | str = "1ep"
    rate: float | list[float] | None = None

    def __post_init__(self) -> None:
        self._set(start=checked_span("start", self.start, at_least=0), every=checked_span("every", self.every))
        if isinstance(self.rate, (list, tuple)):
            if len(self.rate) != 2:
                raise ValueError(f"`rate` must be a number, or a list of two. Received: rate={self.rate!r}")
            self._set(rate=[checks.number("rate", rate, above=0) for rate in self.rate])
        elif self.rate is not None:
            self._set(rate=checks.number("rate", self.rate, above=0))

    def share(self, count: Any, samples: Any, total: Any) -> Any:
        """1/n for the n-th snapshot."""
        return 1 / (count + 1)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class LAWA(Average):
    """Latest weight averaging: the mean of the last `k` snapshots.

    A snapshot is taken after every `every`-th update. Until there are `k`, the mean is of those that there are.

    Memory: `k` copies of the weights, in at least float32.

    Reference: Kaddour, 2022, arXiv:2209.14981, who takes a snapshot after each epoch.

    Args:
        k: how many snapshots, at least 1.
        every: updates from one snapshot to the next: a number, or a span such as `"1ep"` or `"0.5ep"`.
        start: the update after which the first snapshot is taken: a number or a span.

    Raises:
        TypeError, ValueError: for an argument out of its range.

    >>> LAWA(6).per_weight
    6
    """

    number: ClassVar[int] = 3

    k: int = 5
    every: int | str = "1ep"
    start: int | str = 0

    def __post_init__(self) -> None:
        self._set(k=checks.integer("k", self.k, at_least=1))
        self._set(start=checked_span("start", self.start, at_least=0), every=checked_span("every", self.every))

    @property
    def per_weight(self) -> int:
        """`k`."""
        return self.k

    def shape(self, shape: Any) -> tuple[int, ...]:
        """The snapshots lie one after the other along a first axis."""
        return (self.k, *shape)

    def taken_in(self, held: Any, weight: Any, count: Any, samples: Any, total: Any) -> Any:
        """The oldest snapshot gives its place to the newest."""
        at = ops.reshape(ops.equal(ops.arange(self.k, dtype="int32"), count % self.k), (-1, *[1] * len(weight.shape)))
        return ops.where(at, ops.expand_dims(weight, 0), held)

    def value(self, held: Any, count: Any) -> Any:
        """The mean of the snapshots that there are."""
        there = ops.reshape(ops.arange(self.k, dtype="int32") < count, (-1, *[1] * (len(held.shape) - 1)))
        total = ops.sum(ops.where(there, held, ops.zeros_like(held)), axis=0)
        return total / ops.cast(ops.clip(count, 1, self.k), held.dtype)


NAMES: dict[str, type[Average]] = {"ema": EMA, "swa": SWA, "lawa": LAWA}


def average_of(given: Any) -> Average:
    """An average, its name, or what Keras has made of it in a configuration."""
    if isinstance(given, dict):
        given = keras.saving.deserialize_keras_object(given)
    if isinstance(given, str):
        return NAMES[checks.one_of("average", given.lower(), NAMES)]()
    if not isinstance(given, Average):
        raise TypeError(
            f"`average` must be an average of `keras_trainkit.averaging`, or one of {', '.join(map(repr, NAMES))}. "
            f"Received: average={given!r}"
        )
    return given

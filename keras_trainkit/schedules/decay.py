"""Rates that fall steadily from their first value: by a line, a power, a hyperbola, an exponential or a root."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.schedules.base import LARGEST_STEP, Schedule, done_and_left, power, rate_dtype, whole
from keras_trainkit.schedules.spans import checked_span


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from `initial_learning_rate` to `end_learning_rate` over `decay_steps` updates.

    With T = `decay_steps`, the rate at step t <= T is (1 - t / T) initial + (t / T) end; after T it stays at the end.
    It may rise, too. Equal to torch's `LinearLR` (which is given factors of a base rate), optax's `linear_schedule`
    and Keras's `PolynomialDecay` with power 1.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        decay_steps: updates until the end, at least 1; or "10ep", "0.9run".
        end_learning_rate: the last rate, at least 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Linear(1.0, decay_steps=4, end_learning_rate=0.2)(step)), 4) for step in (0, 1, 4, 9)]
    [1.0, 0.8, 0.2, 0.2]
    """

    initial_learning_rate: float
    decay_steps: int | str
    end_learning_rate: float = 0.0

    spans: ClassVar = ("decay_steps",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate", "end_learning_rate")
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))

    def at(self, step: Any) -> Any:
        done, left = done_and_left(step, self.decay_steps)
        return left * self.initial_learning_rate + done * self.end_learning_rate


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """A power of what is left: end + (initial - end) (1 - t / T)^power, with T = `decay_steps`.

    After T it stays at the end. Equal to torch's `PolynomialLR`, optax's `polynomial_schedule` (with a
    `transition_begin` of b: `Warmup(Polynomial(...), b, initial=initial)`), timm's `PolyLR` and Keras's
    `PolynomialDecay` without `cycle`. timm's power is 0.5 unless given, the others' 1, ours 2; DeepLab
    (Chen et al., 2016, arXiv:1606.00915) has 0.9.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        decay_steps: updates until the end, at least 1; or "10ep", "0.9run".
        end_learning_rate: the last rate, at least 0.
        power: above 0; 1 is `Linear`.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Polynomial(1.0, decay_steps=10)(step)), 4) for step in (0, 1, 5, 10)]
    [1.0, 0.81, 0.25, 0.0]
    """

    initial_learning_rate: float
    decay_steps: int | str
    end_learning_rate: float = 0.0
    power: float = 2.0

    spans: ClassVar = ("decay_steps",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate", "end_learning_rate")
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))
        self._set("power", checks.number("power", self.power, above=0))

    def at(self, step: Any) -> Any:
        _, left = done_and_left(step, self.decay_steps)
        share = left**self.power
        return share * self.initial_learning_rate + (1 - share) * self.end_learning_rate


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """The rate times `decay_rate` every `decay_steps` updates: initial decay_rate^(t / decay_steps).

    It may rise (a `decay_rate` above 1, as in a search for the highest usable rate). Equal to Keras's
    `ExponentialDecay`, optax's `exponential_decay` and, with `decay_steps=1`, torch's `ExponentialLR`. The power is
    taken from tables made in double precision: 0.999999 in float32 is wrong by 27% after ten million steps.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        decay_rate: the factor, above 0.
        decay_steps: updates to a factor, at least 1; or "10ep", "0.9run".
        end_learning_rate: a rate that the schedule does not cross, at least 0; None for no such rate.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Exponential(1.0, 0.5, decay_steps=10)(step)), 4) for step in (0, 5, 10, 20)]
    [1.0, 0.7071, 0.5, 0.25]
    """

    initial_learning_rate: float
    decay_rate: float
    decay_steps: int | str = 1
    end_learning_rate: float | None = None

    spans: ClassVar = ("decay_steps",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate")
        self._check_rates("decay_rate", above=0)
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))
        if self.end_learning_rate is not None:
            self._check_rates("end_learning_rate")

    def at(self, step: Any) -> Any:
        rate = self.initial_learning_rate * power(self.decay_rate ** (1 / int(self.decay_steps)), whole(step))
        if self.end_learning_rate is None:
            return rate
        limit = ops.maximum if self.decay_rate <= 1 else ops.minimum
        return limit(rate, ops.cast(self.end_learning_rate, rate.dtype))


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class InverseSqrt(Schedule):
    """The root of a hyperbola: initial sqrt(s / (s + t)), with s = `timescale`. It has no end.

    Behind a ramp of s updates, `Warmup(InverseSqrt(peak, s), s)`, the rate is peak sqrt(s / t) at step t of the run, as
    in transformers' `get_inverse_sqrt_schedule` and fairseq. There is no such schedule in torch.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        timescale: after 3 times so many updates the rate is half, at least 1; or "10ep", "0.1run".

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(InverseSqrt(1.0, timescale=100)(step)), 4) for step in (0, 300, 800)]
    [1.0, 0.5, 0.3333]
    """

    initial_learning_rate: float
    timescale: int | str

    spans: ClassVar = ("timescale",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate")
        self._set("timescale", checked_span("timescale", self.timescale))

    def at(self, step: Any) -> Any:
        count = ops.cast(whole(step), rate_dtype())
        return self.initial_learning_rate * ops.sqrt(self.timescale / (count + self.timescale))


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Noam(Schedule):
    """The first transformer's: factor model_size^(-1/2) min(n^(-1/2), n warmup_steps^(-3/2)), for update n = t + 1.

    Vaswani et al., 2017, arXiv:1706.03762, section 5.3, whose step numbers begin at 1: so update 1 has a rate above 0.
    Code that puts t for n, such as some ports to torch, has 0 there (or divides by it) and lags by one step. The
    highest rate is factor (model_size warmup_steps)^(-1/2).

    Args:
        model_size: the width of the model, at least 1.
        warmup_steps: updates until the highest rate, at least 1; or "10ep", "0.1run".
        factor: above 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Noam(512, warmup_steps=4000)(step)) * 1e4, 4) for step in (0, 3999, 15999)]
    [0.0017, 6.9877, 3.4939]
    """

    model_size: int
    warmup_steps: int | str = 4000
    factor: float = 1.0

    spans: ClassVar = ("warmup_steps",)

    def __post_init__(self) -> None:
        self._set("model_size", checks.integer("model_size", self.model_size, at_least=1))
        self._set("warmup_steps", checked_span("warmup_steps", self.warmup_steps))
        self._check_rates("factor", above=0)

    def at(self, step: Any) -> Any:
        number = ops.cast(ops.minimum(whole(step), LARGEST_STEP - 1) + 1, rate_dtype())
        warmup = int(self.warmup_steps)
        top = self.factor * (self.model_size * warmup) ** -0.5
        return top * ops.minimum(ops.sqrt(warmup / number), number / warmup)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class REX(Schedule):
    """Slow at first and fast at last: end + (initial - end) z / (1/2 + z / 2), with z = 1 - t / T left of the run.

    T is `decay_steps`; after it the rate stays at the end. Chen, Wolfe and Kyrillidis, 2021, arXiv:2107.04197:
    "reflected exponential". pytorch_optimizer's `REXScheduler` has the same values, but for its very first step,
    which runs at the end rate because nothing has set it yet.

    Args:
        initial_learning_rate: the rate at step 0, at least 0.
        decay_steps: updates until the end, at least 1; or "10ep", "0.9run".
        end_learning_rate: the last rate, at least 0.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(REX(1.0, decay_steps=100)(step)), 4) for step in (0, 50, 90, 100)]
    [1.0, 0.6667, 0.1818, 0.0]
    """

    initial_learning_rate: float
    decay_steps: int | str
    end_learning_rate: float = 0.0

    spans: ClassVar = ("decay_steps",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate", "end_learning_rate")
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))

    def at(self, step: Any) -> Any:
        done, left = done_and_left(step, self.decay_steps)
        # 1 - 2 z / (1 + z) is (1 - z) / (1 + z).
        return (2 * left * self.initial_learning_rate + done * self.end_learning_rate) / (1 + left)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class Tanh(Schedule):
    """A slope between two plateaus: end + (initial - end) (1 - tanh(x)) / 2, x going from `lower` to `upper`.

    x = lower + (upper - lower) t / T, with T = `decay_steps`. Hsueh, Li and Wu, 2018, arXiv:1806.01593, who use -6 and
    3; timm's `TanhLR` has -6 and 4 unless told otherwise, as here. After T the rate stays where it is, a little above
    the end ((1 - tanh 4) / 2 is 0.0003); timm drops to the end there.

    Args:
        initial_learning_rate: the rate where tanh is -1, at least 0; at step 0 it is a little less.
        decay_steps: updates from `lower` to `upper`, at least 1; or "10ep", "0.9run".
        end_learning_rate: the rate where tanh is 1, at least 0.
        lower, upper: where on the curve to begin and to end; `lower` is below `upper`.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> [round(float(Tanh(1.0, decay_steps=100)(step)), 4) for step in (0, 50, 60, 100)]
    [1.0, 0.8808, 0.5, 0.0003]
    """

    initial_learning_rate: float
    decay_steps: int | str
    end_learning_rate: float = 0.0
    lower: float = -6.0
    upper: float = 4.0

    spans: ClassVar = ("decay_steps",)

    def __post_init__(self) -> None:
        self._check_rates("initial_learning_rate", "end_learning_rate")
        self._set("decay_steps", checked_span("decay_steps", self.decay_steps))
        self._set("upper", checks.number("upper", self.upper))
        self._set("lower", checks.number("lower", self.lower, below=self.upper))

    def at(self, step: Any) -> Any:
        done, left = done_and_left(step, self.decay_steps)
        x = self.lower * left + self.upper * done
        # (1 - tanh x) / 2 without the difference, which keeps few digits where tanh is near 1.
        falling, rising = 1 / (1 + ops.exp(2 * x)), 1 / (1 + ops.exp(-2 * x))
        return falling * self.initial_learning_rate + rising * self.end_learning_rate

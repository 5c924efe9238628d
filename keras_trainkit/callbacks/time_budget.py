"""Training that ends when its time does, with the learning rate at the end of its schedule."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.steering import SteeredRate, steer
from keras_trainkit.core import TransformOptimizer, backend, checks
from keras_trainkit.monitoring import counting
from keras_trainkit.schedules.base import rate_dtype
from keras_trainkit.training import train_functions

MODES = ("finish", "stop")
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|min|h)")
_FIRST, _EVERY = 0.01, 0.05  # of the budget: until the first plan, and between two
_SAME = 0.02  # a speed that differs by less is left as it is


@keras.saving.register_keras_serializable("keras_trainkit")
class BudgetRate(SteeredRate):
    """A learning rate whose schedule runs faster than the updates do.

    The numbers are an update, the place in the schedule at that update, and the places that each further one goes.
    """

    place = "budget_memory"
    initial = (0.0, 0.0, 1.0)

    def __call__(self, step: Any) -> Any:
        """The rate at `step`."""
        numbers = ops.convert_to_tensor(self.memory.numbers)
        step = ops.convert_to_tensor(step)
        since = step - ops.cast(numbers[0], step.dtype)
        gone = ops.cast(ops.round(numbers[2] * ops.cast(since, rate_dtype())), step.dtype)
        return self.rate_at(ops.cast(numbers[1], step.dtype) + gone)

    def position(self, step: int) -> int:
        """The place in the schedule at an update."""
        start, place, speed = self.numbers()
        return int(place) + round(speed * (step - start))


@keras.saving.register_keras_serializable("keras_trainkit")
class TimeBudget(keras.callbacks.Callback):
    """Ends training inside a span of wall-clock time; with `"finish"`, at the end of the learning-rate schedule.

    `"finish"`: from the time that updates take, validation and all else included, it works out how many are left, and
    has the schedule (the kit's, Keras's or your own) run so much faster that its decay ends when the time does. The
    plan is made anew while training goes on. A schedule never runs slower than it was made: where there is time enough
    training ends when `fit` does. So give `fit` the epochs that you would train if there were time. Training ends with
    the update that is the schedule's last, or when the time is over.

    `"stop"`: the schedule stays, and training ends after the last batch that can be done in time.

    The time counts from the beginning of `fit`, tracing included, and over all processes of a run that
    `ResumableTraining` resumes. What comes after `fit` is not in it: leave some in `reserve`. In mode `"finish"` a
    number as learning rate becomes a schedule by this, and can no longer be assigned; on JAX the train step is traced
    anew with each new plan.

    Args:
        seconds: the time, a number of seconds above 0, or a text such as `"30min"`, `"90s"` or `"1.5h"`.
        mode: `"finish"` or `"stop"`.
        updates: of the whole schedule; what `fit` will make when left out, which must then know how long an epoch is.
        reserve: time to leave, likewise, less than `seconds`; 0 is none.

    Attributes:
        clock: a function that returns the time in seconds.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, if the length
            of an epoch is not known.

    >>> callback = TimeBudget("30min")  # model.fit(x, y, epochs=100, callbacks=[callback])
    >>> callback.seconds, callback.speed
    (1800.0, 1.0)
    """

    def __init__(
        self, seconds: float | str, mode: str = "finish", updates: int | None = None, reserve: float | str = 0.0
    ) -> None:
        super().__init__()
        self.seconds = _seconds("seconds", seconds)
        self.mode = checks.one_of("mode", mode, MODES)
        self.updates = None if updates is None else checks.integer("updates", updates, at_least=1)
        self.reserve = 0.0 if reserve == 0 else _seconds("reserve", reserve)
        if self.reserve >= self.seconds:
            raise ValueError(
                f"`reserve` must be less than the {self.seconds:g} seconds there are. Received: reserve={reserve!r}"
            )
        self.clock: Callable[[], float] = time.monotonic
        self._rate: Any = None
        self._used = 0.0
        self._began: float | None = None
        self._end: int | None = None
        self._fresh()

    def _fresh(self) -> None:
        self._marks: list[tuple[float, int]] = []  # moments, and the updates that were done then
        self._timed: float | None = None  # when timing began
        self._last: float | None = None  # when the last batch of this epoch began
        self._of_batch = self._of_epoch = 0.0  # seconds of the last batch; the most that the end of an epoch took
        self._batches = self._before_epoch = self._timed_batches = 0
        self._ended: float | None = None  # when the last batch of the epoch before began
        self._seen = False
        self._planned = (0, 0)  # the batches and the updates done when the last plan was made
        self._next_plan = 0.0

    # ------------------------------------------------------------------------------------------------------- Keras

    def set_params(self, params: Any) -> None:
        # Before any callback's `on_train_begin`: what BackupAndRestore reads there finds its place.
        super().set_params(params)
        if self.mode == "finish" and params and params.get("epochs") is not None and self.model is not None:
            self._rate = steer(self.model, BudgetRate)

    def on_train_begin(self, logs: Any = None) -> None:
        self._used, self._began, self._end = 0.0, self.clock(), self.updates
        self._fresh()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._before_epoch, self._ended, self._last = self._batches, self._last, None
        if self.mode == "finish" and self._end is None:
            steps, epochs = self.params.get("steps"), self.params.get("epochs")
            if steps is None:
                raise ValueError(
                    "`updates` must be given to `TimeBudget`, or `steps_per_epoch` to `fit`: the data do not tell how "
                    "long an epoch is."
                )
            self._end = self._rate.position(self._count()) + (epochs - epoch) * steps // self._accumulation()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._batches, now = self._before_epoch + batch, self.clock()
        if not self._seen:
            self._seen = True  # this one traces
            return
        if self._last is not None:
            self._of_batch = now - self._last
        elif self._ended is not None and self._timed is not None:
            self._of_epoch = max(self._of_epoch, now - self._ended - self._of_batch)
        self._last = now
        if self._timed is None:
            count = self._count()
            self._timed, self._timed_batches = now, self._batches
            self._marks.append((now, count))
            self._planned = (self._batches, count)
            self._next_plan = now + _FIRST * self.seconds
        elif self.mode == "finish" and now >= self._next_plan:
            self._plan(now)
        if self._is_last(now):
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._batches += int(getattr(self.model, "steps_per_execution", None) or 1)
        if self.elapsed >= self.seconds - self.reserve:
            self.model.stop_training = True

    # ------------------------------------------------------------------------------------------------------- state

    @property
    def elapsed(self) -> float:
        """Seconds of the budget that are used, those of earlier processes included."""
        return self._used + (0.0 if self._began is None else self.clock() - self._began)

    @property
    def speed(self) -> float:
        """Places in the schedule that an update goes now; 1 as long as there is time enough."""
        return 1.0 if self._rate is None else self._rate.numbers()[2]

    def get_state(self) -> dict[str, Any]:
        """The time used and the plan, for `ResumableTraining`."""
        numbers = None if self._rate is None else self._rate.numbers()
        return {"elapsed": self.elapsed, "end": self._end, "numbers": numbers}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._used, self._began, self._end = state["elapsed"], self.clock(), state["end"]
        if self._rate is not None and state["numbers"] is not None:
            self._change(state["numbers"])

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"seconds": self.seconds, "mode": self.mode, "updates": self.updates, "reserve": self.reserve}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TimeBudget:
        """The inverse of `get_config`."""
        return cls(**config)

    # -------------------------------------------------------------------------------------------------------- plan

    def _left(self) -> float:
        return self.seconds - self.reserve - self.elapsed

    def _plan(self, now: float) -> None:
        """Sets the speed by which the schedule ends with the time, as far as updates so far tell."""
        # The last half of what there is: how it was long ago says little.
        since, first = self._marks[len(self._marks) // 2]
        count = self._count()
        if count <= first:
            return
        each = (now - since) / (count - first)
        place = self._rate.position(count)
        updates = max((self._left() - self._of_epoch) / each, 1.0) if each > 0 else math.inf
        speed = max(1.0, ((self._end or 0) - place) / updates)
        if abs(speed / self.speed - 1) > _SAME:
            self._change([count, place, speed])
        self._marks.append((now, count))
        self._planned = (self._batches, count)
        self._next_plan = now + _EVERY * self.seconds

    def _is_last(self, now: float) -> bool:
        """Whether the execution that begins is the last one: of the time, or of the schedule."""
        at_once = int(getattr(self.model, "steps_per_execution", None) or 1)
        done = self._batches - self._timed_batches
        mean = 0.0 if self._timed is None or not done else (now - self._timed) / done
        if self._left() - self._of_epoch < 2 * max(mean * at_once, self._of_batch):
            return True
        if self.mode == "stop" or self.speed == 1.0:
            return False
        batches, count = self._planned
        after = count + (self._batches + at_once - batches) // self._accumulation()
        return self._rate.position(after) >= (self._end or 0)

    def _change(self, numbers: list[float]) -> None:
        self._rate.change(numbers)
        if keras.backend.backend() != "tensorflow":
            train_functions.trace_anew(self.model)  # the other backends compile the numbers in

    def _count(self) -> int:
        """What the schedule is asked by: updates, with a Keras optimizer batches."""
        counting.synchronize(self.model)
        return int(ops.convert_to_numpy(backend.iterations_variable(optimizers.innermost(self.model.optimizer))))

    def _accumulation(self) -> int:
        optimizer = optimizers.innermost(self.model.optimizer)
        return counting.accumulation_steps(optimizer) if isinstance(optimizer, TransformOptimizer) else 1


def _seconds(name: str, value: Any) -> float:
    """A time in seconds.

    >>> _seconds("seconds", "1.5h"), _seconds("seconds", 90)
    (5400.0, 90.0)
    """
    if not isinstance(value, str):
        return checks.number(name, value, above=0)
    match = _TEXT.fullmatch(value.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(
            f"`{name}` must be a number of seconds above 0, or a text such as '30min', '90s' or '1.5h'. "
            f"Received: {name}={value!r}"
        )
    return float(match[1]) * _UNITS[match[2]]

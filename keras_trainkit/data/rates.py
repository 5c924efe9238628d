"""Learning rates that follow the batch size, whatever it is at each step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import backend, checks
from keras_trainkit.data.feed import unpacked
from keras_trainkit.schedules.base import Schedule, rate_dtype

RULES = ("linear", "sqrt", "none")
Model = TypeVar("Model", bound=keras.Model)


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class RateByBatch(Schedule):
    """A schedule for batches of one size, made to follow the size of each batch.

    With b the examples in the batch, over all replicas, the rate is schedule(t) (b / `batch_size`) for "linear" (Goyal
    et al., 2017, arXiv:1706.02677: for SGD), schedule(t) sqrt(b / `batch_size`) for "sqrt" (Malladi et al., 2022,
    arXiv:2205.10287: for Adam and its kin), and schedule(t) for "none". t counts updates, as ever.

    Give it to the optimizer, as the outermost schedule, and the compiled model to `follow_batch_size`, which tells it
    the size of each batch. With accumulation the size is that of the micro-batch that ends the window, so that all of a
    window should be alike (`RandomSize(..., every=k)`), and `batch_size` is that of a micro-batch, too.

    Args:
        schedule: a `LearningRateSchedule`, ours, Keras's or your own, or a number; the rate at `batch_size`.
        batch_size: the examples to a step at which `schedule` holds, at least 1.
        rule: "linear", "sqrt" or "none".

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> from keras_trainkit.schedules import Cosine
    >>> rate = RateByBatch(Cosine(0.1, decay_steps=100), batch_size=32, rule="sqrt")
    >>> rate.factor(128), round(float(rate(50)), 4)
    (2.0, 0.05)
    """

    schedule: LearningRateSchedule | float
    batch_size: int
    rule: str = "linear"

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, LearningRateSchedule):
            rate = checks.number("schedule", self.schedule, at_least=0)
            object.__setattr__(self, "schedule", rate)
        object.__setattr__(self, "batch_size", checks.integer("batch_size", self.batch_size, at_least=1))
        checks.one_of("rule", self.rule, RULES)
        object.__setattr__(self, "_seen", None)

    def factor(self, size: Any) -> Any:
        """By what the rate of a batch of this size differs from `schedule`; a number or a scalar tensor."""
        if self.rule == "none":
            return 1.0
        ratio = size / self.batch_size
        return ratio if self.rule == "linear" else ratio**0.5

    def at(self, step: Any) -> Any:
        """The rate at `step` for the batch at hand.

        Before any batch, and on JAX outside of a train step, it is that of `schedule`.
        """
        rate = self.schedule(step) if isinstance(self.schedule, LearningRateSchedule) else self.schedule
        rate, seen = ops.cast(rate, rate_dtype()), self._seen
        if seen is None:
            return rate
        return rate * ops.cast(backend.read(seen) if isinstance(seen, keras.Variable) else seen, rate.dtype)


def follow_batch_size(model: Model) -> Model:
    """Has each train step of a compiled model tell the optimizer's `RateByBatch` how large its batch is.

    It goes around the model's own `train_step`, whatever that is, and counts the rows of the batch, so that any kind of
    data will do. Nothing is traced anew for a size: where steps are compiled by shape (JAX, and `jit_compile=True`) the
    factor is a constant of each program. Saved files know nothing of it: call it again on a loaded model, and after
    another `compile`.

    Args:
        model: compiled, with an optimizer whose learning rate is a `RateByBatch`.

    Returns:
        The model.

    Raises:
        ValueError: for a model without such an optimizer.

    >>> from keras_trainkit import optimizers
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizers.SGD(RateByBatch(0.1, batch_size=32)), "mse")
    >>> model = follow_batch_size(model)
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = None if optimizer is None else backend.learning_rate_argument(optimizer)
    if not isinstance(rate, RateByBatch):
        raise ValueError(
            f"`model` must be compiled with an optimizer whose learning rate is a RateByBatch. Received: {rate!r}"
        )
    if rate.rule == "none":
        return model
    if backend.ON_TENSORFLOW:
        with model.distribute_strategy.scope():
            seen = keras.Variable(1.0, trainable=False, dtype="float32", name="rate_factor")
        object.__setattr__(rate, "_seen", seen)
    original = model.train_step

    @functools.wraps(original)
    def train_step(*arguments: Any) -> Any:
        x, _, _ = unpacked(arguments[-1])
        leaf = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
        rows = ops.shape(leaf)[0]
        if backend.ON_TENSORFLOW:
            # The same on every replica, because batches are dealt out evenly.
            count = ops.cast(rows, "float32") * backend.replicas()
            backend.write(seen, rate.factor(count))
            return original(*arguments)
        object.__setattr__(rate, "_seen", rate.factor(rows))
        try:
            return original(*arguments)
        finally:
            object.__setattr__(rate, "_seen", None)

    model.train_step = train_step
    return model

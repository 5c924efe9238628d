"""Terms of the loss that need more than the outputs: how they get into any `train_step`, and into the logs."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.training.installation import Model, install
from keras_trainkit.training.interception import intercepted
from keras_trainkit.training.passes import State, state_now

_ARGUMENTS = ("x", "y", "y_pred", "sample_weight", "training")
_ODD = np.uint32(0x9E3779B1)
_local = threading.local()


@dataclasses.dataclass(frozen=True)
class Moment:
    """A call of `compute_loss` in a train step.

    Attributes:
        original: the model's own `compute_loss`, or another helper's.
        given, named: the arguments that it was called with.
        arguments: the same by their names in Keras, with the batch's inputs for an `x` that was not given.
        before: the state in which the step began.
        updates: how many updates the optimizer has done; a scalar tensor.
        word: a uint32 scalar, another one in each step: a function of the updates done and of the samples seen in this
            epoch, so that training that goes on from a file draws what it would have drawn.
    """

    original: Callable[..., Any]
    given: tuple[Any, ...]
    named: dict[str, Any]
    arguments: dict[str, Any]
    before: State
    updates: Any
    word: Any

    def loss(self) -> Any:
        """The loss without the penalty."""
        return self.original(*self.given, **self.named)

    def loss_of(self, outputs: Any) -> Any:
        """The same for other outputs of the model."""
        # By position as they came: a user's `compute_loss` may have names of its own.
        position = _ARGUMENTS.index("y_pred")
        if len(self.given) <= position:
            return self.original(*self.given, **(self.named | {"y_pred": outputs}))
        return self.original(*self.given[:position], outputs, *self.given[position + 1 :], **self.named)


Rule = Callable[[Any, Moment], tuple[Any, Any]]
"""Of model and moment: the whole loss, and the penalty to show, a mean over the samples of the replica."""


class Meter(keras.metrics.Mean):
    """The mean of a penalty over an epoch. It stays out of what `evaluate` returns, where nothing is measured."""

    def result(self) -> Any:
        """Nothing."""
        return {}

    def mean(self) -> Any:
        """What the logs show."""
        return super().result()


def install_penalty(model: Model, kind: str, name: str, rule: Rule) -> Model:
    """Has every `compute_loss` in the model's train step answer with `rule`, and its penalty stand in the logs."""

    def around(train_step: Any) -> Any:
        with _scope(model):
            meter = Meter(name=name)
        step = (_tensorflow_step if backend.ON_TENSORFLOW else _jax_step)(model, rule, meter, train_step)
        backend.add_metric(model, meter)
        step.undo = lambda: backend.remove_metric(model, meter)
        return step

    return install(model, kind, around)


def _scope(model: Any) -> Any:
    return model.distribute_strategy.scope() if backend.ON_TENSORFLOW else contextlib.nullcontext()


@contextlib.contextmanager
def _answering(model: Any, meter: Meter, compute_loss: Callable[..., Any]) -> Iterator[None]:
    running = _running()
    running.append(id(meter))
    try:
        with intercepted(model, "compute_loss", compute_loss):
            yield
    finally:
        running.pop()


def _running() -> list[int]:
    """The meters of the steps that this thread is in: one that is run again inside of itself has its penalty."""
    if not hasattr(_local, "running"):
        _local.running = []
    return _local.running


def _tensorflow_step(model: Any, rule: Rule, meter: Meter, train_step: Any) -> Any:
    def step(data: Any) -> Any:
        if id(meter) in _running():
            return train_step(data)
        before, values = state_now(model), []
        updates = ops.zeros((), "int32") if model.optimizer is None else backend.read(model.optimizer.iterations)
        word = _word(updates, backend.read(meter.count))

        def compute_loss(original: Any, *given: Any, **named: Any) -> Any:
            arguments = _arguments(data, given, named)
            loss, value = rule(model, Moment(original, given, named, arguments, before, updates, word))
            values.append(value)
            return loss

        with _answering(model, meter, compute_loss):
            logs = train_step(data)
        _check_called(values)
        # Not before: a helper around this one that runs the step twice must find the meter as it was. Its second run
        # has a value, too, which may belong to the branch of a conditional.
        meter.update_state(values[0], sample_weight=_rows(data))
        return {**logs, meter.name: meter.mean()}

    return backend.plain_python(step)


def _jax_step(model: Any, rule: Rule, meter: Meter, train_step: Any) -> Any:
    def step(state: Any, data: Any) -> Any:
        if id(meter) in _running():
            return train_step(state, data)
        optimizer, called = model.optimizer, []
        updates = state[2][_position(optimizer.variables, optimizer.iterations)]
        before = list(zip(model.non_trainable_variables, state[1], strict=True))
        own = [_position(model.metrics_variables, v) for v in meter.variables]
        word = _word(updates, state[3][own[_position(meter.variables, meter.count)]])

        def compute_loss(original: Any, *given: Any, **named: Any) -> Any:
            arguments = _arguments(data, given, named)
            loss, value = rule(model, Moment(original, given, named, arguments, before, updates, word))
            # Inside of the gradient: no value may leave it but through the metrics that Keras hands on.
            meter.update_state(value, sample_weight=_rows(data))
            called.append(True)
            return loss

        with _answering(model, meter, compute_loss):
            logs, state = train_step(state, data)
        _check_called(called)
        measured = [(v, state[3][i]) for v, i in zip(meter.variables, own, strict=True)]
        with keras.StatelessScope(state_mapping=measured):
            return {**logs, meter.name: meter.mean()}, state

    return step


def _arguments(data: Any, given: Any, named: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(zip(_ARGUMENTS, given, strict=False)) | named
    if arguments.get("x") is None:
        arguments["x"] = keras.utils.unpack_x_y_sample_weight(data)[0]
    return arguments


def _word(updates: Any, seen: Any) -> Any:
    seen = seen * backend.replicas()  # of all, so that replicas draw as one device does
    return ops.cast(updates, "uint32") * ops.convert_to_tensor(_ODD, "uint32") + ops.cast(seen, "uint32")


def _position(variables: list[Any], variable: Any) -> int:
    return next(i for i, v in enumerate(variables) if v is variable)


def _rows(data: Any) -> Any:
    return ops.shape(next(leaf for leaf in keras.tree.flatten(data) if leaf is not None))[0]


def _check_called(values: list[Any]) -> None:
    if not values:
        raise ValueError(
            "`train_step` did not call the model's `compute_loss`, to which the penalty is added. A train step of your "
            "own takes its loss from `self.compute_loss(x, y, y_pred, sample_weight)`."
        )


def checked_strength(strength: Any) -> Any:
    """A number at least 0, or a schedule of the updates done."""
    return strength if callable(strength) else checks.number("strength", strength, at_least=0)


def strength_now(strength: Any, updates: Any) -> Any:
    """The strength after so many updates."""
    return strength(updates) if callable(strength) else strength


def reduction_of(model: Any) -> str:
    """How the compiled losses make one number of those of the samples; a mean where they differ or do not say."""
    losses = keras.tree.flatten(getattr(model, "loss", None))
    found = {getattr(loss, "reduction", "sum_over_batch_size") for loss in losses if loss is not None}
    found -= {None, "none"}
    return found.pop() if len(found) == 1 else "sum_over_batch_size"


def unscaled(loss: Any) -> Any:
    """A loss as a mean over the replica's own samples, which Keras divides by the number of replicas."""
    return loss * backend.replicas()

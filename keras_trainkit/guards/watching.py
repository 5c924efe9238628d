"""One wrapper of a model's `train_step` for all guards: it sees the batch, the loss and the gradients of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.core import backend
from keras_trainkit.training.interception import intercepted


class Observer:
    """What one watcher does in one trace of the train step, on one replica; each method builds a part of the graph."""

    def loss(self, value: Any) -> None:
        """The first loss that the step computes, not scaled."""

    def gradients(self, gradients: list[Any], variables: list[Any]) -> None:
        """What the optimizer is about to be given, loss scale and all."""

    def end(self) -> None:
        """After the update."""


class WatchedStep:
    """A model's train step, with watchers that come and go in any order."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.before = vars(model).get("train_step")
        self._original = model.train_step
        self.watchers: list[Callable[[Any], Observer]] = []

    def __call__(self, data: Any) -> Any:
        """The train step."""
        if not self.watchers:
            return self._original(data)
        observers = [watcher(data) for watcher in self.watchers]
        losses: list[Any] = []

        def compute_loss(original: Any, *arguments: Any, **keywords: Any) -> Any:
            value = original(*arguments, **keywords)
            losses.append(value)
            if len(losses) == 1:  # a second one, such as SAM's, is of other weights
                for observer in observers:
                    observer.loss(value)
            return value

        def apply(original: Any, grads: Any, trainable_variables: Any = None, **more: Any) -> Any:
            gradients = list(grads)
            known = self.model.trainable_variables if trainable_variables is None else trainable_variables
            variables = list(known)
            for observer in observers:
                observer.gradients(gradients, variables)
            return original(gradients, trainable_variables, **more)

        with (
            intercepted(self.model, "compute_loss", compute_loss),
            intercepted(self.model.optimizer, "apply", apply),
        ):
            logs = self._original(data)
        for observer in observers:
            observer.end()
        return logs

    def add(self, watcher: Callable[[Any], Observer]) -> None:
        """Has `watcher(data)` make an observer in each trace from now on."""
        self.watchers.append(watcher)

    def remove(self, watcher: Callable[[Any], Observer]) -> None:
        """The inverse of `add`; with the last one the step goes, unless others have put theirs around it."""
        self.watchers = [other for other in self.watchers if other is not watcher]
        if not self.watchers and getattr(vars(self.model).get("train_step"), "watched", None) is self:
            del self.model.train_step
            if self.before is not None:
                object.__setattr__(self.model, "train_step", self.before)


def watch(model: Any, watcher: Callable[[Any], Observer]) -> Callable[[], None]:
    """Has `watcher` see the model's steps from the next trace on; returns what ends it."""
    known = getattr(vars(model).get("train_step"), "watched", None)
    watched = known or WatchedStep(model)
    if known is None:

        def train_step(data: Any) -> Any:
            return watched(data)

        train_step = backend.plain_python(train_step)
        train_step.watched = watched  # type: ignore[attr-defined]
        # On this one object and past `__setattr__`, where Keras would track it.
        object.__setattr__(model, "train_step", train_step)
    watched.add(watcher)
    model.make_train_function(force=True)

    def end() -> None:
        watched.remove(watcher)
        model.make_train_function(force=True)

    return end


def needs_tensorflow(name: str) -> None:
    """Raises where a train step cannot look at itself."""
    if not backend.ON_TENSORFLOW:
        raise ValueError(
            f"`{name}` needs Keras on TensorFlow. Received: {keras.backend.backend()!r} as Keras's backend"
        )


def build_optimizer(model: Any) -> None:
    """Makes the optimizer's state, if it is not there, where the model's variables are."""
    if model.optimizer is not None and not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)


def scalar(name: str, dtype: str = "int32", shape: tuple[int, ...] = ()) -> Any:
    """A variable of a guard's own, zero at first; make it in the scope of the model's strategy."""
    return keras.Variable(keras.ops.zeros(shape, dtype), dtype=dtype, trainable=False, name=name)

"""NonFiniteGuard: the first NaN or infinity, wherever it is, and what was there when it came."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, checks, slices
from keras_trainkit.guards import dump, evidence
from keras_trainkit.guards.autopsy import autopsy
from keras_trainkit.guards.evidence import GRADIENTS, WEIGHTS, Courier, Desk
from keras_trainkit.guards.figures import figures
from keras_trainkit.guards.watching import Observer, build_optimizer, needs_tensorflow, scalar, watch
from keras_trainkit.monitoring.counting import to_float
from keras_trainkit.training import train_functions

ACTIONS = ("stop", "raise", "continue")


class NonFiniteError(ArithmeticError):
    """Raised by `NonFiniteGuard(action="raise")`; the message names the dump and the first layer that went bad."""


@keras.saving.register_keras_serializable("keras_trainkit")
class NonFiniteGuard(keras.callbacks.Callback):
    """Ends training at the first NaN or infinity in loss, gradients or weights, and keeps what tells why it came.

    Keras's `TerminateOnNaN` looks at the loss alone, which stays finite when NaN weights stand before a fused ReLU (it
    makes 0 of NaN). This looks at the loss and at every gradient before each update, and at all variables of the model
    after each `every`-th step, inside of the compiled step. When all is well nothing is read from the device.

    At the first event a folder `directory/nonfinite-<updates>` gets its name when it is whole; it holds

    - `batch.npz`: the batch, of all replicas;
    - `weights.npz`: all variables of the model, statistics and seeds too. They are those *before* the step if loss or
      gradients were bad, and those *of now*, after it, if only the weights were;
    - `event.json`: when it was; figures of batch, weights and gradients; and for each layer those of outputs and
      gradients, from the same step done once more op by op;
    - `configuration.json`: model, optimizer, loss and the `recipe` that was given.

    `keras-trainkit autopsy FOLDER` and `guards.autopsy(folder)` say which layer went bad first.

    It works with every optimizer, Keras's own too, as long as the train step calls its `apply` or `apply_gradients`
    (the loss is seen if it calls `compute_loss`); with accumulation each micro-batch is judged by itself. Under
    MirroredStrategy a bad value on one replica is an event for all. Gradients that overflow under a LossScaleOptimizer,
    which skips them, are no event as long as it can lower its scale (above its `minimum_scale`; 1 for Keras's); a loss
    that is not finite is one. With XLA (`jit_compile=True`; on a GPU without a strategy Keras takes that by itself) the
    step can hand nothing out: then a flag is read every `look_every` batches, and the dump has no batch, no layers, and
    the weights of now. On TensorFlow only.

    Args:
        directory: where dumps go.
        action: `"stop"` ends `fit` after the event, `"raise"` raises NonFiniteError in `fit`, `"continue"` only writes.
        every: steps between two looks at the weights, at least 1.
        dumps: the most dumps of one `fit`, at least 1; more than one need `"continue"`.
        look_every: batches between two looks at the flag, with XLA.
        recipe: plain values that describe the run, written with the dump.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, with Keras on
            another backend than TensorFlow.

    Attributes:
        events: list of dictionaries, one for each dump: `iterations`, `epoch`, `batch`, `kind`, `where`, `layer`,
            `path`.

    >>> guard = NonFiniteGuard("runs/first/bad", action="raise")
    >>> guard.get_config()["every"]
    1
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = "nonfinite",
        action: str = "stop",
        every: int = 1,
        dumps: int = 1,
        look_every: int = 10,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.directory = os.fspath(directory)
        self.action = checks.one_of("action", action, ACTIONS)
        self.every = checks.integer("every", every, at_least=1)
        self.dumps = checks.integer("dumps", dumps, at_least=1)
        self.look_every = checks.integer("look_every", look_every, at_least=1)
        self.recipe = recipe
        self.events: list[dict[str, Any]] = []
        self._end: Any = None
        self._safe: Callable[[], Any] = bool
        self._reset()

    def _reset(self) -> None:
        self._epoch = self._batch = 0
        self._seen = 0
        self._structure: Any = None

    # --------------------------------------------------------------------------------------------------------- config

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("directory", "action", "every", "dumps", "look_every", "recipe")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NonFiniteGuard:
        """The inverse of `get_config`."""
        return cls(**config)

    def get_state(self) -> dict[str, Any]:
        """The events so far, for `ResumableTraining`."""
        return {"events": [dict(event) for event in self.events]}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.events = [dict(event) for event in state["events"]]

    # --------------------------------------------------------------------------------------------------------- events

    def on_train_begin(self, logs: Any = None) -> None:
        """Puts itself around the train step."""
        needs_tensorflow(type(self).__name__)
        self._let_go()
        self._reset()
        model = self.model
        if not model.built:
            raise ValueError("`NonFiniteGuard` needs a built model: give it an `Input`, or call it on data.")
        build_optimizer(model)
        self._compiled = bool(model.jit_compile)
        with train_functions.variables_of(model):
            # Steps of this `fit`; bad ones; of which kind the first was; and which gradients were bad in it.
            self._steps, self._bad, self._kind = (scalar(f"nonfinite_{n}") for n in ("steps", "bad", "kind"))
            self._flags = scalar("nonfinite_gradients", shape=(max(1, len(model.trainable_variables)),))
        self._desk = Desk(backend.replicas_of(model))
        self._end = watch(model, lambda data: _Observation(self, data))
        self._safe = backend.when_fit_fails(self._let_go)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        self._epoch, self._batch = epoch, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Attends to an event of the batches before."""
        self._attend(look=batch % self.look_every == 0)
        self._batch = batch

    def on_test_begin(self, logs: Any = None) -> None:
        """Attends to an event of the epoch's last batches, before validation."""
        self._attend()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Attends to an event of the epoch's last batches."""
        self._attend()

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model its train step back."""
        try:
            self._attend()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._end is not None:
            end, self._end = self._end, None
            self._safe()
            end()

    def _attend(self, look: bool = True) -> None:
        if self._end is None:
            return
        if self._compiled:
            if look and not self._seen and (to_float(self._bad) or 0) > 0:
                self._seen = 1
                self._note(self._without_batch(), {})
            return
        shares = self._desk.take()
        while shares is not None:
            facts, batch, weights = dump.describe(self.model, shares, self._structure)
            self._note(facts, {dump.FILES["batch"]: batch, dump.FILES["weights"]: weights})
            shares = self._desk.take()

    def _without_batch(self) -> dict[str, Any]:
        model = self.model
        values = [ops.convert_to_numpy(v) for v in model.variables]
        counts = ops.convert_to_numpy(self._flags)
        return {
            "kind": "weights" if to_float(self._kind) == WEIGHTS else "loss or gradients",
            "iterations": int(to_float(model.optimizer.iterations) or 0),
            "loss": None,
            "weights_are": "of now",
            "arrays": [],
            "variables": dump.replay.variable_figures(model, values),
            "gradients": [
                {"path": v.path} | figures([float("nan")] if bad else [])
                for v, bad in zip(model.trainable_variables, counts, strict=False)
            ],
        }

    def _note(self, facts: dict[str, Any], arrays: dict[str, Any]) -> None:
        facts |= {"epoch": self._epoch, "batch": self._batch, "action": self.action}
        if not arrays:
            weights = {v.path: ops.convert_to_numpy(v) for v in self.model.variables}
            arrays = {dump.FILES["weights"]: weights}
        path = dump.write(Path(self.directory), facts, arrays, self.model, self.recipe)
        found = autopsy(path)
        kept = {name: facts[name] for name in ("iterations", "epoch", "batch", "kind")}
        self.events.append({**kept, "where": found.where, "layer": found.layer, "path": str(path)})
        text = f"not finite after {facts['iterations']} updates: {found.sentence()}; {path}"
        print(f"keras_trainkit: {text}", file=sys.stderr, flush=True)
        if self.action == "raise":
            self._let_go()
            raise NonFiniteError(text)
        if self.action == "stop":
            self.model.stop_training = True

    # ------------------------------------------------------------------------------------------------- inside the step

    def floor_of_scale(self) -> float:
        """The loss scale at which an overflow is no longer cured by lowering it."""
        return float(getattr(self.model.optimizer, "minimum_scale", 1.0))


class _Observation(Observer):
    """One trace of the step on one replica."""

    def __init__(self, guard: NonFiniteGuard, data: Any) -> None:
        model = guard.model
        self._guard, self._model = guard, model
        guard._structure = dump.numbered(data)
        self._courier = Courier(guard._desk, data)
        # Statistics and seeds change in the forward pass; what is read here stays.
        self._early = {id(v): ops.copy(backend.read(v)) for v in model.non_trainable_variables}
        self._loss: Any = None
        self._event: Any = None
        self._iterations = ops.copy(backend.read(model.optimizer.iterations))

    def loss(self, value: Any) -> None:
        self._loss = value

    def gradients(self, gradients: list[Any], variables: list[Any]) -> None:
        if self._event is not None:
            return
        there = [g for g in gradients if g is not None]
        scale, lowest = ops.convert_to_tensor(1.0), None
        if isinstance(self._model.optimizer, keras.optimizers.LossScaleOptimizer):
            scale = ops.copy(backend.read(self._model.optimizer.dynamic_scale))
            lowest = scale <= self._guard.floor_of_scale()
        finite = evidence.all_finite([slices.values(g) for g in there])
        fine = finite if lowest is None else ops.logical_or(finite, ops.logical_not(lowest))
        if self._loss is not None:
            fine = ops.logical_and(fine, ops.all(ops.isfinite(self._loss)))
        by_variable = {id(v): g for v, g in zip(variables, gradients, strict=True)}
        mine = [by_variable.get(id(v)) for v in self._model.trainable_variables]
        loss = ops.convert_to_tensor(float("nan")) if self._loss is None else ops.mean(self._loss)
        self._judge(GRADIENTS, fine, loss, scale, mine, self._early)

    def end(self) -> None:
        before = [t for t in (self._event, self._loss) if t is not None]
        with backend.after(before):
            guard, first = self._guard, self._event is None
            if first and self._loss is not None:
                loss = ops.mean(self._loss)
                self._judge(GRADIENTS, ops.all(ops.isfinite(self._loss)), loss, ops.ones(()), [], self._early)
            steps = backend.read(guard._steps) + 1
            backend.write(guard._steps, steps)
            fine = self._weights_fine(steps)
            if self._event is not None:
                fine = ops.logical_or(fine, self._event)  # it was told already
            loss = ops.convert_to_tensor(float("nan")) if self._loss is None else ops.mean(self._loss)
            self._judge(WEIGHTS, fine, loss, ops.ones(()), [], {})

    def _weights_fine(self, steps: Any) -> Any:
        import tensorflow as tf

        def look() -> Any:
            return evidence.all_finite([backend.read(v) for v in self._model.variables])

        every = self._guard.every
        return look() if every == 1 else tf.cond(ops.equal(steps % every, 0), look, lambda: tf.constant(True))

    def _judge(self, kind: int, fine: Any, loss: Any, scale: Any, gradients: list[Any], early: dict[int, Any]) -> None:
        guard, model = self._guard, self._model
        event = ops.logical_not(backend.all_replicas(fine))
        if kind == GRADIENTS:
            self._event = event
        bad = ops.copy(backend.read(guard._bad))
        most = guard.dumps

        def report() -> None:
            backend.write(guard._kind, kind)
            if guard._compiled:
                if gradients:
                    flags = [ops.logical_not(evidence.all_finite([slices.values(g)])) if g is not None else False
                             for g in gradients]  # fmt: skip
                    backend.write(guard._flags, ops.stack([ops.cast(flag, "int32") for flag in flags]))
                return
            # Read in here: it costs nothing at any other step.
            weights = [early.get(id(v)) if id(v) in early else backend.read(v) for v in model.variables]
            mine = ops.logical_not(fine)
            self._courier.send(kind, self._iterations, mine, loss, scale, weights, gradients)

        backend.when(ops.logical_and(event, bad < most), report, None, [])
        backend.write(guard._bad, bad + ops.cast(event, "int32"))

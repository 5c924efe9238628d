"""WeightAveraging: trains one set of weights, and measures, saves and hands on an average of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.averaging.memory import AverageMemory, advanced, attach
from keras_trainkit.averaging.rules import LAWA, SWA, average_of
from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.steering import steer
from keras_trainkit.callbacks.swa_rate import SWARate
from keras_trainkit.callbacks.weight_swap import WeightSwap
from keras_trainkit.core import backend, checks, evaluation
from keras_trainkit.layers.batch_statistics import batch_normalization_statistics
from keras_trainkit.schedules.spans import resolve
from keras_trainkit.training import train_functions


@keras.saving.register_keras_serializable("keras_trainkit")
class WeightAveraging(WeightSwap):
    """Keeps an average of the weights, and validates, checkpoints, stops early and ends `fit` with it.

    The average is in the variables from the last batch of an epoch to the first of the next, so validation,
    `ModelCheckpoint`, `BackupAndRestore`, `EarlyStopping` (and the weights that it restores) all have it; it stays when
    `fit` ends, for `evaluate`, `predict` and `save`. Then the trained weights come back bit for bit: a run with this
    callback trains as one without. The place in the list of callbacks does not matter.

    Weights are taken in inside the compiled step, once for each update of the optimizer: micro-batches of an
    accumulation window, steps that loss scaling skips, `steps_per_execution`, replicas and XLA make no difference. Any
    optimizer will do, Keras's own too, with any `train_step`; one that updates several times counts once. With
    BatchNormalization, give inputs to `refresh`: its moving statistics are those of the trained weights.

    Memory, beside the trained weights: the average's (one copy in at least float32, `k` for `LAWA`), and a copy of the
    trained weights while the average is in the variables. The average stays with the optimizer when `fit` ends, and a
    later `fit` with this callback goes on with both.

    Files of an epoch's end hold the average as the model's weights. With an optimizer of the kit they hold the trained
    weights and the state of the average, too, and `keras.models.load_model` brings all back for a `fit` with this
    callback. With one of Keras's, that takes `ResumableTraining` or `BackupAndRestore`; a model that is loaded trains
    on from the average.

    If an exception or Ctrl-C ends `fit`, the model holds the trained weights or, between two epochs and in validation,
    the average; another `fit` with this callback goes on from the trained ones. `evaluate` and `predict` with the
    callback take the average in any case.

    On JAX the averages travel with the metrics of the model. `keras.distribution` is refused there.

    Args:
        average: `averaging.EMA(...)`, `averaging.SWA(...)`, `averaging.LAWA(...)`, or one of the names `"ema"`,
            `"swa"` and `"lawa"`.
        refresh: inputs for `layers.refresh_batch_statistics`: an array, a dataset, or any iterable of batches that can
            be gone through each epoch. Given, the moving statistics of BatchNormalization are recomputed whenever the
            average goes in. They stay so in training, which uses each batch's own.
        refresh_batches: how many of its batches to take; all of them when left out.
        refresh_batch_size: the size of the batches that an array is cut into.
        steps_per_epoch, epochs: of the whole run, for lengths in epochs or shares of the run; what `fit` knows when
            left out. The first `fit` makes them numbers, and later ones with the same callback go on along them.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, for a model that
            is not built, an optimizer that averages already (`use_ema=True`, Schedule-Free), another callback that puts
            weights in, or lengths that cannot be known.

    >>> from keras_trainkit import averaging, callbacks
    >>> callback = callbacks.WeightAveraging(averaging.EMA(half_life=10_000))
    >>> callback.average.half_life
    10000.0
    """

    def __init__(
        self,
        average: Any = "ema",
        refresh: Any = None,
        refresh_batches: int | None = None,
        refresh_batch_size: int = 32,
        steps_per_epoch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(refresh, refresh_batches, refresh_batch_size)
        self.average = average_of(average)
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        for name in ("steps_per_epoch", "epochs"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), at_least=1)
        self._stepped: Any = None
        self._safe: Callable[[], Any] = bool

    def get_config(self) -> dict[str, Any]:
        """The arguments but `refresh`, which is data."""
        names = ("refresh_batches", "refresh_batch_size", "steps_per_epoch", "epochs")
        average = keras.saving.serialize_keras_object(self.average)
        return {"average": average, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightAveraging:
        """The inverse of `get_config`."""
        return cls(**config)

    # ------------------------------------------------------------------------------------------------------- `fit`

    def set_model(self, model: Any) -> None:
        """Puts itself around all callbacks of the `fit`, whatever its place among them."""
        super().set_model(model)
        callbacks = backend.list_of_callbacks()
        if callbacks is None:
            return
        rivals = [
            other for other in callbacks.callbacks
            if other is not self and isinstance(other, (WeightSwap, keras.callbacks.SwapEMAWeights))
        ]  # fmt: skip
        if rivals:
            raise ValueError(
                "`callbacks` must hold one callback that puts weights in: take either WeightAveraging or "
                f"{type(rivals[0]).__name__} out."
            )
        _surround(callbacks, self)

    def set_params(self, params: Any) -> None:
        # Before any callback's `on_train_begin`: what BackupAndRestore reads there finds its place.
        super().set_params(params)
        if self.model is not None and backend.called_by_fit():
            self._attach()

    def get_state(self) -> dict[str, Any]:
        """The averages, for `ResumableTraining`, which saves the trained weights itself."""
        return self._memory().state()

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._memory().load(state)

    def _before_train_begin(self) -> None:
        optimizer = self._optimizer()
        evaluation.put_back(optimizer)
        self._memory().align()
        self._step_out()
        self._step_in()
        self._fitting = True

    def _before_batch(self) -> None:
        # Whoever put them in: a callback that restores may just have loaded them.
        if self._holds():
            evaluation.put_back(self._optimizer())

    def _before_epoch_end(self) -> None:
        self._put_in()

    def _after_train_end(self) -> None:
        self._put_in()
        self._step_out()
        self._fitting = False
        if not self._memory().count:
            start, every = self._rule.numbers()
            warnings.warn(
                f"`WeightAveraging` took no weights in: the run was over before update {start or every}. "
                "The model has the trained weights.",
                stacklevel=2,
            )

    # --------------------------------------------------------------------------------------------------------- parts

    def _attach(self) -> None:
        model, optimizer = self.model, optimizers.innermost(self.model.optimizer)
        if not model.built:
            raise ValueError("`WeightAveraging` needs a built model: give it an `Input`, or call it on data.")
        if not backend.ON_TENSORFLOW and keras.distribution.distribution() is not None:
            raise ValueError("`WeightAveraging` does not work with keras.distribution.")
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)  # a loaded state waits for it
        if evaluation.source(optimizer) is None and (optimizer.use_ema or evaluation.offers(optimizer)):
            raise ValueError(
                "`WeightAveraging` needs an optimizer that keeps no average of its own; take `use_ema` out, or use "
                f"`callbacks.EvaluationWeights`. Received: {type(optimizer).__name__}"
            )
        self._rule = self._resolved(optimizer)
        attach(model, optimizer, self._rule, train_functions.variables_of(model))
        if isinstance(self._rule, SWA) and self._rule.rate is not None:
            rates = self._rule.rate if isinstance(self._rule.rate, list) else [self._rule.rate] * 2
            rate = steer(model, SWARate)
            rate.first, rate.last = rates
            rate.change(list(self._rule.numbers()))
        snapshots = isinstance(self._rule, (SWA, LAWA))
        if snapshots and self.refresh is None and batch_normalization_statistics(model):
            warnings.warn(
                "The model has BatchNormalization, whose moving statistics do not belong to averaged weights: give "
                "`WeightAveraging` inputs to `refresh` them.",
                stacklevel=2,
            )

    def _resolved(self, optimizer: Any) -> Any:
        rule = getattr(self, "_rule", self.average)
        if not any(isinstance(getattr(rule, name), str) for name in rule.spans):
            return rule
        steps = self.steps_per_epoch or self.params.get("steps")
        epochs = self.epochs or self.params.get("epochs")
        if steps is None or epochs is None:
            raise ValueError(
                "`steps_per_epoch` must be given to `fit`, or to `WeightAveraging`, for lengths in epochs or shares "
                f"of the run: the data do not tell how long an epoch is. Received: average={rule}"
            )
        return resolve(rule, steps, epochs, getattr(optimizer, "gradient_accumulation_steps", None) or 1)

    def _step_in(self) -> None:
        """Puts the averaging behind the model's train step."""
        model, memory = self.model, self._memory()
        original = model.train_step

        def on_tensorflow(*arguments: Any, **keywords: Any) -> Any:
            found = original(*arguments, **keywords)
            backend.after_update(lambda: memory.advance((arguments, keywords)))
            return found

        def on_jax(state: Any, data: Any) -> Any:
            logs, new = original(state, data)
            return logs, advanced(memory, model, new, data)

        step = on_tensorflow if backend.ON_TENSORFLOW else on_jax
        # On this one object and past `__setattr__`, where Keras would track it.
        self._stepped = (model, step, vars(model).get("train_step"))
        object.__setattr__(model, "train_step", step)
        self._safe = backend.when_fit_fails(self._step_out)
        train_functions.trace_anew(model)

    def _step_out(self) -> None:
        stepped, self._stepped = self._stepped, None
        if stepped is not None:
            self._safe()
            train_functions.take_step_off(*stepped)
            train_functions.trace_anew(stepped[0])

    def _optimizer(self) -> Any:
        # `self.model` brings JAX's state into the variables first; what is written to them then counts.
        optimizer = optimizers.innermost(self.model.optimizer)
        if evaluation.source(optimizer) is None and not evaluation.held(optimizer):
            raise ValueError(
                "`WeightAveraging` has no averages to put in: they come with a `fit` that has this callback."
            )
        return optimizer

    def _memory(self) -> AverageMemory:
        return evaluation.source(optimizers.innermost(self.model.optimizer))


def _surround(callbacks: Any, own: WeightAveraging) -> None:
    """Has the callback called before all others, and at the end of training after them, on this one list."""
    train_begin, train_end, epoch_end = callbacks.on_train_begin, callbacks.on_train_end, callbacks.on_epoch_end
    batch_begin = callbacks.on_train_batch_begin

    def on_train_begin(logs: Any = None) -> None:
        own._before_train_begin()
        train_begin(logs)

    def on_train_batch_begin(batch: int, logs: Any = None) -> None:
        own._before_batch()
        batch_begin(batch, logs)

    def on_epoch_end(epoch: int, logs: Any = None) -> None:
        own._before_epoch_end()
        epoch_end(epoch, logs)

    def on_train_end(logs: Any = None) -> None:
        train_end(logs)
        own._after_train_end()

    for method in (on_train_begin, on_train_batch_begin, on_epoch_end, on_train_end):
        setattr(callbacks, method.__name__, method)

"""TrainingMonitor: what happens inside training, step by step, for TensorBoard and for programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_trainkit.core import backend, checks
from keras_trainkit.monitoring import instruments
from keras_trainkit.monitoring.counting import Meter, Total, accumulation_steps, synchronize, to_float
from keras_trainkit.monitoring.event_log import Beside, EventFiles, JsonLines, layers_record, record
from keras_trainkit.monitoring.instruments import Instruments
from keras_trainkit.monitoring.sinks import Sink


@keras.saving.register_keras_serializable("keras_trainkit")
class TrainingMonitor(keras.callbacks.Callback):
    """Writes loss, rates, norms, speed, memory and noise during training, and all metrics after each epoch.

    Every `every` updates one line goes to `directory/metrics.jsonl`, at once, and the same values to TensorBoard
    events under `directory/tensorboard`:

    - `loss`: mean over the samples since the last line (Keras's own log is the mean since the epoch's start);
    - `learning_rate`: that of the next update, also with a schedule; `learning_rate/...` where groups of variables have
      their own (`core.partition`, `transforms.ScaleByPath` and the like);
    - `gradient_norm`: of the whole gradient, after the sum over replicas and before clipping; `clipped_gradient_norm`,
      and with an optimizer that clips, `clip_ratio`: the share of the norm that is left;
    - `update_norm`, `weight_norm`, and `update_to_weight_ratio`: their quotient, about 1e-3 in healthy training;
    - `estimated_rate`, with an optimizer that estimates its own, such as Prodigy;
    - `samples_per_second`: training alone, without validation and without the first step, which is mostly tracing;
      `tokens_per_second`; `model_flops_utilisation`, the share of the device's peak that the model's arithmetic is;
    - `step_seconds_p50`, `_p90` and `_p99`: that many percent of the last 200 steps took no longer (in the epoch's
      line: of the epoch's steps); `data_wait_seconds` and `compute_seconds`: the mean step's, on TensorFlow with one
      step per execution and Keras later than 3.10;
    - `host_memory`, `device_memory` and `device_memory_peak` in MiB, the latter two of the first GPU;
    - `noise_to_batch_ratio` and `gradient_noise_scale`, if asked for: how many batches, and samples, the batch would
      have to hold for its gradient to be as much signal as noise, which is the critical batch size that McCandlish et
      al. (2018, arXiv:1812.06162) suggest;
    - `loss_scale` with a `LossScaleOptimizer`, and `skipped_steps` with the kit's.

    Every `layers_every` updates a line of kind "layers" holds, for each layer, `gradient_norm`, `update_norm`,
    `weight_norm` and their ratio, over its variables; and of its outputs in training, on TensorFlow, `activation_mean`,
    `activation_std`, `zero_fraction`, and behind a ReLU `dead_fraction`: the share of units that were zero for every
    sample of the batch (in models of one's own class it needs a layer with a bias, units or filters).

    After each epoch another line holds all logs, `val_*` included, with the epoch's `samples_per_second`. The axis is
    `optimizer.iterations`, the number of updates, and goes on over several calls of `fit`; epochs count from 1. A run
    that continues in another process appends. NaN and infinity are written as null, with their names in `nonfinite`.

    The norms come out of the optimizer's own update inside the compiled step, and only the updates that are written
    compute them. Between lines the callback reads nothing from the device.

    With a plain Keras optimizer there are no norms, and a warning says so once; `optimizers.wrap` adds them. With a
    `train_step` of your own `samples_per_second` and the steps' `loss` are left out.

    Args:
        directory: where to write; made if missing.
        every: updates between two lines, at least 1.
        tensorboard: whether to write TensorBoard events: curves, arranged on the page of custom scalars, the recipe as
            text and as hyperparameters, histograms.
        layers_every: updates between two lines of the layers, a multiple of `every`; None for none.
        noise_scale: whether to measure the gradient noise scale. It needs `gradient_accumulation_steps` of at least 2,
            or several replicas; a warning says when there is neither.
        histograms_every: epochs between two histograms of the trained variables; None for none.
        tokens_per_sample: for `tokens_per_second`; found out where the model's one input are token ids of known length.
        flops_per_sample: floating-point operations of one sample, forward and backward, for `model_flops_utilisation`;
            a transformer takes about 6 for each weight and token.
        peak_flops: what all devices compute in a second together; known for common GPUs (half precision, dense).
        recipe: plain values, nested perhaps, that say what the run does; the model's and the optimizer's by default.
        sinks: list of `callbacks.Sink`, such as `MLflowSink`, that take the lines, too.

    Raises:
        ValueError: a number out of its range.
        TypeError: an argument of the wrong kind.

    Example:

    >>> monitor = TrainingMonitor("runs/first", every=20)
    >>> # model.fit(x, y, callbacks=[monitor]), then: tensorboard --logdir runs
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int = 10,
        tensorboard: bool = True,
        *,
        layers_every: int | None = None,
        noise_scale: bool = False,
        histograms_every: int | None = None,
        tokens_per_sample: int | None = None,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
        recipe: Mapping[str, Any] | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        super().__init__()
        self.directory = os.fspath(directory)
        self.every = checks.integer("every", every, at_least=1)
        self.tensorboard = checks.boolean("tensorboard", tensorboard)
        self.layers_every = _optional("layers_every", layers_every)
        if self.layers_every is not None and self.layers_every % self.every:
            raise ValueError(
                f"`layers_every` must be a multiple of `every`, which is {self.every}. Received: "
                f"layers_every={layers_every}"
            )
        self.noise_scale = checks.boolean("noise_scale", noise_scale)
        self.histograms_every = _optional("histograms_every", histograms_every)
        self.tokens_per_sample = _optional("tokens_per_sample", tokens_per_sample)
        self.flops_per_sample = _positive("flops_per_sample", flops_per_sample)
        self.peak_flops = _positive("peak_flops", peak_flops)
        self.recipe = recipe
        self.sinks = list(sinks)
        for sink in self.sinks:
            if not isinstance(sink, Sink):
                raise TypeError(f"`sinks` must hold objects of the class `callbacks.Sink`. Received: sinks={sinks!r}")
        self._instruments = self._new_instruments()
        self._lines: JsonLines | None = None
        self._events: EventFiles | None = None
        self._beside: Beside | None = None
        self._last_step = 0
        self._epochs_done = 0
        self._epoch = 0
        self._epoch_offset: int | None = None
        self._traced = False
        self._meter: Any = None
        self._safe: Callable[[], None] = _nothing

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        config = {name: getattr(self, name) for name in _ARGUMENTS}
        return {**config, "sinks": [keras.saving.serialize_keras_object(sink) for sink in self.sinks]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainingMonitor:
        """The inverse of `get_config`."""
        sinks = [keras.saving.deserialize_keras_object(sink) for sink in config.get("sinks", [])]
        return cls(**{**config, "sinks": sinks})

    def _new_instruments(self) -> Instruments:
        return Instruments(
            self.every,
            self.layers_every,
            self.noise_scale,
            self.tokens_per_sample,
            self.flops_per_sample,
            self.peak_flops,
        )

    # ---------------------------------------------------------------------------------------------------------- state

    def get_state(self) -> dict[str, Any]:
        """The counts and the length of `metrics.jsonl`, for `ResumableTraining`."""
        written = self._written
        self._finish_writing()
        return {
            "last_step": self._last_step,
            "epochs_done": self._epochs_done,
            "written": [written.samples, written.loss],
            "axis": [self._offset, self._target, self._next_look, self._epoch_offset, self._epoch],
            "meter": self._meter.get_state(),
            "bytes": self._lines.size() if self._lines is not None else 0,
            "lines_at": [self._written_at, self._layers_at],
            "noise": self._instruments.noise.get_state(),
            "sinks": [sink.get_state() for sink in self.sinks],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`: lines and points written after the state was saved are taken away."""
        self._last_step, self._epochs_done = state["last_step"], state["epochs_done"]
        self._written = Total(*state["written"])
        self._offset, self._target, self._next_look, self._epoch_offset, self._epoch = state["axis"]
        self._meter.set_state(state["meter"])
        self._finish_writing()
        if self._lines is not None:
            self._lines.cut(state["bytes"])
        if self._events is not None:
            self._events.begin_again(self._last_step + 1)
        self._written_at, self._layers_at = state["lines_at"]
        self._instruments.noise.set_state(state["noise"])
        for sink, own in zip(self.sinks, state["sinks"], strict=False):
            sink.set_state(own)
            sink.rewind(self._last_step + 1)

    # ------------------------------------------------------------------------------------------------- set-up and end

    def set_model(self, model: Any) -> None:
        """Has the optimizer compute the norms; `fit` calls it before the train step is traced."""
        super().set_model(model)
        self._instruments.set_model(model)
        self._traced = self._traced and getattr(model, "train_function", None) is not None

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the files, to append."""
        self._abandon()
        self._safe = backend.when_fit_fails(self._abandon)
        directory = Path(self.directory)
        self._beside = Beside()
        self._lines = JsonLines(directory / "metrics.jsonl")
        self._events = EventFiles(directory / "tensorboard") if self.tensorboard else None
        self._meter = Meter(self.model, (self.params or {}).get("steps"), self._traced)
        self._traced = True
        self._instruments.begin(self.model)
        self._written = self._meter.counter.last
        self._epoch_offset = None
        iterations = self._iterations()
        # After a new `compile` the optimizer counts from 0 again; the axis goes on.
        self._offset = max(0, self._last_step - iterations)
        self._written_at = self._layers_at = iterations
        recipe = instruments.description(self.model) if self.recipe is None else self.recipe
        if self._events is not None:
            self._events.describe(iterations + self._offset, recipe, self._instruments.silent(self.model))
        for sink in self.sinks:
            sink.open(directory, recipe)
        self._plan_next(iterations)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the files."""
        self._safe()
        self._close()
        if self._meter is not None:
            self._instruments.end(self.model)
        self._meter = None

    def _close(self) -> None:
        open_logs = [log for log in (self._beside, self._lines, self._events) if log is not None]
        sinks = self.sinks if self._lines is not None else []
        self._beside = self._lines = self._events = None
        with contextlib.ExitStack() as stack:  # all are closed, also when one of them cannot write
            for log in reversed([*open_logs, *sinks]):
                stack.callback(log.close)

    def _abandon(self) -> None:
        """A `fit` has ended by an error, which says more than what cannot be written now."""
        with contextlib.suppress(Exception):
            self._close()

    def _finish_writing(self) -> None:
        if self._beside is not None:
            self._beside.wait()

    # --------------------------------------------------------------------------------------------------------- steps

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to count anew: Keras resets its metrics here."""
        if self._epoch_offset is None:
            # A second `fit` counts epochs from 0 again unless it has an `initial_epoch`.
            self._epoch_offset = max(0, self._epochs_done - epoch)
        self._epoch = epoch + 1 + self._epoch_offset
        self._meter.begin_epoch()
        self._instruments.times.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Writes a line if the batches so far have brought the next one."""
        self._instruments.times.stop(batch - self._meter.batch)
        self._meter.begin_batch(batch)
        if batch > 0 and self._meter.batches >= self._next_look:
            self._look()
        if self._meter.timed:
            self._instruments.start_step(self._meter.batches)

    def on_test_begin(self, logs: Any = None) -> None:
        """Ends the epoch's counting before validation resets the metrics."""
        self._end_counting()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the epoch's line."""
        self._end_counting()
        iterations = self._iterations()
        values = {name: to_float(value) for name, value in (logs or {}).items()}
        speed = values["samples_per_second"] = self._meter.epoch.samples_per_second
        values |= self._instruments.speed(speed) | self._instruments.times.epoch()
        values.setdefault("learning_rate", to_float(self.model.optimizer.learning_rate))
        self._write("epoch", iterations, values)
        self._epochs_done = self._epoch
        if self.histograms_every is not None and self._epoch % self.histograms_every == 0:
            self._write_weights(iterations + self._offset)
        self._finish_writing()
        for sink in self.sinks:
            sink.flush()

    def _end_counting(self) -> None:
        if self._meter is not None and self._meter.end_epoch() and self._meter.batches >= self._next_look:
            self._look()

    def _look(self) -> None:
        """Reads how many updates were done, and writes a line if it is time: skipped steps and flushes shift it."""
        iterations = self._iterations()
        if iterations >= self._target:
            self._write("step", iterations, self._measure(iterations))
            if self.layers_every is not None and iterations // self.layers_every > self._layers_at // self.layers_every:
                self._layers_at = iterations
                self._write_layers(iterations)
        self._plan_next(iterations)

    def _plan_next(self, iterations: int) -> None:
        self._target = (iterations // self.every + 1) * self.every
        window = accumulation_steps(self.model.optimizer)
        filled = self._meter.batches % window
        self._next_look = self._meter.batches + (self._target - iterations) * window - filled

    def _measure(self, iterations: int) -> dict[str, float | None]:
        optimizer = self.model.optimizer
        values: dict[str, float | None] = {}
        total = self._meter.counter.read()
        samples = total.samples - self._written.samples
        values["loss"] = (total.loss - self._written.loss) / samples if samples > 0 else None
        self._written = total
        rate = values["learning_rate"] = to_float(optimizer.learning_rate)
        values |= self._instruments.rates(optimizer, rate) | self._instruments.norms(optimizer)
        speed = values["samples_per_second"] = self._meter.take_window()
        values |= self._instruments.cost(speed, self._meter.batches)
        updates, self._written_at = iterations - self._written_at, iterations
        values |= self._instruments.noise_values(optimizer, samples / updates if updates > 0 else None)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            values["loss_scale"] = to_float(getattr(optimizer, "dynamic_scale", None))
            skipped = to_float(getattr(optimizer, "skipped_steps", None))
            values["skipped_steps"] = None if skipped is None else int(skipped)
        return values

    def _iterations(self) -> int:
        synchronize(self.model)
        return int(to_float(self.model.optimizer.iterations) or 0)

    def _write(self, kind: str, iterations: int, values: dict[str, float | None]) -> None:
        step = iterations + self._offset
        self._last_step = max(self._last_step, step)
        self._log(record(kind, step, self._epoch, values), "write", kind, step, dict(values))
        for sink in self.sinks:
            sink.write(kind, step, self._epoch, values)

    def _write_layers(self, iterations: int) -> None:
        layers, step = self._instruments.layers(self.model.optimizer), iterations + self._offset
        self._log(layers_record(step, self._epoch, layers), "write_layers", step, layers)
        for sink in self.sinks:
            sink.write_layers(step, self._epoch, layers)

    def _log(self, line: dict[str, Any], method: str, *arguments: Any) -> None:
        """A line, and a call of a method of the events' files."""
        if self._beside is not None and self._lines is not None:
            self._beside.do(self._lines.write, line)
            if self._events is not None:
                self._beside.do(getattr(self._events, method), *arguments)

    def _write_weights(self, step: int) -> None:
        weights = instruments.weights(self.model)
        self._finish_writing()
        for sink in self.sinks:
            sink.write_weights(step, weights)
        if self._events is not None:
            self._events.write_weights(step, weights)


_ARGUMENTS = (
    "directory",
    "every",
    "tensorboard",
    "layers_every",
    "noise_scale",
    "histograms_every",
    "tokens_per_sample",
    "flops_per_sample",
    "peak_flops",
    "recipe",
)


def _nothing() -> None:
    """Before the first `fit` there is nothing to take back."""


def _optional(name: str, value: int | None) -> int | None:
    return None if value is None else checks.integer(name, value, at_least=1)


def _positive(name: str, value: float | None) -> float | None:
    return None if value is None else checks.number(name, value, above=0)

"""SpikeGuard: an update that comes from a spike of loss or gradient is not made, and what led to it is taken back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.steering import SteeredRate, steer
from keras_trainkit.core import TransformOptimizer, backend, checks
from keras_trainkit.core.numerics import squared_norm
from keras_trainkit.guards.rollback import GoodStates
from keras_trainkit.guards.spikes import judged
from keras_trainkit.guards.watching import Observer, build_optimizer, needs_tensorflow, scalar, watch
from keras_trainkit.monitoring.counting import to_float
from keras_trainkit.training import train_functions

ACTIONS = ("skip", "rollback", "report")
SIGNALS = ("loss", "gradient_norm")
_REMEMBERED = 32


@keras.saving.register_keras_serializable("keras_trainkit")
class SpikeRate(SteeredRate):
    """A learning rate times a multiplier that `SpikeGuard` lowers; its one number."""

    place = "spike_memory"
    initial = (1.0,)

    def __call__(self, step: Any) -> Any:
        """The rate at `step`."""
        rate = self.rate_at(ops.convert_to_tensor(step))
        return rate * ops.cast(ops.convert_to_tensor(self.memory.numbers)[0], rate.dtype)


@keras.saving.register_keras_serializable("keras_trainkit")
class SpikeGuard(keras.callbacks.Callback):
    """Watches loss and gradient norm for spikes, skips their updates or rolls back, and can cut the learning rate.

    Before each update it judges the batch's loss and the norm of its whole gradient (summed over the replicas, the mean
    of an accumulation window, before clipping, without the loss scale) by the last `window` ones: a value more than
    `threshold` deviations above their median is a spike. The deviation is 1.4826 times the median absolute deviation,
    and at least 1% of the median. Spikes enter the window, too, and do not move the median much; a level that has risen
    for good is accepted after about half a window. What is not finite is a spike always. For independent normal noise
    `guards.false_alarm_rate(threshold, window)` tells how many false alarms there are: with the defaults 2 in ten
    million values; during the first window, while fewer values are known, more.

    It is judged inside of the compiled step, and the update of a spike is not made at all: no variable, no slot, no
    average, and not `iterations`. Then, by `action`:

    - `"skip"`: training goes on with the next batch (as `transforms.SkipSpikes` does, whose measure is a running mean);
    - `"rollback"`: the model and the optimizer, schedules' count included, also go back to the older of the two states
      kept in memory, `snapshot_every` to twice as many batches old. The batches since then are not trained on again
      (Chowdhery et al., 2022, arXiv:2204.02311, section 5.1). This holds three copies of model and optimizer;
    - `"report"`: the update is made, and nothing else done.

    With `rate_factor` below 1 each time also multiplies the learning rate, under any schedule; the multiplier is saved
    with the optimizer and stays. A number as learning rate becomes a schedule by this.

    Each time a line goes to standard error, and an entry to `events`; `logs["spikes"]` counts them for the history and
    TrainingMonitor. The step's counters are read every `look_every` batches; only then it rolls back and cuts the rate.

    The kit's optimizers are needed for the gradient norm and for updates that are not made; `optimizers.wrap` makes one
    of any other. With a plain Keras optimizer the loss alone is watched, the update of the spike itself is made, and
    `"skip"` is refused. On TensorFlow only, with XLA and MirroredStrategy, too.

    ResumableTraining saves window, events and counts; the states in memory it does not, so a run that was resumed
    cannot go back behind its resumption.

    Args:
        signals: which of `"loss"` and `"gradient_norm"` to watch.
        action: see above.
        threshold: above 0.
        window: values that are remembered, at least 8.
        warmup: values that must be known before others are judged, from 4 to `window`.
        rate_factor: above 0 and at most 1.
        snapshot_every: batches between two states in memory, at least 1.
        look_every: batches between two readings, at least 1.
        verbose: 0 writes no lines.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, for `"skip"`
            with an optimizer that is not the kit's, and with Keras on another backend than TensorFlow.

    Attributes:
        events: list of dictionaries, one for each spike: `iterations`, `signal`, `value`, `median`, `deviation`,
            `action`, `back_to` (the number of updates after rolling back, or None) and `rate_multiplier`.

    >>> guard = SpikeGuard(action="rollback", rate_factor=0.5)
    >>> guard.get_config()["window"]
    128
    """

    def __init__(
        self,
        signals: Sequence[str] = SIGNALS,
        action: str = "skip",
        threshold: float = 6.0,
        window: int = 128,
        warmup: int = 32,
        rate_factor: float = 1.0,
        snapshot_every: int = 100,
        look_every: int = 10,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        given = [signals] if isinstance(signals, str) else list(signals)
        if not given:
            raise ValueError("`signals` must hold at least one of 'loss', 'gradient_norm'. Received: signals=[]")
        self.signals = [name for name in SIGNALS if name in {checks.one_of("signals", s, SIGNALS) for s in given}]
        self.action = checks.one_of("action", action, ACTIONS)
        self.threshold = checks.number("threshold", threshold, above=0)
        self.window = checks.integer("window", window, at_least=8)
        self.warmup = checks.integer("warmup", warmup, at_least=4, at_most=self.window)
        self.rate_factor = checks.number("rate_factor", rate_factor, above=0, at_most=1)
        self.snapshot_every = checks.integer("snapshot_every", snapshot_every, at_least=1)
        self.look_every = checks.integer("look_every", look_every, at_least=1)
        self.verbose = checks.integer("verbose", verbose, at_least=0, at_most=1)
        self.events: list[dict[str, Any]] = []
        self._ends: list[Any] = []
        self._rate: Any = None
        self._batches = 0
        self._attended = 0

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("action", "threshold", "window", "warmup", "rate_factor", "snapshot_every", "look_every", "verbose")
        return {"signals": list(self.signals), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpikeGuard:
        """The inverse of `get_config`."""
        return cls(**config)

    def get_state(self) -> dict[str, Any]:
        """What it has seen, for `ResumableTraining`."""
        return {
            "events": [dict(event) for event in self.events],
            "counts": [self._batches, self._attended],
            "numbers": None if self._rate is None else self._rate.numbers(),
            "memory": {name: ops.convert_to_numpy(v) for name, v in self._memory.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.events = [dict(event) for event in state["events"]]
        self._batches, self._attended = state["counts"]
        if self._rate is not None and state["numbers"] is not None:
            self._rate.change(state["numbers"])
        for name, value in state["memory"].items():
            self._memory[name].assign(value)
        self._good = GoodStates(self.model)

    # ---------------------------------------------------------------------------------------------------- set-up, end

    def set_params(self, params: Any) -> None:
        """Puts the multiplier in its place before any callback's `on_train_begin`, where some restore it."""
        super().set_params(params)
        if params and params.get("epochs") is not None and self.model is not None and self.rate_factor < 1:
            self._rate = steer(self.model, SpikeRate)

    def on_train_begin(self, logs: Any = None) -> None:
        """Puts itself around the train step."""
        needs_tensorflow(type(self).__name__)
        self._let_go()
        model = self.model
        if self.rate_factor < 1:
            self._rate = steer(model, SpikeRate)
        inner = optimizers.innermost(model.optimizer)
        self._refuses = isinstance(inner, TransformOptimizer)
        if not self._refuses:
            if self.action == "skip" or "loss" not in self.signals:
                optimizers.of_the_kit(self)
            warnings.warn(
                f"SpikeGuard sees no gradient norm of {type(inner).__name__}, and watches the loss alone; compile with "
                "keras_trainkit.optimizers.wrap(optimizer) to have it.",
                stacklevel=2,
            )
        if not model.built:
            raise ValueError("`SpikeGuard` needs a built model: give it an `Input`, or call it on data.")
        build_optimizer(model)
        self._names = self.signals if self._refuses else ["loss"]
        with train_functions.variables_of(model):
            # Kept from one `fit` to the next only by `ResumableTraining`.
            self._memory = {
                "values": scalar("spike_values", "float32", (len(self._names), self.window)),
                "known": scalar("spike_known"),
                "spikes": scalar("spike_count"),
                "log": scalar("spike_log", "float64", (_REMEMBERED, 5)),
                "loss": scalar("spike_loss", "float32"),
                "losses": scalar("spike_losses", "float32"),
            }
        self._attended = self._batches = 0
        self._good = GoodStates(model)
        if self._refuses:
            self._ends.append(inner.admit_guard(self._judge))
        self._ends.append(watch(model, lambda data: _Observation(self)))
        self._ends.append(backend.when_fit_fails(self._let_go))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks, every so many batches, and keeps good states."""
        at_once = int(getattr(self.model, "steps_per_execution", None) or 1)
        if self._batches % self.look_every < at_once:
            self._look()
        if self.action == "rollback" and (not len(self._good) or self._batches % self.snapshot_every < at_once):
            if self._spikes() == self._attended:
                self._good.take(self._iterations())
            else:
                self._look()
        self._batches += at_once

    def on_test_begin(self, logs: Any = None) -> None:
        """Looks before validation."""
        self._look()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts for the history."""
        self._look()
        if logs is not None:
            logs["spikes"] = self._attended

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model its train step back."""
        self._look()
        self._let_go()

    def _let_go(self) -> None:
        while self._ends:
            self._ends.pop()()

    # ----------------------------------------------------------------------------------------------------- afterwards

    def _spikes(self) -> int:
        return int(to_float(self._memory["spikes"]) or 0)

    def _iterations(self) -> int:
        return int(to_float(self.model.optimizer.iterations) or 0)

    def _look(self) -> None:
        if not self._ends:
            return
        spikes = self._spikes()
        if spikes == self._attended:
            return
        log = ops.convert_to_numpy(self._memory["log"])
        new = range(max(self._attended, spikes - _REMEMBERED), spikes)
        lost = spikes - self._attended - len(new)
        self._attended = spikes
        back_to = self._good.put_back() if self.action == "rollback" and len(self._good) else None
        multiplier = self._cut()
        for number in new:
            iterations, signal, value, median, deviation = log[number % _REMEMBERED].tolist()
            event = {
                "iterations": int(iterations), "signal": self._names[int(signal)], "value": value, "median": median,
                "deviation": deviation, "action": self.action, "back_to": back_to, "rate_multiplier": multiplier,
            }  # fmt: skip
            self.events.append(event)
            if self.verbose:
                print(f"keras_trainkit: {_sentence(event, self._refuses)}", file=sys.stderr, flush=True)
        if lost and self.verbose:
            print(f"keras_trainkit: and {lost} spikes before these", file=sys.stderr, flush=True)

    def _cut(self) -> float:
        if self._rate is None:
            return 1.0
        self._rate.change([self._rate.numbers()[0] * self.rate_factor])
        return self._rate.numbers()[0]

    # ------------------------------------------------------------------------------------------------- inside the step

    def _judge(self, gradients: list[Any], context: Any) -> Any:
        """Judges an update of the kit's optimizer; says whether it may be made."""
        memory = self._memory
        total, count = backend.read(memory["loss"]), backend.read(memory["losses"])
        loss = total / ops.maximum(count, 1.0)
        for name in ("loss", "losses"):
            backend.write(memory[name], 0.0)
        found = {"loss": loss, "gradient_norm": ops.cast(ops.sqrt(squared_norm(gradients)), "float32")}
        spike = self._record([found[name] for name in self._names], context.step - 1)
        return ops.logical_not(spike) if self.action != "report" else ops.convert_to_tensor(True)

    def _record(self, values: list[Any], iterations: Any) -> Any:
        """Judges the values, remembers them, and writes down what was a spike; returns whether any was."""
        memory = self._memory
        rows, known = backend.read(memory["values"]), ops.copy(backend.read(memory["known"]))
        spikes = ops.copy(backend.read(memory["spikes"]))
        kept = ops.minimum(known, self.window)
        verdicts = [judged(v, rows[i], kept, self.threshold, self.warmup) for i, v in enumerate(values)]
        flags = ops.stack([spike for spike, _, _ in verdicts])
        spike = ops.any(flags)
        finite = ops.all(ops.isfinite(ops.stack(values)))
        here = ops.logical_and(ops.equal(ops.arange(self.window, dtype="int32"), known % self.window), finite)
        new = ops.where(here[None, :], ops.stack(values)[:, None], rows)
        worst = ops.argmax(ops.cast(flags, "int32"))
        about = ops.stack(
            [ops.stack([v, median, deviation]) for v, (_, median, deviation) in zip(values, verdicts, strict=True)]
        )
        line = ops.concatenate(
            [ops.stack([ops.cast(iterations, "float64"), ops.cast(worst, "float64")]),
             ops.cast(ops.take(about, worst, axis=0), "float64")]
        )  # fmt: skip
        place = ops.logical_and(ops.equal(ops.arange(_REMEMBERED, dtype="int32"), spikes % _REMEMBERED), spike)
        log = ops.where(place[:, None], line[None, :], backend.read(memory["log"]))
        backend.write(memory["values"], new)
        backend.write(memory["known"], known + ops.cast(finite, "int32"))
        backend.write(memory["log"], log)
        backend.write(memory["spikes"], spikes + ops.cast(spike, "int32"))
        return spike


class _Observation(Observer):
    """One trace of the step on one replica."""

    def __init__(self, guard: SpikeGuard) -> None:
        self._guard = guard

    def loss(self, value: Any) -> None:
        # Keras gives each replica its share of the mean.
        (mean,) = backend.all_reduce_sum([ops.cast(ops.mean(value), "float32")])
        memory = self._guard._memory
        if self._guard._refuses:
            backend.write(memory["loss"], backend.read(memory["loss"]) + mean)
            backend.write(memory["losses"], backend.read(memory["losses"]) + 1.0)
        else:
            self._guard._record([mean], ops.copy(backend.read(self._guard.model.optimizer.iterations)))


def _sentence(event: dict[str, Any], refused: bool) -> str:
    excess = (event["value"] - event["median"]) / max(event["deviation"], 1e-30)
    name = event["signal"].replace("_", " ")
    text = f"{name} {event['value']:.4g} after {event['iterations']} updates: a median of {event['median']:.4g}"
    text += f" and {excess:.3g} deviations" if np.isfinite(excess) else ", and not finite"
    done = "the update was made" if event["action"] == "report" or not refused else "the update was not made"
    if event["back_to"] is not None:
        done += f", and training goes on from {event['back_to']} updates"
    if event["rate_multiplier"] != 1:
        done += f"; learning rate times {event['rate_multiplier']:.3g}"
    return f"spike: {text}; {done}"

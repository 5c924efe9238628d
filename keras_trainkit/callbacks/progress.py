"""Progress: where training is, how well it does, and how long it will take."""

from __future__ import annotations

import atexit
import html
import sys
import time
from collections.abc import Mapping
from typing import Any

import keras
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from keras_trainkit.callbacks.notebook import Place, in_notebook
from keras_trainkit.core import checks
from keras_trainkit.monitoring.counting import Meter, synchronize, to_float

_MOST_LINES = 50


@keras.saving.register_keras_serializable("keras_trainkit")
class Progress(keras.callbacks.Callback):
    """Shows epoch, step, loss, metrics, learning rate, samples per second and the time left; use it with `verbose=0`.

    In a terminal two bars move, for the epoch and for the whole run, and each epoch leaves a line above them. In a
    notebook the same is shown in one place of the cell. In a pipe or a file there are plain lines without control codes
    (whatever `FORCE_COLOR` says): one for each epoch, and within long epochs one every `line_every` seconds. The
    metrics are read when the display is renewed, and not at each step.

    Args:
        console: a `rich.console.Console`, which decides for itself what it is; None is standard output.
        every: seconds between two renewals of the display, above 0; in a notebook at least one.
        line_every: seconds without a line after which a pipe or a file gets one, above 0; None for lines of epochs
            alone.

    Raises:
        ValueError: `every` or `line_every` is not above 0.

    Example:

    >>> progress = Progress(every=0.5)
    >>> # model.fit(x, y, epochs=10, verbose=0, callbacks=[progress])
    """

    def __init__(self, console: Console | None = None, every: float = 0.25, line_every: float | None = 60.0) -> None:
        super().__init__()
        self.console = console
        self.every = checks.number("every", every, above=0)
        self.line_every = None if line_every is None else checks.number("line_every", line_every, above=0)
        self._live: Live | None = None
        self._place: Place | None = None
        self._trained = False
        self._meter: Any = None

    def get_config(self) -> dict[str, Any]:
        """The arguments but the console."""
        return {"every": self.every, "line_every": self.line_every}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Progress:
        """The inverse of `get_config`."""
        return cls(**config)

    def set_model(self, model: Any) -> None:
        """Notes whether the train step has been traced."""
        super().set_model(model)
        self._trained = self._trained and getattr(model, "train_function", None) is not None

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the display."""
        self._stop()
        params = self.params or {}
        self._out = self.console or plain_console()
        self._epochs, self._steps = int(params.get("epochs") or 1), params.get("steps")
        self._meter = Meter(self.model, self._steps, self._trained)
        self._trained = True
        self._epoch = 0
        self._epoch_began = self._shown = time.perf_counter()
        self._epoch_seconds: list[float] = []
        self._values: dict[str, float] = {}
        self._past: list[str] = []
        self._place = Place() if self.console is None and in_notebook() else None
        if self._place is None and self._out.is_terminal and not self._out.is_dumb_terminal:
            self._live = Live(console=self._out, auto_refresh=False, transient=True)
            self._live.start()
            # An exception in `fit` ends no callback, and would leave the terminal without a cursor.
            atexit.register(self._stop)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the display."""
        self._stop()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins the epoch's bar."""
        self._epoch = epoch
        self._epoch_began = time.perf_counter()
        self._meter.begin_epoch()
        self._show()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Renews the display if it is old enough."""
        self._meter.begin_batch(batch)
        wait = self._wait()
        if wait is not None and batch > 0 and time.perf_counter() - self._shown >= wait:
            synchronize(self.model)
            self._meter.counter.read()
            self._values = _numbers(self.model.get_metrics_result())
            self._show(within=True)

    def on_test_begin(self, logs: Any = None) -> None:
        """Ends the epoch's counting before validation resets the metrics."""
        if self._meter is not None:
            self._meter.end_epoch()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Prints the epoch's line."""
        self._meter.end_epoch()
        seconds = time.perf_counter() - self._epoch_began
        self._epoch_seconds.append(seconds)
        self._steps = self._steps or self._meter.batch
        self._values = _numbers(logs or {})
        left = self._run_left(0.0)
        line = epoch_line(
            epoch + 1,
            self._epochs,
            self._values,
            rate=to_float(self.model.optimizer.learning_rate),
            speed=self._meter.epoch.samples_per_second,
            seconds=seconds,
            left=left if epoch + 1 < self._epochs else None,
        )
        if self._place is None:
            self._out.print(Text(line), soft_wrap=True)
        self._past.append(line)
        self._show()

    def _wait(self) -> float | None:
        """Seconds from one renewal to the next; None for no renewal within epochs."""
        if self._live is not None:
            return self.every
        return self.line_every if self._place is None else max(self.every, 1.0)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self._stop)

    # ------------------------------------------------------------------------------------------------------- display

    def _show(self, within: bool = False) -> None:
        self._shown = time.perf_counter()
        if self._live is not None:
            self._live.update(self._display(), refresh=True)
        elif self._place is not None:
            text = self._page()
            self._place.show(f'<pre style="line-height: 1.25">{html.escape(text)}</pre>', text)
        elif within:
            self._out.print(Text(self._step_line()), soft_wrap=True)

    def _step_line(self) -> str:
        """One line about an epoch that goes on."""
        done, steps, left = self._meter.batch, self._steps, self._epoch_left()
        count = f"epoch {self._epoch + 1:{len(str(self._epochs))}}/{self._epochs}  step {done}/{steps or '?'}"
        parts = [count, *self._figures()]
        return "  ".join([*parts, *([f"{duration(left)} left in the epoch"] if left is not None else [])])

    def _page(self) -> str:
        """What a notebook shows: the last lines, and bars of text under them."""
        done, steps, epoch_left = self._meter.batch, self._steps, self._epoch_left()
        run_left = self._run_left(epoch_left)
        share = min(1.0, done / steps) if steps and len(self._past) <= self._epoch else 0.0
        whole = min(1.0, (max(self._epoch, len(self._past)) + share) / self._epochs)
        lines = [*(["..."] if len(self._past) > _MOST_LINES else []), *self._past[-_MOST_LINES:]]
        if whole < 1:
            left = f"  {duration(run_left)} left" if run_left is not None else ""
            lines.append(f"run    {_bar(whole)} {100 * whole:3.0f}%{left}")
            lines.append(f"epoch  {_bar(share)} step {done}/{steps or '?'}  {'  '.join(self._figures())}")
        return "\n".join(lines)

    def _display(self) -> Group:
        done, steps = self._meter.batch, self._steps
        epoch_left = self._epoch_left()
        run_left = self._run_left(epoch_left)
        share = min(1.0, done / steps) if steps else 0.0
        grid = Table.grid(padding=(0, 1))
        grid.add_column(min_width=18)
        grid.add_column(width=28)
        grid.add_column(justify="right", min_width=5)
        grid.add_column()
        grid.add_row(
            f"run    epoch {self._epoch + 1}/{self._epochs}",
            ProgressBar(total=1.0, completed=min(1.0, (self._epoch + share) / self._epochs), width=28),
            f"{100 * min(1.0, (self._epoch + share) / self._epochs):.0f}%",
            f"{duration(run_left)} left" if run_left is not None else "",
        )
        grid.add_row(
            f"epoch  step {done}/{steps or '?'}",
            ProgressBar(total=1.0, completed=share, width=28, pulse=not steps),
            f"{100 * share:.0f}%" if steps else "",
            f"{duration(epoch_left)} left" if epoch_left is not None else "",
        )
        return Group(grid, Text("  ".join(self._figures()), style="dim", overflow="ellipsis", no_wrap=True))

    def _figures(self) -> list[str]:
        """Loss, metrics, rate and speed, as they were when last read."""
        numbers = [f"{name} {value:.4g}" for name, value in self._values.items()]
        rate = to_float(self.model.optimizer.learning_rate)
        if rate is not None:
            numbers.append(f"lr {rate:.3g}")
        speed = self._meter.epoch.so_far(self._meter.counter.last.samples)
        if speed is not None:
            numbers.append(f"{speed:,.0f} samples/s")
        return numbers

    def _epoch_left(self) -> float | None:
        """Seconds to the end of the epoch, from the steps done in it or in the last one."""
        if not self._steps:
            return None
        done, spent = self._meter.batch, time.perf_counter() - self._epoch_began
        if self._epoch_seconds:
            # The last epoch knows about validation too.
            return max(0.0, self._epoch_seconds[-1] * (1 - done / self._steps))
        return spent * (self._steps - done) / done if done else None

    def _run_left(self, epoch_left: float | None) -> float | None:
        if epoch_left is None:
            return None
        recent = self._epoch_seconds[-3:]
        # The first epoch traces the step: it counts only as long as there is no other.
        recent = recent[1:] if len(recent) == len(self._epoch_seconds) > 1 else recent
        whole = sum(recent) / len(recent) if recent else time.perf_counter() - self._epoch_began + epoch_left
        return epoch_left + whole * max(0, self._epochs - self._epoch - 1)


def plain_console() -> Console:
    """Standard output as it is: a pipe stays one, whatever variables ask for colours there, and breaks no lines."""
    stream = sys.stdout
    terminal = stream.isatty() if hasattr(stream, "isatty") else False
    return Console() if terminal else Console(file=stream, force_terminal=False, width=200)


def _bar(share: float, width: int = 28) -> str:
    full = round(width * share)
    return "━" * full + "─" * (width - full)


def epoch_line(
    epoch: int,
    epochs: int,
    values: Mapping[str, float],
    rate: float | None = None,
    speed: float | None = None,
    seconds: float | None = None,
    left: float | None = None,
) -> str:
    """One line about an epoch, for people.

    >>> epoch_line(3, 20, {"loss": 0.123456, "val_accuracy": 0.98}, rate=1e-3, speed=5123.4, seconds=1.24, left=75)
    'epoch  3/20  loss 0.1235  val_accuracy 0.98  lr 0.001  5,123 samples/s  1.2 s  1:15 left'
    """
    parts = [f"epoch {epoch:{len(str(epochs))}}/{epochs}", *(f"{name} {value:.4g}" for name, value in values.items())]
    if rate is not None and "learning_rate" not in values:
        parts.append(f"lr {rate:.3g}")
    if speed is not None:
        parts.append(f"{speed:,.0f} samples/s")
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(8.4), duration(75), duration(7384)
    ('8 s', '1:15', '2:03:04')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among logs: the loss and training's metrics first, validation's after them."""
    numbers = {name: to_float(value) for name, value in values.items()}
    order = sorted(numbers, key=lambda name: (name.startswith("val_"), not name.endswith("loss")))
    return {name: number for name in order if (number := numbers[name]) is not None}

"""A search in the terminal: a table that is renewed while trials run, or plain lines where there is no terminal."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from keras_tuner.engine.trial import Trial
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from keras_trainkit.callbacks.progress import duration, plain_console
from keras_trainkit.tuning.watching import Watcher, how_it_ended

_STYLES = {"running": "cyan", "completed": "green", "pruned": "yellow", "failed": "red", "again": "red"}
_MOST_VALUES = 30
_EVERY = 0.5


@dataclasses.dataclass
class _Row:
    """What is shown of a trial."""

    trial_id: str
    values: str
    began: float
    status: str = "running"
    epochs: int = 0
    present: float | None = None
    best: float | None = None
    seconds: float = 0.0
    reason: str = ""


class SearchProgress(Watcher):
    """Shows the trials that run with their epoch and present score, the best one so far, the last ones that ended and
    why, and what of the budgets is left.

    In a terminal it is a table that stays in its place; what this process prints, and what trials in processes of their
    own write, scrolls by above it. In a pipe or a file there are plain lines: one when a trial begins, and one when it
    ends. `verbose=0` shows nothing.

    Args:
        console: a `rich.console.Console`; None is standard output.
        last: how many of the trials that ended are in the table, at least 0.
    """

    def __init__(self, console: Console | None = None, last: int = 5) -> None:
        self._given = console
        self._last = last
        self._lines = False
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._closing = threading.Event()
        self._readers: list[threading.Thread] = []
        self._reset()

    def _reset(self) -> None:
        self._tuner: Any = None
        self._running: dict[str, _Row] = {}
        self._ended: list[_Row] = []
        self._counts = {"completed": 0, "pruned": 0, "failed": 0}
        self._best: tuple[str, float, str] | None = None
        self._done_here = 0
        self._began = time.monotonic()

    def use_lines(self) -> None:
        """Lines even in a terminal: something else, such as Keras's own bars, is shown there."""
        self._lines = True

    # ------------------------------------------------------------------------------------------------------- watching

    def search_began(self, tuner: Any) -> None:
        """Opens the display, with what earlier runs of the search left."""
        self._close()
        self._reset()
        self._tuner = tuner
        oracle = tuner.oracle
        if not oracle.verbose:
            return
        with self._lock:
            for trial_id in oracle.end_order:
                self._take(oracle.trials[trial_id])
        self._out = self._given or plain_console()
        if self._out.is_terminal and not self._out.is_dumb_terminal and not self._lines:
            self._live = Live(
                console=self._out, get_renderable=self._table, auto_refresh=False, vertical_overflow="crop"
            )
            self._live.start()
            atexit.register(self._close)  # or an exception would leave the terminal without a cursor
            # Not rich's own thread: nothing may be drawn while `above` has another standard output.
            self._closing = threading.Event()
            threading.Thread(target=self._renew, args=(self._closing,), daemon=True).start()

    def trial_began(self, trial: Trial) -> None:
        """Adds a row."""
        if self._quiet():
            return
        with self._lock:
            row = _Row(trial.trial_id, _values(trial), time.monotonic())
            self._running[trial.trial_id] = row
        self._show(f"trial {row.trial_id}  begins     {row.values}")

    def epoch_ended(self, trial: Trial, metrics: dict[str, float], step: int) -> None:
        """Renews the row."""
        with self._lock:
            row = self._running.get(trial.trial_id)
            if row is not None:
                objective = self._tuner.oracle.objective
                row.epochs = step + 1
                row.present = metrics.get(objective.name, row.present)
                if row.present is not None and (row.best is None or objective.better_than(row.present, row.best)):
                    row.best = row.present

    def trial_ended(self, trial: Trial, again: bool) -> None:
        """Moves the row to those that ended."""
        if self._quiet():
            return
        with self._lock:
            row = self._take(trial, again)
            score = "" if row.best is None else f"{self._tuner.oracle.objective.name} {row.best:.5g}"
            parts = [f"trial {row.trial_id}", f"{row.status:9}", score, f"{row.epochs} epochs", _seconds(row.seconds),
                     row.reason, self._best_line(short=True), *self._budget()]  # fmt: skip
        self._show("  ".join(part for part in parts if part))

    def search_ended(self) -> None:
        """Closes the display; the table stays where it is."""
        with self._lock:
            self._running.clear()
        self.wait_for_output()
        self._close()

    def _quiet(self) -> bool:
        return self._tuner is None or not self._tuner.oracle.verbose

    def _take(self, trial: Trial, again: bool = False) -> _Row:
        oracle = self._tuner.oracle
        early = oracle.ended_early.get(trial.trial_id)
        began = self._running.pop(trial.trial_id, None)
        row = began or _Row(trial.trial_id, _values(trial), time.monotonic())
        row.status = "again" if again else how_it_ended(trial, early)
        row.seconds = time.monotonic() - row.began
        row.reason = " ".join((trial.message or "").strip().partition("\n")[0].split())
        row.best = trial.score if row.status in ("completed", "pruned") else None
        if trial.metrics.exists(oracle.objective.name):
            row.epochs = len(trial.metrics.get_history(oracle.objective.name))
        if began is not None:
            self._done_here += not again
            self._ended = [*self._ended, row][-max(1, self._last) :]
        if not again:
            self._counts[row.status] += 1
        score = row.best
        if score is not None and (self._best is None or oracle.objective.better_than(score, self._best[1])):
            self._best = trial.trial_id, score, row.values
        return row

    # -------------------------------------------------------------------------------------------------------- display

    def _show(self, line: str) -> None:
        if self._live is None:
            self._out.print(Text(line), soft_wrap=True)
        else:
            self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            if self._live is not None:
                self._live.refresh()

    def _renew(self, closing: threading.Event) -> None:
        while not closing.wait(_EVERY):
            self._refresh()

    def _close(self) -> None:
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                self._closing.set()
                live.stop()
                atexit.unregister(self._close)

    @contextlib.contextmanager
    def above(self) -> Iterator[None]:
        """A process that is started in here writes above the table, and not into it."""
        if self._live is None:
            yield
            return
        reader, writer = os.pipe()
        try:
            with self._lock, outputs_to(writer):
                yield
        finally:
            os.close(writer)
        thread = threading.Thread(target=self._forward, args=(reader,), daemon=True)
        self._readers = [*(other for other in self._readers if other.is_alive()), thread]
        thread.start()

    def wait_for_output(self, seconds: float = 2.0) -> None:
        """Until all of what ended processes wrote is shown, but no longer than so many seconds for each."""
        for thread in self._readers:
            thread.join(seconds)

    def _forward(self, reader: int) -> None:
        with os.fdopen(reader, "rb") as stream:
            for line in stream:
                text = Text.from_ansi(line.decode(errors="replace").rstrip("\n").rpartition("\r")[2])
                if text.plain.strip():
                    with self._lock:
                        self._out.print(text, soft_wrap=True)

    def _table(self) -> Group:
        with self._lock:
            return Group(*self._head(), self._trials())

    def _head(self) -> list[Any]:
        oracle = self._tuner.oracle
        counts = ", ".join(f"{count} {status}" for status, count in self._counts.items() if count)
        words = [f"search {oracle._project_name}", *([counts] if counts else []), *self._budget()]
        head: list[Any] = [Text("  ".join(words), style="bold", no_wrap=True, overflow="ellipsis")]
        share = max((share for share, _ in self._shares()), default=None)
        if share is not None:
            bar = Table.grid()
            bar.add_row(ProgressBar(total=1.0, completed=min(1.0, share), width=min(60, self._out.width)))
            head.append(bar)
        best = self._best_line()
        head.append(Text(best or "no score yet", style="green" if best else "dim", no_wrap=True, overflow="ellipsis"))
        return head

    def _trials(self) -> Table:
        table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True, header_style="dim")
        for name, justify in (("trial", "left"), ("status", "left"), ("epoch", "right"), ("score", "right"),
                              ("best", "right"), ("time", "right")):  # fmt: skip
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("values, or why it ended", no_wrap=True, overflow="ellipsis", ratio=1)
        now = time.monotonic()
        room = max(1, self._out.height - 6)
        running = list(self._running.values())[:room]
        ended = self._ended[-min(self._last, max(0, room - len(running))) :] if self._last else []
        for row in [*ended, *running]:
            seconds = now - row.began if row.status == "running" else row.seconds
            table.add_row(
                row.trial_id, Text(row.status, style=_STYLES[row.status]), str(row.epochs or ""),
                _number(row.present), _number(row.best), _seconds(seconds), Text(row.reason or row.values),
                style="" if row.status == "running" else "dim",
            )  # fmt: skip
        return table

    def _best_line(self, short: bool = False) -> str:
        if self._best is None:
            return ""
        trial_id, score, values = self._best
        name = self._tuner.oracle.objective.name
        return (
            f"best {score:.5g} (trial {trial_id})" if short else f"best {name} {score:.5g}, trial {trial_id}: {values}"
        )

    def _shares(self) -> list[tuple[float, Callable[[], str]]]:
        """How much of each budget is used, and in words."""
        oracle, found = self._tuner.oracle, []
        done = sum(self._counts.values())
        if oracle.max_trials:
            found.append((done / oracle.max_trials, lambda: f"{done} of {oracle.max_trials} trials"))
        if oracle.epoch_budget:
            spent = oracle._epochs
            found.append((spent / oracle.epoch_budget, lambda: f"{spent} of {oracle.epoch_budget} epochs"))
        if oracle.time_budget:
            elapsed = oracle._elapsed()
            found.append(
                (elapsed / oracle.time_budget, lambda: f"{duration(elapsed)} of {duration(oracle.time_budget)}")
            )
        return found

    def _budget(self) -> list[str]:
        words = [say() for _, say in self._shares()]
        if not self._tuner.oracle.time_budget:
            words.append(duration(self._tuner.oracle._elapsed()))
        left = self._left()
        return [*words, f"{duration(left)} left"] if left is not None else words

    def _left(self) -> float | None:
        """Seconds until the first budget is spent, by how fast trials ended so far."""
        oracle, guesses = self._tuner.oracle, []
        if self._done_here and oracle.max_trials:
            each = (time.monotonic() - self._began) / self._done_here
            guesses.append(each * max(0, oracle.max_trials - sum(self._counts.values())))
        if oracle.time_budget:
            guesses.append(max(0.0, oracle.time_budget - oracle._elapsed()))
        return min(guesses, default=None)


def _values(trial: Trial) -> str:
    named = [(name, value) for name, value in trial.hyperparameters.values.items() if not name.startswith("tuner/")]
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in named]
    return ", ".join(shown[:_MOST_VALUES])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


@contextlib.contextmanager
def outputs_to(descriptor: int) -> Iterator[None]:
    """A process that is started in here writes to this file, both its standard output and its standard error."""
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    try:
        for fd, _ in kept:
            os.dup2(descriptor, fd)
        yield
    finally:
        for fd, copy in kept:
            os.dup2(copy, fd)
            os.close(copy)

"""ResumableTraining: a run that is killed and started again ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_trainkit.callbacks.plateau import MODES, is_higher_better
from keras_trainkit.core import backend, checks
from keras_trainkit.data.feed import Feed
from keras_trainkit.distribution.joining import cluster_of
from keras_trainkit.monitoring.counting import to_float
from keras_trainkit.resuming import callback_states, occasions, signals, snapshot, store
from keras_trainkit.resuming.together import companions
from keras_trainkit.resuming.writer import Writer

_running: weakref.WeakValueDictionary[Path, _Run] = weakref.WeakValueDictionary()
_ended: set[Path] = set()
"""Directories whose run has come to its end in this process."""


@keras.saving.register_keras_serializable("keras_trainkit")
class ResumableTraining(keras.callbacks.Callback):
    """Saves the whole state of a `fit` again and again, and goes on from it when the same program is started again.

    A run that is killed at any moment, by SIGKILL or a power cut, and started again by the same command ends with the
    weights of the uninterrupted run, bit for bit on a CPU. A state holds the variables of model, optimizer (slots,
    averages, loss scale, part-filled accumulation windows) and metrics, all of each replica's own; the seeds of random
    layers, and of Keras, NumPy and Python; the place in the epoch and in the data; the history; and what the callbacks
    have seen: Keras's, the kit's, and yours if they have two methods:

    - `get_state()` returns plain values (numbers, text, None, NumPy arrays, lists, tuples, dictionaries);
    - `set_state(state)` takes them, after `on_train_begin`, and inside an epoch after `on_epoch_begin`.

    A callback of yours without them that changes in training is named by a warning.

    The data go on at their place if they are the kit's, `data.Batches` or `data.StreamBatches`. Arrays, `tf.data` and
    other sources are gone through from the beginning (`replay`), which takes the time of reading; they must give the
    same batches again, so shuffle them by a fixed seed, and arrays after `keras.utils.set_random_seed`.

    The first state is saved before the first batch, the last one at the end of `fit`. A run that is started again after
    its end trains on nothing, and has the final weights and the history; with more `epochs` it goes on. The values are
    read between two batches, and written by another thread: to a temporary file, which the disk has taken before it
    gets its name. A full disk raises an OSError in `fit`, and what was saved before stays whole. If the newest file is
    damaged, the one before is taken, with a warning. One run at a time can have the directory.

    On SIGTERM and SIGUSR1, which queues and clouds send before they kill, the state is saved and the process exits with
    code 0.

    Under MirroredStrategy each replica gets its own values back. On several workers (`distribution.workers`) each saves
    what is its own in a folder `worker-0`, `worker-1` and so on of the directory, all at the same moments, and all go
    on from the newest moment of which every worker has a whole state; the disk may be shared, or each its own. They ask
    one another about once a second whether the time is up (by the chief's clock) or a signal has come to one of them.

    The place in the list of callbacks does not matter. The model must be built: give it an `Input`.

    Args:
        directory: for this run alone, made if missing; one `fit` has one directory.
        every: how often: a text of time such as `"10min"` (`"90s"`, `"2h"`), a number of batches, or epochs as in
            `"1ep"`. A save that is due while the last one is still being written comes a batch later.
        keep: how many of the last states stay, at least 1; with 2 a damaged one can be done without.
        keep_best: how many states stay that were saved at the ends of the best epochs, by `monitor`.
        monitor: the metric, such as `"val_loss"`.
        mode: `"min"`, `"max"`, or `"auto"`: by the metric's name.
        keep_every: the states that were saved at the end of each so manieth epoch stay; 0 for none.
        signals: names of signals after which to save and exit.
        replay: whether to go through other data than the kit's to the place where training goes on. With False the
            epoch at hand is entered where it was left, but epochs before it are not gone through: exact only if each
            epoch has the same order.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, for a model that
            is not built, or one that the state does not fit, with the names and shapes that differ; for a directory
            that another `fit` of this process has used to its end.
        RuntimeError: when training begins, if another run has the directory, all states in it are damaged, or the
            workers have states, but none of one moment.

    >>> callback = ResumableTraining("runs/first/resume", every="10min", keep=3)
    >>> callback.get_config()["every"]
    '10min'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int | str = "10min",
        keep: int = 2,
        keep_best: int = 0,
        monitor: str = "val_loss",
        mode: str = "auto",
        keep_every: int = 0,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        replay: bool = True,
    ) -> None:
        super().__init__()
        self.directory = os.fspath(directory)
        self.every = every
        self._every = occasions.parse(every)
        self.keep = checks.integer("keep", keep, at_least=1)
        self.keep_best = checks.integer("keep_best", keep_best, at_least=0)
        self.monitor = monitor
        self.mode = checks.one_of("mode", mode, MODES)
        self.keep_every = checks.integer("keep_every", keep_every, at_least=0)
        self.signals = _signal_names(signals)
        self.replay = checks.boolean("replay", replay)
        self.resumed_from: dict[str, int] | None = None
        self._run: Any = None
        self._logs: Any = None

    def set_model(self, model: Any) -> None:
        """Puts itself around all callbacks of the `fit`, whatever its place among them."""
        super().set_model(model)
        callbacks = backend.list_of_callbacks()
        if callbacks is not None:
            rivals = [
                other for other in callbacks.callbacks
                if other is not self and isinstance(other, (ResumableTraining, keras.callbacks.BackupAndRestore))
            ]  # fmt: skip
            if rivals:
                raise ValueError(
                    "`callbacks` must hold one callback that restores: take either ResumableTraining or "
                    f"{type(rivals[0]).__name__} out."
                )
            _surround(callbacks, self)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps hold of the logs, to which the callbacks behind this one may add."""
        self._logs = logs

    def close(self) -> None:
        """Waits for what is being written, and lets go of directory and signals, after an exception has ended `fit`.

        Another `fit` and the end of the process do it, too.
        """
        if self._run is not None:
            run, self._run = self._run, None
            run.end()

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("directory", "every", "keep", "keep_best", "monitor", "mode", "keep_every", "replay")
        return {**{name: getattr(self, name) for name in names}, "signals": list(self.signals)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResumableTraining:
        """The inverse of `get_config`."""
        return cls(**config)

    # ------------------------------------------------------------------------- around what `fit` calls, in its order

    def _before_train_begin(self, callbacks: Any) -> None:
        if self._run is not None:
            with contextlib.suppress(Exception):  # the `fit` has ended with one already
                self._run.end()
        self._run = _Run(self, callbacks, backend.epoch_iterator_of_fit())
        self._run.load()

    def _after_train_begin(self) -> None:
        self._run.begun()

    def _after_epoch_begin(self, epoch: int) -> None:
        self._run.epoch_begun(epoch)

    def _before_batch(self, batch: int) -> None:
        self._run.at_batch(batch)

    def _after_epoch_end(self, epoch: int) -> None:
        self._run.epoch_ended(epoch, self._logs or {})

    def _after_train_end(self) -> None:
        run, self._run = self._run, None
        run.completed()


def _signal_names(names: Any) -> tuple[str, ...]:
    return signals.checked(names)


def _surround(callbacks: Any, own: ResumableTraining) -> None:
    """Has the callback called before or after all others, on this one list."""
    train_begin, epoch_begin = callbacks.on_train_begin, callbacks.on_epoch_begin
    batch_begin, epoch_end, train_end = callbacks.on_train_batch_begin, callbacks.on_epoch_end, callbacks.on_train_end

    def on_train_begin(logs: Any = None) -> None:
        own._before_train_begin(callbacks)
        train_begin(logs)
        own._after_train_begin()

    def on_epoch_begin(epoch: int, logs: Any = None) -> None:
        epoch_begin(epoch, logs)
        own._after_epoch_begin(epoch)

    def on_train_batch_begin(batch: int, logs: Any = None) -> None:
        own._before_batch(batch)
        batch_begin(batch, logs)

    def on_epoch_end(epoch: int, logs: Any = None) -> None:
        epoch_end(epoch, logs)
        own._after_epoch_end(epoch)

    def on_train_end(logs: Any = None) -> None:
        train_end(logs)
        own._after_train_end()

    for method in (on_train_begin, on_epoch_begin, on_train_batch_begin, on_epoch_end, on_train_end):
        setattr(callbacks, method.__name__, method)


class _Run:
    """One `fit` and its directory."""

    def __init__(self, own: ResumableTraining, callbacks: Any, iterator: Any) -> None:
        self._own, self._callbacks, self._iterator = own, callbacks, iterator
        self._directory = Path(own.directory).absolute()
        earlier = _running.pop(self._directory, None)
        if earlier is not None and not backend.is_fitting(earlier._callbacks):
            with contextlib.suppress(Exception):  # its own `fit` has ended with one
                earlier.end()
        if self._directory in _ended and any(self._directory.glob("**/state-*")):
            raise ValueError(
                "`directory` must be of one `fit` alone, and this process has trained to the end with it. To train "
                f"on, give another one. Received: directory={own.directory!r}"
            )
        model = own.model
        if not model.built:
            raise ValueError(
                "`ResumableTraining` needs a model whose variables are there before training: give it an `Input`, or "
                "call it on a batch first."
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        strategy = model.distribute_strategy if backend.ON_TENSORFLOW else None
        self._all = companions(strategy, None if strategy is None else cluster_of(strategy), own.signals)
        keep = self._all.keep(own.keep)
        retention = store.Retention(keep, own.keep_best, own.keep_every, own.monitor, self._is_higher_better)
        self._place = self._all.place(self._directory)
        self._store = store.Store(self._place, retention)
        self._moment = 0
        _running[self._directory] = self
        self._signals = signals.Signals(own.signals, lambda: backend.is_fitting(callbacks))
        self._occasions = occasions.Occasions(own._every)
        self._writer = Writer()
        self._loaded: Any = None
        self._inside = False
        self._epoch, self._batch = 0, 0
        self._fresh = True
        self._epochs = int((own.params or {}).get("epochs") or 1)

    def _is_higher_better(self, metric: str) -> bool:
        return is_higher_better(metric, self._own.mode)

    @property
    def _others(self) -> list[Any]:
        return [callback for callback in self._callbacks.callbacks if callback is not self._own]

    # -------------------------------------------------------------------------------------------------- going on

    def load(self) -> None:
        """Finds the newest state and puts the variables back, before any callback begins."""
        own = self._own
        backend.begin_with_epoch(own.model, None)
        found = self._all.newest(self._place)
        own.resumed_from = None
        if found is not None:
            path, facts, arrays = found
            self._all.check(facts)
            snapshot.check(facts, own.model, path)
            self._moment = facts["moment"]
            self._loaded, self._fresh = (facts, arrays), False
            self._inside = facts["inside"]
            self._put_variables_back()
            epoch, batch = facts["epoch"], facts["batch"]
            backend.begin_with_epoch(own.model, self._epochs if facts["stopped"] else epoch)
            own.resumed_from = {"epoch": epoch, "batch": batch}
            callback_states.prepare(self._others)
            self._find_place_in_data(facts)
            ended = facts["stopped"] or epoch >= self._epochs
            _say(f"resuming from {path}: " + ("training has ended" if ended else f"epoch {epoch + 1}, batch {batch}"))
        self._signals.listen()

    def _find_place_in_data(self, facts: dict[str, Any]) -> None:
        data, batch = backend.data_of(self._iterator), facts["batch"]
        if isinstance(data, Feed):
            if facts["data"] is None:
                raise ValueError("The state is of a run on other data than the kit's; here they are the kit's.")
            data.restore(facts["data"])
            if batch:
                backend.enter_epoch(self._iterator, batch, knows_position=True)
            return
        if facts["data"] is not None:
            raise ValueError("The state is of a run on the kit's data; here they are others.")
        past = facts["epoch"] - facts["first_epoch"] if self._own.replay else 0
        if batch or past:
            backend.enter_epoch(self._iterator, batch, knows_position=False, past=past)

    def _put_variables_back(self) -> None:
        facts, arrays = self._loaded
        if facts["batch"]:
            backend.build_metrics(self._own.model, self._iterator)
        snapshot.put_back(facts, arrays, self._own.model, with_metrics=facts["batch"] > 0)

    def _put_all_back(self) -> None:
        facts, arrays = self._loaded
        self._put_variables_back()
        callback_states.put_back(facts["callbacks"], arrays, self._others)
        self._first_epoch = facts["first_epoch"]
        self._loaded = None

    def begun(self) -> None:
        """After all callbacks have begun."""
        self._forgotten = callback_states.Forgotten(self._others)
        if self._loaded is not None and not self._inside:
            self._put_all_back()

    def epoch_begun(self, epoch: int) -> None:
        """After all callbacks have begun an epoch; Keras has reset the metrics."""
        self._epoch, self._batch = epoch, 0
        if self._fresh:
            self._first_epoch = epoch
        if self._loaded is not None:
            self._put_all_back()
            self._batch = self._own.resumed_from["batch"] if self._own.resumed_from else 0
            self._inside = False

    # ---------------------------------------------------------------------------------------------------- saving

    def at_batch(self, batch: int) -> None:
        """Before a batch: so many are done in this epoch."""
        self._writer.check()
        self._occasions.add_batches(batch - self._batch)
        self._batch = batch
        if self._fresh:
            self._fresh = False
            self._save(self._epoch, batch, inside=True)
        every = self._own._every
        due = self._occasions.due and every.epochs is None and (self._all.count > 1 or not self._writer.busy)
        due, signal = self._all.agreed(due, self._signals.received, counted=every.seconds is None)
        if due or signal:
            self._save(self._epoch, batch, inside=True)
        if signal:
            self._exit(signal, epoch=self._epoch, batch=batch)

    def epoch_ended(self, epoch: int, logs: dict[str, Any]) -> None:
        """After all callbacks have ended an epoch."""
        self._occasions.add_batches(backend.batches_at_once(self._iterator))
        self._occasions.add_epoch()
        self._forgotten.warn()
        finished = bool(self._own.model.stop_training) or epoch + 1 >= self._epochs
        counted = self._own._every.seconds is None
        due, signal = self._all.agreed(self._occasions.due, self._signals.received, counted, ask=True)
        if due or signal or finished:
            self._save(epoch + 1, 0, inside=False, logs=logs)
        if signal and not finished:
            self._exit(signal, epoch=epoch + 1, batch=0)

    def _save(self, epoch: int, batch: int, inside: bool, logs: Any = None) -> None:
        facts, values = snapshot.take(self._own.model)
        self._occasions.start()
        self._moment += 1
        data = backend.data_of(self._iterator)
        begun = backend.batches_at_once(self._iterator) if inside else 0
        arrays: dict[str, Any] = {}
        numbers = {name: to_float(value) for name, value in (logs or {}).items()}
        facts |= {
            "moment": self._moment,
            "workers": self._all.count,
            "epoch": epoch,
            "batch": batch,
            "inside": inside,
            "stopped": bool(self._own.model.stop_training),
            "first_epoch": self._first_epoch,
            "metrics": {name: number for name, number in numbers.items() if number is not None},
            "versions": snapshot.versions(),
            "saved": time.time(),
            "data": data.state(begun) if isinstance(data, Feed) else None,
            "callbacks": callback_states.encoded(self._others, arrays),
        }
        folder = self._store
        self._writer.wait()
        self._all.wait()
        self._writer.start(lambda: folder.write(facts, snapshot.pack(facts, values | arrays)))

    def _exit(self, signal: str, epoch: int, batch: int) -> None:
        self.end()
        place = f"epoch {epoch + 1}, batch {batch}"
        _say(f"{signal} came: the state is saved ({place}); start the same command again to resume")
        raise SystemExit(0)

    # ------------------------------------------------------------------------------------------------------- end

    def completed(self) -> None:
        """`fit` has come to its end."""
        if self._loaded is not None:
            self._put_all_back()
        self.end()
        _ended.add(self._directory)

    def end(self) -> None:
        """Waits for what is being written, and lets go of directory and signals."""
        try:
            self._writer.wait()
        finally:
            self._signals.stop()
            backend.begin_with_epoch(self._own.model, None)
            self._store.release()


def _say(text: str) -> None:
    print(f"keras_trainkit: {text}", file=sys.stderr, flush=True)

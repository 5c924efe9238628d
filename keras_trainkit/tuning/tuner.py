"""Tuner: KerasTuner's, with trials that end early, fail with a reason, and may each run in a process of their own."""

from __future__ import annotations

import contextlib
import json
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from rich.console import Console

from keras_trainkit.core import checks
from keras_trainkit.resuming import occasions
from keras_trainkit.tuning import outcomes, spaces
from keras_trainkit.tuning.oracle import Oracle
from keras_trainkit.tuning.progress import SearchProgress, outputs_to
from keras_trainkit.tuning.stored_oracle import write_to_be_seen

Callbacks = Sequence[keras.callbacks.Callback] | Callable[[keras_tuner.HyperParameters], list[keras.callbacks.Callback]]


class NonfiniteError(ArithmeticError):
    """A loss or a metric of a trial became NaN or infinite."""


class Tuner(keras_tuner.Tuner):
    """A tuner of KerasTuner over an `Oracle` of ours.

    `search` takes `callbacks` as KerasTuner does, or a function of the hyperparameters that returns fresh ones for each
    run: `callbacks=lambda hp: [keras.callbacks.EarlyStopping(patience=hp.get("patience"))]`.

    Args:
        oracle: an `Oracle` of this package.
        hypermodel: a `keras_tuner.HyperModel`, or a function of the hyperparameters that returns a compiled model.
        workers: processes that train at the same time; 0 trains in this one. See the guide on searching.
        trial_timeout: seconds, above 0, without the end of an epoch after which a trial counts as hung and its process
            is killed; None waits for ever. Needs `workers`.
        recycle_after: trials after which a process is replaced, at least 1, so that memory stays flat.
        devices: for each worker in turn its `CUDA_VISIBLE_DEVICES`; None deals out those of this process, if it is set.
        runner: where the `workers` train, such as a `RayRunner`; None is in processes of this machine.
        save_every: how often the state of a running trial is saved, as in `callbacks.ResumableTraining`, such as
            `"1ep"` or `"10min"`: a trial whose process is killed then goes on from there, and not from its first epoch.
            Its model must be built. None saves none.
        keep_checkpoints: how many of the best trials keep their weights, at least 1; None keeps all.
        progress: True shows the search as a table in a terminal, and as plain lines elsewhere, and Keras's own bars
            stay away unless `search` is given `verbose`; a `rich.console.Console` shows it there; False leaves it to
            KerasTuner's own lines.
        output: a file for what trials in processes of their own print, TensorFlow's messages too; None shows it.
        hparams: writes the trials for TensorBoard's HParams to `tensorboard` in the project's directory; the sessions
            that KerasTuner would make for a `TensorBoard` callback stay away then.
        **kwargs: `directory`, `project_name`, `overwrite`, `executions_per_trial` and others of `keras_tuner.Tuner`.

    Raises:
        TypeError: the oracle is not one of ours.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        oracle: Oracle,
        hypermodel: Any = None,
        *,
        workers: int = 0,
        trial_timeout: float | None = None,
        recycle_after: int = 10,
        devices: Sequence[str] | None = None,
        runner: Any = None,
        save_every: int | str | None = None,
        keep_checkpoints: int | None = 5,
        progress: bool | Console = True,
        output: str | Path | None = None,
        hparams: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(oracle, Oracle):
            raise TypeError(f"`oracle` must be a keras_trainkit.tuning.Oracle. Received: oracle={oracle!r}")
        self.workers = checks.integer("workers", workers, at_least=0)
        self.recycle_after = checks.integer("recycle_after", recycle_after, at_least=1)
        if trial_timeout is not None:
            checks.number("trial_timeout", trial_timeout, above=0)
            if not workers:
                raise ValueError(
                    "`trial_timeout` needs `workers`: a trial in this process cannot be killed. "
                    f"Received: trial_timeout={trial_timeout}, workers={workers}"
                )
        if runner is not None and (not self.workers or devices is not None):
            raise ValueError(
                "`runner` needs `workers`, the number of trials at a time, and deals out devices itself. "
                f"Received: runner={runner!r}, workers={workers}, devices={devices}"
            )
        if keep_checkpoints is not None:
            checks.integer("keep_checkpoints", keep_checkpoints, at_least=1)
        self.trial_timeout = trial_timeout
        self.runner = runner
        self.devices = None if devices is None else [str(device) for device in devices]
        self.keep_checkpoints = keep_checkpoints
        if save_every is not None:
            occasions.parse(save_every)
        self.save_every = save_every
        self._execution = 0
        self._running: Trial | None = None
        self._loading = False
        self.hparams = bool(hparams)
        self.output = None if output is None else Path(output)
        self.quiet_fit = False  # whether Keras's bars would fight with the table
        oracle._overwrite = bool(kwargs.get("overwrite", False))
        self._progress: SearchProgress | None = None
        if progress is not False:
            oracle.show_elsewhere()
            self._progress = SearchProgress(None if progress is True else progress)
            oracle.watchers.append(self._progress)
        super().__init__(oracle=oracle, hypermodel=hypermodel, **kwargs)
        if self.hparams:
            from keras_trainkit.tuning.hparams import FOLDER, HParamsLog

            oracle.watchers.append(HParamsLog(Path(self.project_dir) / FOLDER))

    @property
    def study(self) -> Any:
        """The study of Optuna with all trials, for its own plots and for optuna-dashboard."""
        return self.oracle.study

    def enqueue(self, **values: Any) -> None:
        """A start point: tried before the sampler proposes; what is left open is sampled."""
        self.oracle.enqueue(values)

    def enqueue_values(self, values: spaces.Values) -> None:
        """As `enqueue`, for names that are no names of Python, such as `"tuner/epochs"`."""
        self.oracle.enqueue(values)

    def get_pareto_trials(self) -> list[Trial]:
        """The trials that no other beats in every objective, for several objectives."""
        return self.oracle.pareto_trials()

    # The search

    def _populate_initial_space(self) -> None:
        super()._populate_initial_space()
        self.oracle.open()

    def _activate_all_conditions(self) -> None:
        # A model that declares its whole space need not be built once for each condition, to find out.
        if not getattr(self.hypermodel, "declares_all", False):
            super()._activate_all_conditions()

    def reload(self) -> None:
        # The space comes from the hypermodel as it is now; the oracle compares it with the database.
        self._populate_initial_space()

    def save(self) -> None:
        self.oracle.save()
        write_to_be_seen(Path(self._get_tuner_fname()), self.get_state())

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Runs trials until a budget is spent or the space is exhausted.

        Args:
            *fit_args: for `HyperModel.fit`, as in KerasTuner.
            **fit_kwargs: likewise; `verbose` is that of the search, too.
        """
        if "verbose" in fit_kwargs:
            self.oracle.verbose = fit_kwargs["verbose"]
        with self._watched("verbose" in fit_kwargs):
            if not self.workers:
                super().search(*fit_args, **fit_kwargs)
            else:
                from keras_trainkit.tuning.running import isolated

                self.on_search_begin()
                isolated.search(self, fit_args, fit_kwargs)
                self.on_search_end()
        if self.oracle.stop_reason and self.oracle.verbose:
            print(f"Search: ended, {self.oracle.stop_reason}")

    @contextlib.contextmanager
    def _watched(self, fit_shows: bool) -> Iterator[None]:
        self.quiet_fit = self._progress is not None and not fit_shows
        if self._progress is not None and fit_shows:
            self._progress.use_lines()
        bars = keras.config.is_interactive_logging_enabled()
        if self.quiet_fit:
            keras.config.disable_interactive_logging()
        try:
            for watcher in self.oracle.watchers:
                watcher.search_began(self)
            yield
        finally:
            self.oracle.leave()
            if bars:
                keras.config.enable_interactive_logging()
            for watcher in self.oracle.watchers:
                watcher.search_ended()

    def above_the_table(self) -> contextlib.AbstractContextManager[None]:
        """Where a process is started whose output is not to fall into the table of trials."""
        if self.output is not None:
            return self._to_file(self.output)
        return contextlib.nullcontext() if self._progress is None else self._progress.above()

    @staticmethod
    @contextlib.contextmanager
    def _to_file(path: Path) -> Iterator[None]:
        with path.open("ab") as file, outputs_to(file.fileno()):
            yield

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        self._running, self._execution = trial, 0
        return super().run_trial(trial, *args, **kwargs)

    def _build_and_fit_model(self, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        # KerasTuner's own refuses a mapping with several objectives; here `outcomes` reads what comes back.
        hp = trial.hyperparameters
        model = self._try_build(hp)
        with contextlib.ExitStack() as stack:
            if self.save_every is not None:
                from keras_trainkit.tuning.running import trial_states

                callbacks = kwargs["callbacks"]
                saving = trial_states.resumable(self, trial, self._execution, callbacks, self.save_every)
                stack.callback(saving.close)
                self._execution += 1
            results = self.hypermodel.fit(hp, model, *args, **kwargs)
        config = Path(self._get_build_config_fname(trial.trial_id))
        config.write_text(json.dumps(model.get_build_config()), encoding="utf-8")
        return results

    def __getstate__(self) -> dict[str, Any]:
        # A trial's process has its own oracle, which asks this one.
        return self.__dict__ | {"oracle": None, "_running": None, "_progress": None}

    def _deepcopy_callbacks(self, callbacks: Callbacks) -> list[keras.callbacks.Callback]:
        if callable(callbacks):
            assert self._running is not None
            return list(callbacks(self._running.hyperparameters))
        return super()._deepcopy_callbacks(callbacks)

    def _configure_tensorboard_dir(self, callbacks: list[Any], trial: Trial, execution: int = 0) -> None:
        before = list(callbacks)
        super()._configure_tensorboard_dir(callbacks, trial, execution)
        if self.hparams:
            callbacks[:] = before  # without KerasTuner's sessions: each trial would be there twice

    def on_epoch_end(self, trial: Trial, model: keras.Model, epoch: int, logs: dict[str, Any] | None = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        refuse_nonfinite(values, epoch)
        if self.oracle.objective.has_value(values):
            status = self.oracle.update_trial(trial.trial_id, values, step=epoch).status
            if status == TrialStatus.STOPPED:
                model.stop_training = True

    def _try_run_and_update_trial(self, trial: Trial, *fit_args: Any, **fit_kwargs: Any) -> None:
        try:
            self._run_and_update_trial(trial, *fit_args, **fit_kwargs)
            trial.status = TrialStatus.COMPLETED
        except keras_tuner.errors.FatalError:
            raise
        except keras_tuner.errors.FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, explain(error)
        except Exception as error:
            # What raised once would raise again from the state before it; what was killed goes on.
            self._forget_states(trial)
            trial.status, trial.message = TrialStatus.INVALID, explain(error)

    def _run_and_update_trial(self, trial: Trial, *fit_args: Any, **fit_kwargs: Any) -> None:
        results = self.run_trial(trial, *fit_args, **fit_kwargs)
        objective = self.oracle.objective
        if _all_histories(results) and self.oracle.has_reports(trial.trial_id):
            return  # every epoch was reported
        metrics, step = outcomes.read(results, objective)
        refuse_nonfinite(metrics, step)
        self.oracle.set_result(trial.trial_id, metrics, step)

    def on_trial_end(self, trial: Trial) -> None:
        again = trial.status == TrialStatus.INVALID
        super().on_trial_end(trial)
        if not again or trial.status == TrialStatus.FAILED:
            self._forget_states(trial)
        self._remove_checkpoints()

    def _forget_states(self, trial: Trial) -> None:
        if self.save_every is not None:
            from keras_trainkit.tuning.running import trial_states

            trial_states.forget(self.get_trial_dir(trial.trial_id))

    # Models and their files

    def _build_hypermodel(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        if self.quiet_fit:
            keras.config.disable_interactive_logging()  # again: the session was cleared, and with it this setting
        model = super()._build_hypermodel(hp)
        if "tuner/trial_id" in hp.values and not self._loading:
            self._inherit(model, hp.values["tuner/trial_id"])
        return model

    def _inherit(self, model: keras.Model, parent: str) -> None:
        """Takes over weights and optimizer of another trial."""
        if not model.built:
            model.build_from_config(json.loads(Path(self._get_build_config_fname(parent)).read_text("utf-8")))
        # Slots that are not there yet would be left out without a word, and every promotion restart them.
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self._get_checkpoint_fname(parent))

    def load_model(self, trial: Trial) -> keras.Model:
        """The model of a trial at its best epoch.

        Raises:
            FileNotFoundError: its weights were removed, because `keep_checkpoints` other trials are better.
        """
        if not Path(self._get_checkpoint_fname(trial.trial_id)).exists():
            raise FileNotFoundError(
                f"trial {trial.trial_id} has no weights: those of the best {self.keep_checkpoints} trials stay. "
                "Raise `keep_checkpoints` for more. Where several machines search without a shared folder, they are on "
                "the one that trained them"
            )
        with self._own_weights_only():
            return super().load_model(trial)

    @contextlib.contextmanager
    def _own_weights_only(self) -> Iterator[None]:
        self._loading = True
        try:
            yield
        finally:
            self._loading = False

    def _needed_checkpoints(self) -> set[str]:
        """Trials whose weights must stay whatever their score, because others may go on from them."""
        return set()

    def _remove_checkpoints(self) -> None:
        if self.keep_checkpoints is None:
            return
        done = [t for t in self.oracle.trials.values() if t.status == TrialStatus.COMPLETED and t.score is not None]
        done.sort(key=lambda trial: trial.score, reverse=self.oracle.objective.direction == "max")
        keep = {trial.trial_id for trial in done[: self.keep_checkpoints]} | self._needed_checkpoints()
        if len(getattr(self.oracle.objective, "objectives", [])) > 1:
            keep |= {trial.trial_id for trial in self.get_pareto_trials()}
        for trial in self.oracle.trials.values():
            if trial.trial_id not in keep and trial.status in (TrialStatus.COMPLETED, TrialStatus.FAILED):
                Path(self._get_checkpoint_fname(trial.trial_id)).unlink(missing_ok=True)


def refuse_nonfinite(values: dict[str, float], epoch: int) -> None:
    """Raises `NonfiniteError` where a value is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonfiniteError(f"`{name}` is {value} after epoch {epoch + 1}")


def explain(error: BaseException) -> str:
    """The reason of a failure in its first line, and below it where it came from."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return f"{type(error).__name__}: {error}\n\n{''.join(lines)}"


def _all_histories(results: Any) -> bool:
    listed = results if isinstance(results, list) else [results]
    return bool(listed) and all(isinstance(result, keras.callbacks.History) for result in listed)

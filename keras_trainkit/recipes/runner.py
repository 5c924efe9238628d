"""`run`: carries out a recipe and leaves a run directory that tells all about it, even if it was cut short."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import keras
from rich.console import Console

from keras_trainkit import reporting
from keras_trainkit.callbacks import EvaluationWeights, Progress, ResumableTraining, TrainingMonitor
from keras_trainkit.data import Dataset
from keras_trainkit.recipes import environment, run_directory
from keras_trainkit.recipes.epochs import KeepBest, StopIfDiverged, Stopwatch, Validation
from keras_trainkit.recipes.errors import RecipeError
from keras_trainkit.recipes.evaluation import Evaluator
from keras_trainkit.recipes.interruption import Interruption, StopWhenRequested
from keras_trainkit.recipes.preparation import Job, dtype_policy, prepare
from keras_trainkit.recipes.recipe import Recipe
from keras_trainkit.recipes.result import Result

_REFRESHED = 4096  # samples from which BatchNormalization statistics are taken anew: enough for a mean and a variance


def run(
    recipe: Recipe,
    directory: str | Path | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    console: Console | None = None,
    *,
    dataset: Dataset | None = None,
    overwrite: bool = False,
    progress: bool = True,
    save_every: int | str | None = "10min",
) -> Result:
    """Trains as the recipe says, validates after each epoch, tests the best model, and writes the run directory.

    The directory holds recipe.json, environment.json, metrics.jsonl (one line per logged step and per epoch),
    tensorboard/, model.keras (the best model, from raw values to predictions), result.json and report.html.
    Everything is checked before it is made: after an error about data, model or recipe there is no directory.

    A run that is killed goes on with `resume`. On SIGTERM and SIGUSR1 its state is saved, and the process exits with 0.

    The first Ctrl-C ends training after the step at hand: the status is then "interrupted", and the directory tells of
    the epochs so far, with the best model of them. A second one does not wait for the step.

    Args:
        recipe: what to do.
        directory: where to write; None is the next free `runs/<name>-<number>`.
        callbacks: more Keras callbacks; they see the `val_*` metrics.
        console: a `rich.console.Console` for the progress display; None is standard output.
        dataset: the recipe's data, if it has been loaded already.
        overwrite: replace the run in `directory`, if there is one.
        progress: whether to show a progress display.
        save_every: how often to save the state of the run, as in `callbacks.ResumableTraining`; None for never.

    Returns:
        The `Result`; its `status` is "completed", "interrupted", or "failed" if the loss became infinite or NaN.

    Raises:
        RecipeError, keras_trainkit.data.DataError: what is wrong, in one line; nothing has been written then.
    """
    run_directory.choose(recipe.name, directory, overwrite)

    def place(job: Job) -> Path:
        path = run_directory.create(recipe.name, directory, overwrite)
        facts = {"recipe": recipe.to_dict(), "resolved": job.describe(), "save_every": save_every}
        run_directory.write_json(path / run_directory.RECIPE, facts)
        return path

    return _carry_out(recipe, place, [*callbacks], console, dataset, progress, save_every)


def resume(
    directory: str | Path,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    console: Console | None = None,
    *,
    dataset: Dataset | None = None,
    progress: bool = True,
) -> Result:
    """Goes on with a run that was killed or interrupted, from its last saved state to the end of its recipe.

    It ends as the uninterrupted run would have: with the same weights, metrics and best model. A run that has ended
    already is only measured once more.

    Args:
        directory: that of the run.
        callbacks: those that `run` was given.
        console: as for `run`.
        dataset: the recipe's data, if it has been loaded already.
        progress: as for `run`.

    Returns:
        The `Result`, as `run` does; its times are those of this process.

    Raises:
        RecipeError, keras_trainkit.data.DataError: it is no directory of a run, or the run saved no states.
    """
    path = Path(directory)
    facts = run_directory.read_recipe(path)
    save_every = facts.get("save_every")
    if save_every is None:
        raise RecipeError(f"the run {path} saved no states, so it cannot be resumed")
    recipe = Recipe.from_dict(facts["recipe"])
    return _carry_out(recipe, lambda job: path, [*callbacks], console, dataset, progress, save_every)


def _carry_out(
    recipe: Recipe,
    place: Callable[[Job], Path],
    callbacks: list[keras.callbacks.Callback],
    console: Console | None,
    dataset: Dataset | None,
    progress: bool,
    save_every: int | str | None,
) -> Result:
    began, started = time.perf_counter(), environment.now()
    with dtype_policy(recipe.precision):
        job = prepare(recipe, dataset)
        path = place(job)
        result = Result(
            status="failed",
            name=recipe.name,
            task=job.dataset.task,
            run_directory=str(path),
            epochs=recipe.epochs,
            parameters=job.trained.count_params(),
            train_examples=len(job.dataset.train[0]),
            test_examples=len(job.dataset.test[0]),
        )
        around = {
            "versions": environment.versions(),
            "machine": environment.machine(),
            "devices": environment.devices(),
            "command": sys.argv,
            "started": started,
            "ended": None,
        }
        run_directory.write_json(path / run_directory.ENVIRONMENT, around)
        console = console or Console()
        if progress:
            console.print(job.headline(), soft_wrap=True, markup=False)
        try:
            with Interruption() as interruption, _saving(path, save_every) as saving:
                shown = Progress(console=console) if progress else None
                _train(job, path, result, [*callbacks, *saving], interruption, shown)
        except (KeyboardInterrupt, SystemExit):
            result.status = "interrupted"
            raise
        except BaseException as error:
            result.status, result.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())
            raise
        finally:
            result.seconds = time.perf_counter() - began
            run_directory.write_json(path / run_directory.RESULT, result.to_dict())
            run_directory.write_json(path / run_directory.ENVIRONMENT, {**around, "ended": environment.now()})
    reporting.report(path)
    return result


def _train(
    job: Job,
    path: Path,
    result: Result,
    callbacks: list[keras.callbacks.Callback],
    interruption: Interruption,
    progress: Progress | None,
) -> None:
    """Trains and tests; what comes of it goes into `result` as soon as it is known."""
    recipe, evaluator = job.recipe, Evaluator(job.twin, job.dataset)
    by_accuracy = job.dataset.task == "classification"
    stopwatch, diverged = Stopwatch(recipe.batch_size), StopIfDiverged()
    metric = "val_accuracy" if by_accuracy else "val_loss"
    best = KeepBest(job.twin, job.complete, path / run_directory.MODEL, metric, by_accuracy)
    shown: list[keras.callbacks.Callback] = [
        TrainingMonitor(path, recipe=recipe.to_dict()),
        *([progress] if progress is not None else []),
    ]
    try:
        job.trained.fit(
            job.batches(),
            epochs=recipe.epochs,
            steps_per_epoch=job.steps_per_epoch,
            callbacks=[
                stopwatch,
                StopWhenRequested(interruption),
                *evaluation_weights(job),
                Validation(job.twin, evaluator),
                best,
                diverged,
                *callbacks,
                *shown,
            ],
            shuffle=False,
            verbose=0,
        )
        result.status = "completed"
    except KeyboardInterrupt:
        result.status = "interrupted"
    finally:
        # After an exception Keras does not end its callbacks: files would stay open and the display alive.
        for callback in shown:
            callback.on_train_end()
        result.epochs_completed, result.best = best.epochs_completed, best.best
        result.updates = stopwatch.steps // recipe.accumulation
        result.train_seconds, result.samples_per_second = stopwatch.seconds, stopwatch.samples_per_second
    if diverged.error is not None:
        result.status, result.error = "failed", diverged.error
    if best.best is not None:
        best.restore()
        result.test = evaluator("test")


def evaluation_weights(job: Job) -> list[keras.callbacks.Callback]:
    """Has a run measure and keep the weights that its optimizer means for use, where they are not the trained ones."""
    optimizer = getattr(job.trained.optimizer, "inner_optimizer", job.trained.optimizer)
    if not optimizer.offers_evaluation():
        return []
    inputs = job.dataset.train[0][:_REFRESHED]
    return [EvaluationWeights(refresh=inputs, refresh_batch_size=job.recipe.batch_size)]


@contextlib.contextmanager
def _saving(path: Path, save_every: int | str | None) -> Iterator[list[keras.callbacks.Callback]]:
    """The callback that saves the state of the run, if it is to be saved."""
    if save_every is None:
        yield []
        return
    callback = ResumableTraining(path / run_directory.STATES, save_every)
    with contextlib.closing(callback):
        yield [callback]

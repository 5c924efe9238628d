"""`tune`: a search over a recipe, in a folder of its own, that ends with a better recipe and its run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import TrialStatus
from rich.console import Console

from keras_trainkit import data, recipes, reporting
from keras_trainkit.core import checks
from keras_trainkit.recipes import Recipe, RecipeError, preparation, run_directory
from keras_trainkit.resuming import occasions
from keras_trainkit.tuning import sampling
from keras_trainkit.tuning.oracle import Oracle
from keras_trainkit.tuning.training_models import RecipeModel
from keras_trainkit.tuning.training_space import TrainingSpace
from keras_trainkit.tuning.tuner import Tuner

PARENT, SETTINGS, BEST, BEST_RUN, LOG = "searches", "search.json", "best.json", "best", "workers.log"
SAMPLERS = ("auto", "random", "grid", "tpe", "gp")
OBJECTIVES = {
    "val_loss": "min", "val_accuracy": "max", "val_r2": "max", "val_mae": "min", "val_rmse": "min",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a search but for its recipe and its space; `search.json` holds it.

    Args:
        trials: the budget, at least 1.
        objective: one of `val_loss`, `val_accuracy` (classes), `val_r2`, `val_mae`, `val_rmse` (numbers).
        sampler: `"auto"`, `"random"`, `"grid"`, `"tpe"` or `"gp"`.
        prune: whether trials that fall behind end early.
        seed: of the proposals, at least 0.
        workers: processes that train at the same time; 0 trains in this one.
        time_budget: seconds of all runs of the search; None is no limit.
        save_every: how often the states of running trials are saved, as in `Tuner`; None saves none.

    Raises:
        RecipeError: a value out of its range.
    """

    trials: int = 20
    objective: str = "val_loss"
    sampler: str = "auto"
    prune: bool = True
    seed: int = 0
    workers: int = 0
    time_budget: float | None = None
    save_every: int | str | None = None

    def __post_init__(self) -> None:
        try:
            checks.integer("trials", self.trials, at_least=1)
            checks.one_of("objective", self.objective, OBJECTIVES)
            checks.one_of("sampler", self.sampler, SAMPLERS)
            checks.boolean("prune", self.prune)
            checks.integer("seed", self.seed, at_least=0)
            checks.integer("workers", self.workers, at_least=0)
            if self.time_budget is not None:
                checks.number("time_budget", self.time_budget, above=0)
            if self.save_every is not None:
                occasions.parse(self.save_every)
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error)) from None


@dataclasses.dataclass
class Found:
    """What a search came to, in plain values.

    `failures` are the reasons, each once. `best` and `first` hold `trial`, `score` and `values`; `first` is the recipe
    as it was given, if it was tried. `result` is that of the run with the best recipe, as in `recipes.Result`.
    """

    status: str
    name: str
    directory: str
    objective: str
    trials: dict[str, int]
    seconds: float
    stop_reason: str | None = None
    failures: list[str] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    first: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return dataclasses.asdict(self)


def tune(
    recipe: Recipe,
    space: TrainingSpace | None = None,
    settings: Settings | None = None,
    directory: str | Path | None = None,
    *,
    dataset: data.Dataset | None = None,
    console: Console | None = None,
    progress: bool = True,
    overwrite: bool = False,
    train_best: bool = True,
) -> Found:
    """Searches for a better recipe. The first trial is the recipe itself, as far as it lies in the space.

    The folder holds search.json (recipe, space and settings), search.db with all trials, and at the end report.html,
    best.json, a recipe for `keras-trainkit train --config`, and best/, its run. What trials in processes of their own
    print goes into workers.log. A search that is killed goes on with `resume`.

    Args:
        recipe: what holds where nothing is searched.
        space: what is searched; None is `TrainingSpace.ready(trials)`.
        settings: budget, objective, sampler and so on.
        directory: where to write; None is the next free `searches/<name>-<number>`.
        dataset: the recipe's data, if it has been loaded already.
        console: a `rich.console.Console`; None is standard output.
        progress: whether to show how the search goes.
        overwrite: replace the search in `directory`, if there is one.
        train_best: whether to train with the best recipe in the end. On one machine that is the best trial again, to
            the last bit.

    Returns:
        What was found.

    Raises:
        RecipeError, keras_trainkit.data.DataError: what is wrong, in one line; nothing has been written then.
    """
    settings = settings or Settings()
    space = space or TrainingSpace.ready(settings.trials)
    if not space.searched:
        raise RecipeError("`space` has nothing to search. Received: an empty TrainingSpace")
    dataset = dataset or data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    _check_objective(settings.objective, dataset)
    model = RecipeModel(recipe, space, dataset)
    model.declare_hyperparameters(keras_tuner.HyperParameters())
    with preparation.dtype_policy(recipe.precision):
        preparation.prepare(recipe, dataset)  # what is wrong shows here, before anything is written
    path = _make_folder(recipe.name, directory, overwrite)
    facts = {"recipe": recipe.to_dict(), "space": space.to_dict(), "settings": dataclasses.asdict(settings)}
    run_directory.write_json(path / SETTINGS, facts)
    return _carry_out(model, settings, path, console, progress, train_best)


def resume(
    directory: str | Path,
    *,
    dataset: data.Dataset | None = None,
    console: Console | None = None,
    progress: bool = True,
    train_best: bool = True,
    **changes: Any,
) -> Found:
    """Goes on with a search that was killed or interrupted, or ended: with more `trials`, it makes these.

    Args:
        directory: that of the search.
        dataset, console, progress, train_best: as for `tune`.
        **changes: of `Settings`, such as `trials=40`; a search says what another value means for earlier trials.

    Raises:
        RecipeError, keras_trainkit.data.DataError: it is no directory of a search, or what is wrong, in one line.
    """
    path = Path(directory)
    facts = read_settings(path)
    settings = dataclasses.replace(Settings(**facts["settings"]), **changes)
    recipe, space = Recipe.from_dict(facts["recipe"]), TrainingSpace.from_dict(facts["space"])
    dataset = dataset or data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    _check_objective(settings.objective, dataset)
    run_directory.write_json(path / SETTINGS, facts | {"settings": dataclasses.asdict(settings)})
    return _carry_out(RecipeModel(recipe, space, dataset), settings, path, console, progress, train_best)


def read_settings(path: Path) -> dict[str, Any]:
    """What the search.json of a search says.

    Raises:
        RecipeError: there is no such search.
    """
    try:
        facts = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        return {key: dict(facts[key]) for key in ("recipe", "space", "settings")}
    except (OSError, ValueError, TypeError, KeyError):
        raise RecipeError(f"{path} is not the directory of a search: it has no {SETTINGS} that can be read") from None


def default_workers() -> int:
    """Processes for a search where nothing is said: one for each GPU; without one, one for each core up to 4."""
    from keras_trainkit.distribution import describe_devices

    gpus = sum(device["type"] == "GPU" for device in describe_devices())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return gpus or max(1, min(cores, 4))


def _check_objective(objective: str, dataset: data.Dataset) -> None:
    known = ("val_loss", "val_accuracy") if dataset.task == "classification" else ("val_loss", "val_r2", "val_mae",
                                                                                   "val_rmse")  # fmt: skip
    if objective not in known:
        raise RecipeError(
            f"`objective` must be one of {', '.join(known)} for a {dataset.task}. Received: objective={objective!r}"
        )


def _carry_out(
    model: RecipeModel, settings: Settings, path: Path, console: Console | None, progress: bool, train_best: bool
) -> Found:
    console, began = console or Console(), time.perf_counter()
    objective = keras_tuner.Objective(settings.objective, OBJECTIVES[settings.objective])
    plan = _plan(model, settings)
    for reason in plan.reasons if progress else ():
        console.print(f"Search: {reason}", soft_wrap=True, markup=False)
    oracle = Oracle(
        objective, settings.trials, seed=settings.seed, sampler=plan.sampler, grid=plan.grid, pruner=plan.pruner,
        max_epochs=model.recipe.epochs, time_budget=settings.time_budget,
    )  # fmt: skip
    oracle.verbose = int(progress)
    with contextlib.nullcontext() if progress else contextlib.redirect_stdout(io.StringIO()):
        tuner = Tuner(
            oracle, model, workers=settings.workers, directory=str(path.parent or "."), project_name=path.name,
            progress=console, save_every=settings.save_every, output=path / LOG,
        )  # fmt: skip
    if not oracle.trials:
        tuner.enqueue_values(model.space.start_point(model.recipe, oracle.get_space()))
    found = Found("interrupted", model.recipe.name, str(path), settings.objective, {}, 0.0)
    try:
        tuner.search(**({} if progress else {"verbose": 0}))
        found.status = "completed"
    except KeyboardInterrupt:
        console.print("Search: interrupted; what was tried is kept", soft_wrap=True, markup=False)
    _sum_up(found, tuner, model)
    reporting.report_search(path)
    if found.recipe is None:
        found.status = "failed" if found.status == "completed" else found.status
    else:
        run_directory.write_json(path / BEST, found.recipe)
        if found.status == "completed" and train_best:
            run = recipes.run(
                Recipe.from_dict(found.recipe), path / BEST_RUN, console=console, dataset=model.dataset,
                overwrite=True, progress=progress,
            )  # fmt: skip
            found.result = run.to_dict()
    found.seconds = time.perf_counter() - began
    return found


def _plan(model: RecipeModel, settings: Settings) -> sampling.Plan:
    """What proposes and what prunes.

    Learning rates of recipes fall to the end: what is best after a tenth of the epochs says little about which is best
    in the end, and high rates look worst. So no trial ends before a third of them.
    """
    hp, epochs = keras_tuner.HyperParameters(), model.recipe.epochs
    model.declare_hyperparameters(hp)
    chosen = sampling.choose(hp.space, max_trials=settings.trials, max_epochs=None)
    if settings.sampler != "auto":
        grid = settings.sampler == "grid"
        chosen = sampling.Plan("random" if grid else settings.sampler, None, (settings.sampler,), grid)
    why = chosen.reasons[:1]
    if not settings.prune or chosen.grid or epochs < 6:
        return dataclasses.replace(chosen, reasons=(*why, "every trial trains to its end"))
    first = epochs // 3
    return sampling.Plan(
        chosen.sampler,
        sampling.halving(epochs, first),
        (*why, f"successive halving from epoch {first} on, by factor 2"),
    )


def _sum_up(found: Found, tuner: Tuner, model: RecipeModel) -> None:
    oracle = tuner.oracle
    found.stop_reason = oracle.stop_reason
    trials = [oracle.trials[trial_id] for trial_id in oracle.start_order]
    ended = [trial for trial in trials if trial.status in (TrialStatus.COMPLETED, TrialStatus.FAILED)]
    failed = [trial for trial in ended if trial.status == TrialStatus.FAILED]
    pruned = [trial for trial in ended if trial.trial_id in oracle.ended_early]
    reasons = {trial.message.splitlines()[0] for trial in failed if trial.message}
    found.failures = sorted(reasons)
    found.trials = {
        "completed": len(ended) - len(failed) - len(pruned),
        "pruned": len(pruned),
        "failed": len(failed),
    }
    if ended and trials[0] in ended and trials[0] not in failed:
        found.first = _described(trials[0])
    best = [trial for trial in oracle.get_best_trials(1) if trial.status == TrialStatus.COMPLETED]
    if best:
        found.best = _described(best[0])
        found.recipe = model.recipe_of(best[0].hyperparameters).to_dict()


def _described(trial: Any) -> dict[str, Any]:
    return {"trial": trial.trial_id, "score": trial.score, "values": dict(trial.hyperparameters.values)}


def _make_folder(name: str, requested: str | Path | None, overwrite: bool) -> Path:
    path = run_directory.next_free(name, PARENT) if requested is None else Path(requested)
    if path.exists():
        if not overwrite:
            raise RecipeError(
                f"the search directory {path} exists; go on with it by --resume, choose another, or give --overwrite"
            )
        if any(path.iterdir()) and not (path / SETTINGS).exists():
            raise RecipeError(f"{path} holds something else than a search, so it is not overwritten")
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise RecipeError(f"the search directory {path} cannot be made: {error.strerror}") from None
    return path

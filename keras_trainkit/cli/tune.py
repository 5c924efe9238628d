"""`keras-trainkit tune`: searches for a better recipe, and trains with it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_trainkit.cli import train
from keras_trainkit.cli.errors import COMPLETED, FAILED, INTERRUPTED, BadInput
from keras_trainkit.cli.quiet import import_tensorflow
from keras_trainkit.recipes import Recipe, RecipeError, run_directory
from keras_trainkit.recipes.recipe import read_file

if TYPE_CHECKING:
    from keras_trainkit.data import Dataset
    from keras_trainkit.tuning.recipe_search import Found

OBJECTIVES = ("val_loss", "val_accuracy", "val_r2", "val_mae", "val_rmse")
SAMPLERS = ("auto", "random", "grid", "tpe", "gp")
EXIT_CODES = {"completed": COMPLETED, "failed": FAILED, "interrupted": INTERRUPTED}
DESCRIPTION = """\
Searches for a recipe that trains better, and trains with it. The first trial is the recipe as it is given. The search
directory holds all trials (search.db), a page about them (report.html), the best recipe (best.json, for 'keras-trainkit
train --config') and its run (best/). Without options: 20 trials over learning rate, weight decay and batch size on scikit-learn's digits."""
EPILOG = """\
examples:
  keras-trainkit tune
  keras-trainkit tune --trials 40 --time-budget 10min
  keras-trainkit tune --search learning_rate --search optimizer=adamw,lion --search dropout=0:0.5
  keras-trainkit tune --data houses.csv.gz --target price --space space.json --workers 4
  keras-trainkit tune --resume searches/digits-1 --trials 40

--search KEY takes the kit's own range for a key of the recipe, KEY=LOW:HIGH a range, KEY=A,B,C a choice. Without it the
number of trials decides what is searched. Ctrl-C ends the search; what was tried is kept, and --resume goes on."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="search for a better recipe",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to search")
    what.add_argument("--search", metavar="KEY[=VALUES]", action="append", default=[], help="a key; may be repeated")
    what.add_argument("--space", metavar="FILE", help="the space in JSON or YAML: keys with lists, or low and high")
    what.add_argument("--objective", choices=OBJECTIVES, help="what decides (default val_loss)")
    how = parser.add_argument_group("how to search")
    how.add_argument("--trials", metavar="N", type=int, help="the budget in trials (default 20)")
    how.add_argument("--time-budget", metavar="SPAN", help="the budget in time, such as 90s, 10min or 2h")
    how.add_argument("--workers", metavar="N", type=int, help="trials that train at the same time, each in a process; "
                     "0 trains in this one (default: one for each GPU, or for each core up to 4)")  # fmt: skip
    how.add_argument("--sampler", choices=SAMPLERS, help="what proposes (default auto: by the space)")
    how.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    how.add_argument(
        "--save-every",
        metavar="SPAN",
        type=train.span_or_none,
        help="how often to save the states of running trials, such as 1ep, so that what is killed goes on from there "
        "(default: a trial that was killed begins anew)",
    )
    how.add_argument("--search-seed", metavar="N", type=int, help="of the proposals (default 0)")
    train.add_recipe_options(parser)
    where = parser.add_argument_group("where to, and what to show")
    where.add_argument("--search-dir", metavar="DIR", help="the search directory (default: searches/NAME-NUMBER)")
    where.add_argument("--resume", metavar="DIR", help="go on with the search in this directory")
    where.add_argument("--overwrite", action="store_true", help="replace the search that is in the search directory")
    where.add_argument("--skip-best-run", action="store_true", help="do not train with the best recipe in the end")
    where.add_argument("--json", action="store_true", help="print what was found as JSON, and nothing else")
    where.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Searches, and prints what was found."""
    try:
        with stdout_kept_clean() if arguments.json else contextlib.nullcontext():
            found = resumed(arguments) if arguments.resume else begun(arguments)
    except (RecipeError, ValueError) as error:
        raise BadInput(" ".join(str(error).split())) from None
    if arguments.json:
        print(json.dumps(run_directory.finite(found.to_dict()), indent=2))
    else:
        show(found, arguments)
    return EXIT_CODES[found.status]


def begun(arguments: argparse.Namespace) -> Found:
    """A new search."""
    recipe = train.recipe_of(arguments)
    keys = space_of(arguments)
    dataset = loaded(recipe, arguments)
    import_tuning()
    from keras_trainkit.tuning import recipe_search
    from keras_trainkit.tuning.training_space import TrainingSpace

    given = settings_of(arguments)
    given.setdefault("workers", recipe_search.default_workers())
    return recipe_search.tune(
        recipe,
        None if keys is None else TrainingSpace.from_dict(keys),
        recipe_search.Settings(**given),
        arguments.search_dir,
        dataset=dataset,
        console=train.make_console(to_stderr=arguments.json),
        progress=not arguments.quiet,
        overwrite=arguments.overwrite,
        train_best=not arguments.skip_best_run,
    )


def resumed(arguments: argparse.Namespace) -> Found:
    """A search that goes on."""
    import dataclasses

    fields = [field.name for field in dataclasses.fields(Recipe)]
    for name in (*fields, "config", "space", "search", "search_dir", "overwrite"):
        if getattr(arguments, name, None):
            raise BadInput(
                f"--{name.replace('_', '-')} does not go with --resume: a search goes on with its own recipe and space"
            )
    recipe = Recipe.from_dict(read_search(Path(arguments.resume))["recipe"])
    dataset = loaded(recipe, arguments)
    import_tuning()
    from keras_trainkit.tuning import recipe_search

    return recipe_search.resume(
        arguments.resume,
        dataset=dataset,
        console=train.make_console(to_stderr=arguments.json),
        progress=not arguments.quiet,
        train_best=not arguments.skip_best_run,
        **settings_of(arguments),
    )


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Sends what is printed to standard error, by processes of trials too."""
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


def import_tuning() -> None:
    """Loads what searches need.

    Raises:
        BadInput: the extra is not installed.
    """
    try:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
    except ImportError:
        raise BadInput("searching needs Optuna: pip install 'keras-trainkit[tuning]'") from None
    import_tensorflow()


def read_search(path: Path) -> dict[str, Any]:
    """The search.json of a search, which can be read without what searches need."""
    try:
        return dict(json.loads((path / "search.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise BadInput(f"{path} is not the directory of a search: it has no search.json that can be read") from None


def loaded(recipe: Recipe, arguments: argparse.Namespace) -> Dataset:
    """The recipe's data, before TensorFlow is loaded."""
    from keras_trainkit import data

    try:
        dataset = data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    except data.DataError as error:
        raise BadInput(str(error)) from None
    if not arguments.quiet:
        console = train.make_console(to_stderr=arguments.json)
        console.print(train.data_headline(dataset), soft_wrap=True, markup=False)
    return dataset


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the search itself."""
    names = {"trials": "trials", "objective": "objective", "sampler": "sampler", "workers": "workers",
             "search_seed": "seed", "save_every": "save_every"}  # fmt: skip
    given = {to: getattr(arguments, name) for name, to in names.items() if getattr(arguments, name) is not None}
    if arguments.no_pruning:
        given["prune"] = False
    if arguments.time_budget is not None:
        given["time_budget"] = seconds_of(arguments.time_budget)
    return given


def seconds_of(text: str) -> float:
    """The seconds of a span such as 90s, 10min or 2h.

    >>> seconds_of("10min")
    600.0
    """
    from keras_trainkit.resuming import occasions

    try:
        seconds = occasions.parse(text).seconds
    except ValueError:
        seconds = None
    if seconds is None:
        raise BadInput(f"--time-budget must be a time such as 90s, 10min or 2h. Received: {text}")
    return seconds


def space_of(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The space of a file and of `--search`; None leaves it to the number of trials."""
    found = read_file(arguments.space) if arguments.space else {}
    for text in arguments.search:
        key, value = parsed(text)
        found[key] = value
    return found or None


def parsed(text: str) -> tuple[str, Any]:
    """A key and its values, of `KEY`, `KEY=LOW:HIGH` or `KEY=A,B,C`.

    >>> parsed("dropout=0:0.5"), parsed("optimizer=adamw,lion"), parsed("learning-rate")
    (('dropout', (0, 0.5)), ('optimizer', ['adamw', 'lion']), ('learning_rate', 'auto'))
    """
    key, equals, values = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals:
        return key, "auto"
    low, colon, high = values.partition(":")
    if colon:
        ends = (number(low), number(high))
        if any(isinstance(end, str) for end in ends):
            raise BadInput(f"--search {key}=LOW:HIGH needs two numbers. Received: {values}")
        return key, ends
    return key, [number(value) for value in values.split(",")]


def number(text: str) -> int | float | str:
    """A number if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def show(found: Found, arguments: argparse.Namespace) -> None:
    """Prints what was found, as a table, and where it is."""
    from rich.table import Table

    console = train.make_console()
    counts = ", ".join(f"{count} {status}" for status, count in found.trials.items() if count)
    console.print(f"{found.name}: {counts or 'no trial ended'}, {found.seconds:.0f} s", soft_wrap=True, markup=False)
    table = Table(show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows(found):
        table.add_row(name, value)
    console.print(table)
    directory = Path(found.directory)
    lines = [f"Report: {directory / run_directory.REPORT}", f"All trials: {directory / 'search.db'}"]
    if found.best is not None:
        lines.append(f"Best recipe: {directory / 'best.json'}")
    if found.status == "interrupted":
        lines.append(f"Go on: keras-trainkit tune --resume {directory}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def rows(found: Found) -> Sequence[tuple[str, str]]:
    """The table of what was found: names and values, those that there are."""
    best, first, test = found.best or {}, found.first or {}, (found.result or {}).get("test") or {}
    values = best.get("values", {})
    shown = [
        ("Ended by", found.stop_reason or ""),
        *(("Failure", reason) for reason in found.failures[:5]),
        (f"Best {found.objective}", f"{best['score']:.5g} (trial {best['trial']})" if best else ""),
        ("The recipe as given", f"{first['score']:.5g}" if first else ""),
        *((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in values.items()),
        ("Test accuracy", f"{test['accuracy']:.4f}" if "accuracy" in test else ""),
        ("Test loss", f"{test['loss']:.5g}" if "loss" in test else ""),
        ("Test R2", f"{test['r2']:.4f}" if "r2" in test else ""),
    ]
    return [(name, value) for name, value in shown if value]

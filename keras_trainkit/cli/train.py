"""`keras-trainkit train`: trains a model by options or a recipe file, and shows what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_trainkit.cli.errors import COMPLETED, FAILED, INTERRUPTED, BadInput
from keras_trainkit.cli.quiet import import_tensorflow
from keras_trainkit.recipes import Recipe, RecipeError, Result, run_directory
from keras_trainkit.recipes.rates import SCHEDULES
from keras_trainkit.recipes.recipe import AUGMENTATIONS, PRECISIONS, read_file

if TYPE_CHECKING:
    from rich.console import Console

    from keras_trainkit.data import Dataset

EXIT_CODES = {"completed": COMPLETED, "failed": FAILED, "interrupted": INTERRUPTED}
DESCRIPTION = """\
Trains a model and leaves a run directory: the recipe, metrics.jsonl, TensorBoard events, the best model
(model.keras, from raw values to predictions) and report.html. Without options: a small convolutional net on
scikit-learn's digits."""
EPILOG = """\
examples:
  keras-trainkit train
  keras-trainkit train --optimizer radam --learning-rate 0.003 --replicas 2
  keras-trainkit train --data houses.csv.gz --target price --epochs 30
  keras-trainkit train --data images.npz --model nets:build --config recipe.json

Options override the keys of the recipe file. Ctrl-C stops after the step at hand; what was reached is kept, and
'keras-trainkit resume RUN' goes on."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a model on the digits, or on your own data",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_options(parser)
    where = parser.add_argument_group("where to, and what to show")
    where.add_argument("--run-dir", metavar="DIR", help="the run directory (default: runs/NAME-NUMBER)")
    where.add_argument(
        "--save-every",
        metavar="SPAN",
        default="10min",
        type=span_or_none,
        help="how often to save the state that 'keras-trainkit resume' goes on from, such as 10min, 1ep or a number "
        "of steps, or 'none' (default 10min)",
    )
    where.add_argument("--overwrite", action="store_true", help="replace the run that is in the run directory")
    where.add_argument(
        "--json", action="store_true", help="print the result as JSON, and nothing else, to standard output"
    )
    where.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(function=run, parser=parser)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each key of a recipe, and `--config`."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}

    def option(group: Any, name: str, text: str, metavar: str | None = None, **settings: Any) -> None:
        value = defaults[name]
        shown = "" if value is None else f" (default {value})"
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, dest=name, metavar=metavar, help=text + shown, default=argparse.SUPPRESS, **settings)

    what = parser.add_argument_group("what to train")
    option(what, "data", "an .npz in Keras's layout, or a CSV file, gzipped or not (default: the digits)", "FILE")
    option(what, "target", "the column of the CSV file to predict", "COLUMN")
    option(what, "model", "your function, called with (input_shape, outputs), returns a keras.Model", "MODULE:FUNCTION")
    how = parser.add_argument_group("how to train")
    option(how, "optimizer", "its name, see 'keras-trainkit list optimizers'", "NAME")
    option(
        how,
        "learning_rate",
        "the highest learning rate (default: the optimizer's own, 0.002 for adamw)",
        "RATE",
        type=float,
    )
    option(
        how,
        "schedule",
        "what the rate does after the warm-up (default: cosine, or constant where the optimizer asks for it)",
        choices=list(SCHEDULES),
    )
    option(
        how,
        "warmup",
        "rise of the rate: a share of the run below 1, a number of updates from 1 on",
        "LENGTH",
        type=float,
    )
    option(how, "weight_decay", "decoupled weight decay, not for biases and normalizations", "RATE", type=float)
    option(how, "global_clipnorm", "largest norm of the whole gradient, or 'none'", "NORM", type=_number_or_none)
    option(how, "precision", "what the layers compute in", choices=PRECISIONS)
    option(how, "replicas", "devices that share each batch; logical CPUs where there is no GPU", "N", type=int)
    option(how, "batch_size", "examples of a step, over all replicas", "N", type=int)
    option(how, "accumulation", "steps whose gradients make one update", "N", type=int)
    option(how, "epochs", "passes over the training data", "N", type=int)
    option(how, "seed", "of the split, the order, the weights and dropout", "N", type=int)
    against = parser.add_argument_group("against overfitting")
    option(against, "dropout", "the rate of all layers of dropout (default: each its own)", "RATE", type=float)
    option(against, "initializer", "of kernels that the model leaves to Keras's default", "NAME")
    option(against, "regularizer", "a penalty on kernels, such as l2; its strength by --config", "NAME")
    option(against, "augmentation", "mixes examples and their targets", choices=AUGMENTATIONS)
    option(against, "label_smoothing", "how far targets of classes move towards all alike", "SHARE", type=float)
    parser.add_argument(
        "--config", metavar="FILE", help="a recipe of these options in JSON or YAML, or a run's recipe.json"
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains, and prints the result."""
    try:
        recipe = recipe_of(arguments)
        run_directory.choose(recipe.name, arguments.run_dir, arguments.overwrite)
        result = train(recipe, arguments)
    except RecipeError as error:
        raise BadInput(str(error)) from None
    if arguments.json:
        print(json.dumps(run_directory.finite(result.to_dict()), indent=2))
    else:
        show(result)
    return EXIT_CODES[result.status]


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe of the options, over that of the file if there is one."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(arguments, name) for name in names if name in arguments}
    from_file = read_file(arguments.config) if arguments.config else {}
    return Recipe.from_dict({**from_file, **given})


def train(recipe: Recipe, arguments: argparse.Namespace) -> Result:
    """Reads the data, loads TensorFlow, and carries out the recipe."""
    from keras_trainkit import data, recipes

    try:
        # Before TensorFlow is loaded, so that what is wrong with the data shows at once.
        dataset = data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    except data.DataError as error:
        raise BadInput(str(error)) from None
    console = make_console(to_stderr=arguments.json)
    if not arguments.quiet:
        console.print(data_headline(dataset), soft_wrap=True, markup=False)
    import_tensorflow()
    return recipes.run(
        recipe,
        arguments.run_dir,
        console=console,
        dataset=dataset,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
        save_every=arguments.save_every,
    )


def data_headline(dataset: Dataset) -> str:
    """What is trained on, for people."""
    sizes = ", ".join(f"{len(getattr(dataset, part)[1]):,} {part}" for part in ("train", "validation", "test"))
    shape = "x".join(str(length) for length in dataset.input_shape)
    task = "regression" if dataset.classes is None else f"{dataset.outputs} classes"
    return f"{dataset.name}: {sizes} examples of {shape}, {task}"


def make_console(to_stderr: bool = False) -> Console:
    """A console that writes no control codes into pipes, and there does not break lines."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, force_terminal=False, width=200)


def show(result: Result) -> None:
    """Prints how the run ended, as a table, and where its files are."""
    from rich.table import Table

    console, directory = make_console(), Path(result.run_directory)
    console.print(headline(result), soft_wrap=True, markup=False)
    table = Table(show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows(result):
        table.add_row(name, value)
    console.print(table)
    events = shlex.quote(str(directory / run_directory.EVENTS))
    for line in (f"Report: {directory / run_directory.REPORT}", f"TensorBoard: tensorboard --logdir {events}"):
        console.print(line, soft_wrap=True, markup=False)
    if result.status == "failed":
        print(f"keras-trainkit: {result.error}", file=sys.stderr)


def headline(result: Result) -> str:
    """The end of the run in a few words."""
    if result.status == "completed":
        return f"{result.name}: {result.epochs} epochs done"
    if result.status == "failed":
        return f"{result.name}: failed after {result.epochs_completed} of {result.epochs} epochs"
    kept = "the best model so far is kept" if result.best else "no epoch ended, so there is no model"
    return (
        f"{result.name}: interrupted after {result.epochs_completed} of {result.epochs} epochs "
        f"({result.updates} updates); {kept}"
    )


def rows(result: Result) -> list[tuple[str, str]]:
    """The table of the result: names and values, those that there are."""
    test, best = result.test or {}, result.best or {}
    found = [
        ("Test accuracy", f"{test['accuracy']:.4f}" if "accuracy" in test else ""),
        ("Test R2", f"{test['r2']:.4f}" if "r2" in test else ""),
        ("Test mean absolute error", f"{test['mae']:,.6g}" if "mae" in test else ""),
        ("Best epoch", f"{best['epoch']} ({best['metric']} {best['value']:.4f})" if best else ""),
        ("Time", f"{result.seconds:.1f} s"),
        ("Samples per second", f"{result.samples_per_second:,.0f}" if result.samples_per_second else ""),
        ("Files", result.run_directory),
    ]
    return [(name, value) for name, value in found if value]


def span_or_none(text: str) -> int | str | None:
    """A span as `ResumableTraining` takes it; "none" is None."""
    from keras_trainkit.resuming import occasions

    if text.lower() == "none":
        return None
    span = int(text) if text.isdigit() else text
    try:
        occasions.parse(span)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return span


def _number_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)

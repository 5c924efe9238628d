"""`keras-trainkit lr-find`: suggests a learning rate for the run that `train` would make of the same options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_trainkit.cli import train
from keras_trainkit.cli.errors import COMPLETED, FAILED, BadInput
from keras_trainkit.cli.quiet import import_tensorflow
from keras_trainkit.core import checks
from keras_trainkit.recipes import Recipe, RecipeError, run_directory

if TYPE_CHECKING:
    from keras_trainkit.finders import LearningRates

DESCRIPTION = """\
Suggests a learning rate for the run that 'train' would make of the same options or recipe, by range tests: training
with rates that rise from update to update, until the loss diverges. Nothing is trained for good."""
EPILOG = """\
examples:
  keras-trainkit lr-find
  keras-trainkit lr-find --optimizer radam --output rates.png
  keras-trainkit lr-find --data houses.csv.gz --target price --batch-size 64 --json

The suggestion is the highest rate of a schedule: give it to 'train' as --learning-rate."""
RULES = ("combined", "minimum/10", "valley", "steepest", "slide")
ENDINGS = (".png", ".svg", ".pdf")


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "lr-find",
        help="suggest a learning rate, by a range test",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_recipe_options(parser)
    test = parser.add_argument_group("which rates to try, and what to show")
    test.add_argument("--minimum", type=float, default=1e-7, metavar="RATE", help="the first rate (default 1e-7)")
    test.add_argument("--maximum", type=float, default=10.0, metavar="RATE", help="the last rate (default 10)")
    test.add_argument("--steps", type=int, default=100, metavar="N", help="updates of a sweep (default 100)")
    test.add_argument("--sweeps", type=int, default=3, metavar="N", help="how often to sweep (default 3)")
    test.add_argument(
        "--rule", choices=RULES, default=RULES[0], help="which rule the suggestion goes by (default combined)"
    )
    test.add_argument("--output", metavar="FILE", help="draw the curves into a .png, .svg or .pdf file")
    test.add_argument("--json", action="store_true", help="print all as JSON, and nothing else, to standard output")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Sweeps, and prints what each rule suggests."""
    try:
        minimum = checks.number("--minimum", arguments.minimum, above=0)
        maximum = checks.number("--maximum", arguments.maximum, above=minimum)
        steps = checks.integer("--steps", arguments.steps, at_least=10)
        sweeps = checks.integer("--sweeps", arguments.sweeps, at_least=1)
    except ValueError as error:
        raise BadInput(str(error)) from None
    output = None if arguments.output is None else _picture(Path(arguments.output))
    try:
        recipe = train.recipe_of(arguments)
        found = _found(recipe, arguments, minimum=minimum, maximum=maximum, steps=steps, seeds=sweeps)
    except RecipeError as error:
        raise BadInput(str(error)) from None
    if output is not None:
        found.plot(output)
    if arguments.json:
        print(json.dumps(run_directory.finite(found.to_dict()), indent=2))
    else:
        _show(found, output)
    return COMPLETED if found.suggestion is not None else FAILED


def _found(recipe: Recipe, arguments: argparse.Namespace, **options: Any) -> LearningRates:
    from keras_trainkit import data

    try:
        dataset = data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    except data.DataError as error:
        raise BadInput(str(error)) from None
    if not arguments.json:
        train.make_console().print(train.data_headline(dataset), soft_wrap=True, markup=False)
    import_tensorflow()
    from keras_trainkit import recipes

    return recipes.find_learning_rate(recipe, dataset, rule=arguments.rule, **options)


def _show(found: LearningRates, output: Path | None) -> None:
    console = train.make_console()
    console.print(found.table())
    console.print(found.ending(), soft_wrap=True, markup=False)
    if found.suggestion is None:
        console.print("The loss fell nowhere: there is no rate to suggest.", soft_wrap=True, markup=False)
    else:
        console.print(f"Suggestion: --learning-rate {found.suggestion:.3g}", soft_wrap=True, markup=False)
    if output is not None:
        console.print(f"Picture: {output}", soft_wrap=True, markup=False)


def _picture(path: Path) -> Path:
    if path.suffix not in ENDINGS:
        raise BadInput(f"--output must end in {', '.join(ENDINGS)}. Received: {path}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"--output: there is no folder {path.parent}")
    return path

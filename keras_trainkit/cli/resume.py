"""`keras-trainkit resume`: goes on with a run that was killed or interrupted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from keras_trainkit.cli import train
from keras_trainkit.cli.errors import BadInput
from keras_trainkit.cli.quiet import import_tensorflow
from keras_trainkit.recipes import Recipe, RecipeError, Result, run_directory

DESCRIPTION = """\
Goes on with a run from its last saved state, to the end of its recipe. It ends with the weights and metrics of the
uninterrupted run, bit for bit on a CPU."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("resume", help="go on with a run that was killed", description=DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the run directory, such as runs/digits-1")
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, and nothing else, to standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Goes on, and prints the result."""
    try:
        result = resume(Path(arguments.run), arguments)
    except RecipeError as error:
        raise BadInput(str(error)) from None
    if arguments.json:
        print(json.dumps(run_directory.finite(result.to_dict()), indent=2))
    else:
        train.show(result)
    return train.EXIT_CODES[result.status]


def resume(path: Path, arguments: argparse.Namespace) -> Result:
    """Reads the recipe and the data, loads TensorFlow, and goes on."""
    from keras_trainkit import data, recipes

    recipe = Recipe.from_dict(run_directory.read_recipe(path)["recipe"])
    try:
        dataset = data.load(recipe.data, target=recipe.target, seed=recipe.seed)
    except data.DataError as error:
        raise BadInput(str(error)) from None
    console = train.make_console(to_stderr=arguments.json)
    import_tensorflow()
    return recipes.resume(path, console=console, dataset=dataset, progress=not arguments.quiet)

"""`keras-trainkit plot-schedule`: a picture of learning-rate schedules over a run."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from keras_trainkit.cli.errors import COMPLETED, BadInput
from keras_trainkit.core import checks
from keras_trainkit.recipes import rates

DESCRIPTION = """\
Draws learning-rate schedules over a run, as 'train' would have them: side by side, or together in one frame."""
EPILOG = """\
examples:
  keras-trainkit plot-schedule cosine wsd rex --warmup 0.05
  keras-trainkit plot-schedule onecycle onecycle:annealing=linear,peak_at=0.2 --together
  keras-trainkit plot-schedule wsd:decay_steps=0.3run,shape=linear --steps 100000 --output wsd.png"""
ENDINGS = (".svg", ".png", ".pdf")


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "plot-schedule",
        help="draw learning-rate schedules",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "schedules",
        nargs="+",
        metavar="NAME[:ARGUMENT=VALUE,...]",
        help=f"one of {', '.join(rates.SCHEDULES)}, with arguments of its own after a colon",
    )
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="updates of the run (default 1000)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="epochs of the run (default 10)")
    parser.add_argument(
        "--warmup",
        type=float,
        default=0.1,
        metavar="LENGTH",
        help="a share of the run below 1, a number of updates from 1 on (default 0.1)",
    )
    parser.add_argument("--learning-rate", type=float, default=1.0, metavar="RATE", help="the highest (default 1.0)")
    parser.add_argument("--together", action="store_true", help="draw all in one frame")
    parser.add_argument("--log", action="store_true", help="draw rates on a logarithmic axis")
    parser.add_argument(
        "--output", default="schedules.svg", metavar="FILE", help=".svg, .png or .pdf (default schedules.svg)"
    )
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Draws, and prints where."""
    try:
        steps = checks.integer("--steps", arguments.steps, at_least=1)
        epochs = checks.integer("--epochs", arguments.epochs, at_least=1)
        rate = checks.number("--learning-rate", arguments.learning_rate, above=0)
        warmup = checks.number("--warmup", arguments.warmup, at_least=0)
    except ValueError as error:
        raise BadInput(str(error)) from None
    ramp = round(warmup * steps) if warmup < 1 else int(warmup)
    if ramp >= steps:
        raise BadInput(f"--warmup must be shorter than the run of {steps} updates. Received: {ramp}")
    wanted = {text: parsed(text) for text in arguments.schedules}
    output = Path(arguments.output)
    if output.suffix not in ENDINGS:
        raise BadInput(f"--output must end in {', '.join(ENDINGS)}. Received: {output}")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"--output: there is no folder {output.parent}")
    from keras_trainkit.cli.quiet import import_tensorflow

    import_tensorflow()
    from keras_trainkit import schedules

    made = {}
    for text, (name, given) in wanted.items():
        try:
            made[text] = rates.build(name, rate, steps, ramp, steps / epochs, given)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{text}: {' '.join(str(error).split())}") from None
    schedules.plot(made, steps, epochs=epochs, together=arguments.together, log=arguments.log, file=output)
    print(output)
    return COMPLETED


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of one schedule on the command line.

    >>> parsed("wsd:decay_steps=0.3run,shape=linear,alpha=0.1")
    ('wsd', {'decay_steps': '0.3run', 'shape': 'linear', 'alpha': 0.1})
    """
    given, colon, rest = text.partition(":")
    name = rates.plain_name(given)
    if name not in rates.SCHEDULES:
        hint = checks.did_you_mean(name, rates.SCHEDULES) or f". There are {', '.join(rates.SCHEDULES)}"
        raise BadInput(f"no schedule is called {given!r}{hint}")
    arguments: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise BadInput(f"{text}: {part!r} is no ARGUMENT=VALUE")
        if key == rates.SCHEDULES[name][0]:
            raise BadInput(f"{text}: give `{key}` as --learning-rate")
        arguments[key] = _value(value)
    return name, arguments


def _value(text: str) -> Any:
    """A number, True, False or None as such, anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

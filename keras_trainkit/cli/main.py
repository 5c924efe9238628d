"""Entry point of the command: reads the arguments, calls the command, turns what went wrong into an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from keras_trainkit._version import __version__
from keras_trainkit.cli import (
    autopsy,
    compare,
    doctor,
    launch,
    listing,
    lr_find,
    plot_schedule,
    report,
    resume,
    train,
    tune,
)
from keras_trainkit.cli.errors import BAD_INPUT, COMPLETED, FAILED, INTERRUPTED, BadInput
from keras_trainkit.core import checks

PROGRAM = "keras-trainkit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    try:
        return _run(arguments)
    except BadInput as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`). Python would complain again while it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser()
    given, rest = parser.parse_known_args(arguments)
    if rest:
        getattr(given, "parser", parser).refuse(rest[0])
    if "function" not in given:
        parser.print_help()
        return COMPLETED
    code = given.function(given)
    sys.stdout.flush()
    return code


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog=PROGRAM,
        description="Training parts for Keras 3, and a command that trains with them.",
        epilog=f"'{PROGRAM} COMMAND --help' tells about a command. "
        "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (train, tune, resume, lr_find, report, compare, autopsy, launch, listing, plot_schedule, doctor):
        command.add_to(commands)
    return parser


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with near names for a misspelt option or command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises BadInput instead of printing the usage."""
        raise BadInput(f"{message} (see {self.prog} --help)")

    def refuse(self, argument: str) -> NoReturn:
        """Raises BadInput for an argument that nothing took."""
        options = [option for action in self._actions for option in action.option_strings]
        hint = checks.did_you_mean(argument.partition("=")[0], options)
        self.error(f"unknown argument {argument}{hint}")

"""`keras-trainkit list`: what is in the kit, read from its source text in a moment."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from typing import Any

from keras_trainkit.cli.errors import COMPLETED, BadInput
from keras_trainkit.core import checks, tables
from keras_trainkit.recipes import catalog


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="show the optimizers, schedules, layers ... of the kit",
        description="Shows what the kit offers, with one line about each part.",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="a kind (optimizers), a part of a name (adam), or '*adam*', 'Scale*'",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the whole first paragraphs")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the parts that match."""
    found = catalog.parts(arguments.pattern)
    if not found:
        names = [*catalog.KINDS, *(part.name for part in catalog.parts())]
        raise BadInput(
            f"nothing in the kit matches {arguments.pattern!r}{checks.did_you_mean(arguments.pattern, names)}"
        )
    if arguments.json:
        print(json.dumps([dataclasses.asdict(part) for part in found], indent=2))
    else:
        print(text(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    return COMPLETED


def text(parts: list[catalog.Part], width: int | None) -> str:
    """The parts under a heading for each kind; lines are cut at `width`, or kept whole if it is None.

    Optimizers have a line of columns first, with what they tell about themselves.
    """
    margin = max(len(part.name) for part in parts) + 4
    lines: list[str] = []
    for kind in catalog.KINDS:
        of_kind = [part for part in parts if part.kind == kind]
        if of_kind:
            lines += ["", kind] if lines else [kind]
            lines += [_cut(line, width) for line in _lines(of_kind, margin)]
    return "\n".join(lines)


def _lines(parts: list[catalog.Part], margin: int) -> list[str]:
    told = [(part, part.info) for part in parts if part.info is not None]
    plain = [f"  {part.name}".ljust(margin) + part.summary for part in parts if part.info is None]
    if not told:
        return plain
    rows = [[*tables.optimizer_row(part.name, **info), part.summary] for part, info in told]
    return ["  " + line for line in tables.aligned([[*tables.OPTIMIZER_COLUMNS, ""], *rows])] + plain


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: max(width - 3, 0)].rstrip() + "..."

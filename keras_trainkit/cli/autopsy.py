"""`keras-trainkit autopsy`: which layer went bad first."""

from __future__ import annotations

import argparse
import json
from typing import Any

from keras_trainkit.cli.errors import COMPLETED, BadInput
from keras_trainkit.guards.autopsy import Autopsy, NotADump, autopsy, is_bad

DESCRIPTION = """\
Reads what callbacks.NonFiniteGuard wrote when a NaN or an infinity came, and says where it began: in which samples, in
which weights, in which layer of the forward pass or, where that is clean, of the backward pass."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("autopsy", help="say which layer went bad first", description=DESCRIPTION)
    parser.add_argument("dump", metavar="DIR", help="a dump, or the folder that holds several: the last one is read")
    parser.add_argument("--json", action="store_true", help="print the finding as JSON, and nothing else")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Reads, and prints."""
    try:
        found = autopsy(arguments.dump)
    except NotADump as error:
        raise BadInput(str(error)) from None
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        show(found)
    return COMPLETED


def show(found: Autopsy) -> None:
    """Prints the finding, and a table of the layers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    facts, console = found.facts, Console(soft_wrap=True, highlight=False)
    console.print(f"{found.path}: {facts['kind']} not finite after {facts['iterations']} updates", markup=False)
    console.print(f"Found: {found.sentence()}.", markup=False)
    console.print(f"The weights in the dump are those {facts['weights_are']}.", markup=False)
    if facts.get("replay_failed"):
        console.print(f"The step could not be done once more: {facts['replay_failed']}", markup=False)
    if not facts.get("layers"):
        return
    table = Table(box=box.SIMPLE)
    for name in ("layer", "class", "outputs: rms", "not finite", "gradients: rms", "not finite"):
        table.add_column(name, justify="left" if name in ("layer", "class") else "right")
    for about in facts["layers"]:
        cells = [about["name"], about["class"]]
        for group in ("outputs", "output_gradients"):
            cells += [_rms(about[group]), str(_bad(about[group]) or "")]
        table.add_row(*cells, style="bold red" if about["name"] == found.layer else None)
    console.print(table)


def _rms(described: list[dict[str, Any]]) -> str:
    return ", ".join("-" if about.get("rms") is None else f"{about['rms']:.3g}" for about in described)


def _bad(described: list[dict[str, Any]]) -> int:
    return sum(about["nan"] + about["inf"] for about in described if is_bad(about))

"""`keras-trainkit compare`: several runs side by side, as a table and as a page."""

from __future__ import annotations

import argparse
import json
from typing import Any

from keras_trainkit.cli.errors import COMPLETED, BadInput
from keras_trainkit.cli.report import checked_output

DESCRIPTION = """\
Puts runs side by side: final and best metrics, time, and what their recipes differ in. With --output it also writes one
HTML file with their curves over each other."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("compare", help="put runs side by side", description=DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories, or metrics.jsonl files")
    parser.add_argument("--output", metavar="FILE", help="an HTML file to write")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table, and nothing else")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Compares, and prints the table."""
    from keras_trainkit import reporting

    output = checked_output(arguments.output)
    try:
        comparison = reporting.compare(arguments.runs, output)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"the page cannot be written: {error.strerror} ({error.filename})") from None
    if arguments.json:
        page = None if output is None else str(output)
        print(json.dumps({**comparison.to_dict(), "page": page}, indent=2))
        return COMPLETED
    print(comparison.table())
    if output is not None:
        print(f"Page: {output}")
    return COMPLETED

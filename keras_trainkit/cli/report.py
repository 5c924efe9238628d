"""`keras-trainkit report`: the page of a run, written anew, and what it sums up."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from keras_trainkit.cli.errors import COMPLETED, BadInput

DESCRIPTION = """\
Writes the report of a run: one HTML file with curves, tables, recipe and environment, to be opened offline. It works on
runs that go on, failed or were killed, too."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("report", help="write the report of a run", description=DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the run directory, or a metrics.jsonl")
    parser.add_argument("--output", metavar="FILE", help="the HTML file (default: report.html in the run directory)")
    parser.add_argument("--json", action="store_true", help="print the run's results as JSON, and nothing else")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, and prints where it is, or the results."""
    from keras_trainkit import reporting

    try:
        comparison = reporting.compare([arguments.run])
        path = reporting.report(arguments.run, checked_output(arguments.output))
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"the report cannot be written: {error.strerror} ({error.filename})") from None
    if arguments.json:
        print(json.dumps({**comparison.to_dict()["runs"][0], "report": str(path)}, indent=2))
    else:
        print(path)
    return COMPLETED


def checked_output(text: str | None) -> Path | None:
    """The file that a page goes to.

    Raises:
        BadInput: it is no HTML file, or there is no folder for it.
    """
    if text is None:
        return None
    path = Path(text)
    if path.suffix not in (".html", ".htm"):
        raise BadInput(f"--output must end in .html. Received: {path}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"--output: there is no folder {path.parent}")
    return path

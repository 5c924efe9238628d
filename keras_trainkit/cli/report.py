"""`keras-trainkit report`: the page of a run or of a search, written anew, and what it sums up."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from keras_trainkit.cli.errors import COMPLETED, BadInput

DESCRIPTION = """\
Writes the report of a run or of a search: one HTML file, to be opened offline. That of a run has curves, tables, recipe
and environment; that of a search all trials, the best one, learning curves, and what each hyperparameter does. It works
on what goes on, failed or was killed, too."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("report", help="write the report of a run or of a search", description=DESCRIPTION)
    parser.add_argument(
        "run", metavar="DIRECTORY",
        help="a run directory, or its metrics.jsonl; or the directory of a search, in which search.db is",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="the HTML file (default: report.html in the directory)")
    parser.add_argument(
        "--storage", metavar="URL", help="the database of a search that has one elsewhere; DIRECTORY is its name then"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, and nothing else")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, and prints where it is, or the results."""
    from keras_trainkit.reporting.reading import RUN_FILES
    from keras_trainkit.reporting.search_reading import DATABASE, is_search

    output = checked_output(arguments.output)
    given = Path(arguments.run)
    try:
        if arguments.storage is not None or is_search(given):
            path, results = _search(arguments, output)
        elif given.is_dir() and not any((given / name).exists() for name in RUN_FILES):
            raise BadInput(
                f"neither a run nor a search in {given}: it holds none of {', '.join(RUN_FILES)}, {DATABASE}"
            )
        else:
            path, results = _run(arguments, output)
    except (FileNotFoundError, ImportError) as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"the report cannot be written: {error.strerror} ({error.filename})") from None
    print(json.dumps({**results, "report": str(path)}, indent=2) if arguments.json else path)
    return COMPLETED


def _run(arguments: argparse.Namespace, output: Path | None) -> tuple[Path, dict[str, Any]]:
    from keras_trainkit import reporting

    comparison = reporting.compare([arguments.run])
    return reporting.report(arguments.run, output), comparison.to_dict()["runs"][0]


def _search(arguments: argparse.Namespace, output: Path | None) -> tuple[Path, dict[str, Any]]:
    from keras_trainkit import reporting

    try:
        results = reporting.read_search(arguments.run, storage=arguments.storage)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return reporting.report_search(results, output), results.to_dict()


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

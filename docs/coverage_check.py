"""Fails when a public name of the package has no place in the API reference: `python docs/coverage_check.py`.

Public is what a subpackage's `__all__` names, and the modules of `keras_trainkit.testing`. A reference page documents
a name by listing it in an autosummary. The build of the documentation runs this check, and so do the tests.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

PACKAGE = "keras_trainkit"
REFERENCE = Path(__file__).parent / "reference"
_DIRECTIVE = re.compile(r"^(?P<indent> *)\.\. autosummary::")
_MODULE = re.compile(r"^ *\.\. currentmodule:: (?P<name>\S+)")


def public_names() -> list[str]:
    """The full names of everything public, sorted."""
    package = importlib.import_module(PACKAGE)
    names = []
    for info in pkgutil.iter_modules(package.__path__):
        if not info.ispkg:
            continue
        subpackage = importlib.import_module(f"{PACKAGE}.{info.name}")
        names += [f"{PACKAGE}.{info.name}.{name}" for name in getattr(subpackage, "__all__", [])]
    return sorted(names)


def documented_names(folder: Path = REFERENCE) -> list[str]:
    """The full names that the autosummaries of the pages in `folder` list, sorted, repeats included."""
    names = []
    for page in folder.glob("*.md"):
        names += _listed(page.read_text(encoding="utf-8").splitlines())
    return sorted(names)


def missing() -> list[str]:
    """The public names that no page lists."""
    return sorted(set(public_names()) - set(documented_names()))


def warn_about_missing(app: Any) -> None:
    """For Sphinx's `builder-inited` event."""
    from sphinx.util import logging

    for name in missing():
        logging.getLogger(__name__).warning("%s is public, but no page in docs/reference lists it", name)


def _listed(lines: list[str]) -> list[str]:
    """The entries of the autosummary directives in a page, as full names."""
    names, module, inside = [], "", None
    for line in lines:
        if found := _MODULE.match(line):
            module = found["name"] + "."
        elif found := _DIRECTIVE.match(line):
            inside = len(found["indent"])
        elif inside is not None and line.strip():
            indent = len(line) - len(line.lstrip())
            if indent <= inside:
                inside = None
            elif not line.strip().startswith(":"):
                entry = line.strip().removeprefix("~")
                names.append(entry if entry.startswith(PACKAGE) else module + entry)
    return names


if __name__ == "__main__":
    found = missing()
    for name in found:
        print(f"{name} is public, but no page in docs/reference lists it", file=sys.stderr)
    sys.exit(1 if found else 0)

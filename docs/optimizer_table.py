"""Tables of optimizers for the guides, with their facts taken from the package: the directive `optimizer-table`.

Each line of its body is `name` or `name, name: when to take them`. `conf.py` makes a directive of `markdown`.
"""

from __future__ import annotations

import re

from keras_trainkit.core.tables import optimizer_row
from keras_trainkit.optimizers import registry


def rows(lines: list[str]) -> list[tuple[list[str], str]]:
    """The names and the text of each line.

    >>> rows(["adam, adamw: no reason for another", "", "lion"])
    [(['adam', 'adamw'], 'no reason for another'), (['lion'], '')]
    """
    parts = [line.partition(":") for line in lines if line.strip()]
    return [([name.strip() for name in names.split(",")], text.strip()) for names, _, text in parts]


def markdown(lines: list[str], heading: str) -> list[str]:
    """The lines of a Markdown table: name, bytes of state, paper, and what the lines say under `heading`.

    Raises:
        ValueError: for a name that is no optimizer of the kit.
    """
    table = [["optimizer", "bytes of state per parameter", "paper", heading]]
    for names, text in rows(lines):
        facts = [_facts(name) for name in names]
        table.append([", ".join(column) for column in zip(*facts, strict=True)] + [text])
    if not any(row[-1] for row in table[1:]):
        table = [row[:-1] for row in table]
    table.insert(1, ["---"] * len(table[0]))
    return [f"| {' | '.join(row)} |" for row in table]


def named(page: str) -> list[str]:
    """The optimizers in the tables of a page's text, in their order."""
    blocks = re.findall(r"^```\{optimizer-table\}[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [name for block in blocks for names, _ in rows(block.splitlines()) for name in names]


def _facts(name: str) -> list[str]:
    kinds = {kind.__name__.lower(): kind for kind in registry.classes()}
    if name not in kinds:
        raise ValueError(f"{name!r} is no optimizer of the kit")
    kind = kinds[name]
    year, paper, state = optimizer_row(name, kind.info.year, kind.info.paper, kind.info.state_bytes, "")[1:4]
    paper = re.sub(r"^arXiv:(\S+)$", rf"[\1](https://arxiv.org/abs/\1), {year}", paper)
    return [f"{{py:class}}`{kind.__name__} <keras_trainkit.optimizers.{kind.__name__}>`", state, paper]

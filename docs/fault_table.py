"""Tables of what plain Keras does and what the kit does, made from the tests: the directive `fault-table`.

A test that shows a fault of Keras, the same case right with the kit, or both, carries the words of its row:

    @pytest.mark.shows("data", "text under MirroredStrategy", keras="an error", kit="trains")

The first argument is the table, the second the case. A row has its two halves from one test or from two; one that lacks
either is an error. `conf.py` makes a directive of `markdown`. The files are parsed, not run: nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1] / "tests"
SIDES = {"keras": "plain Keras", "kit": "keras_trainkit"}


class Claim(NamedTuple):
    """What one test shows: words of one side, or of both, of one row."""

    topic: str
    case: str
    words: dict[str, str]
    test: str


def markdown(topic: str) -> list[str]:
    """The lines of the table `topic`, its rows in the order of the tests.

    Raises:
        ValueError: for a table that no test speaks of, a row without a test of Keras or of the kit, a row of which two
            tests tell the same side, and a mark that is not as described above.
    """
    rows: dict[str, dict[str, str]] = {}
    tests: dict[str, list[str]] = {}
    known = claims()
    for claim in known:
        if claim.topic != topic:
            continue
        row = rows.setdefault(claim.case, {})
        tests.setdefault(claim.case, []).append(claim.test)
        for side, words in claim.words.items():
            if side in row:
                raise ValueError(f"{' and '.join(tests[claim.case])} tell `{side}` of one row: {claim.case!r}")
            row[side] = words
    if not rows:
        topics = ", ".join(sorted({claim.topic for claim in known}))
        raise ValueError(f"no test shows anything about {topic!r}; there are {topics}")
    for case, row in rows.items():
        for side, name in SIDES.items():
            if side not in row:
                raise ValueError(f"the row {case!r} lacks a test of {name}; it has {', '.join(tests[case])}")
    table = [["case", *SIDES.values()], ["---"] * 3]
    table += [[case, row["keras"], row["kit"]] for case, row in rows.items()]
    return [f"| {' | '.join(cells)} |" for cells in table]


def claims(folder: Path | None = None) -> list[Claim]:
    """What the tests say that they show, the files at the top first, each from its beginning to its end."""
    folder = folder or TESTS
    paths = sorted(folder.rglob("test_*.py"), key=lambda path: (len(path.parts), path))
    return [claim for path in paths for claim in _of_file(path, path.relative_to(folder).as_posix())]


def _of_file(path: Path, name: str) -> Iterator[Claim]:
    text = path.read_text(encoding="utf-8")
    if "mark.shows" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        for mark in getattr(node, "decorator_list", []):
            call = mark.func if isinstance(mark, ast.Call) else mark
            if ast.unparse(call) == "pytest.mark.shows":
                yield _claim(mark, f"{name}::{node.name}")


def _claim(mark: ast.expr, test: str) -> Claim:
    wrong = ValueError(
        f"the mark of {test} must be shows(topic, case, keras=..., kit=...), of texts without `|`, with one of the two "
        f"at least. Received: {ast.unparse(mark)}"
    )
    if not isinstance(mark, ast.Call) or not test.rpartition("::")[2].startswith("test_"):
        raise wrong
    values = [*mark.args, *(keyword.value for keyword in mark.keywords)]
    texts = [value.value for value in values if isinstance(value, ast.Constant)]
    if len(texts) < len(values) or not all(isinstance(text, str) and text and "|" not in text for text in texts):
        raise wrong
    words = dict(zip([keyword.arg for keyword in mark.keywords], texts[len(mark.args) :], strict=True))
    if len(mark.args) != 2 or not words or not set(words) <= set(SIDES):
        raise wrong
    return Claim(texts[0], texts[1], words, test)

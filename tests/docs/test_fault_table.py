"""Tables of what plain Keras does: each row has a test of Keras and a test of the kit, and every row is shown."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = [
    topic
    for page in sorted((ROOT / "docs").glob("*.md"))
    for topic in re.findall(r"^```\{fault-table\} (.*)$", page.read_text("utf-8"), re.MULTILINE)
]


@pytest.fixture
def tables():
    spec = importlib.util.spec_from_file_location("fault_table", ROOT / "docs" / "fault_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def marked(tables, tmp_path, monkeypatch):
    """Writes marks into files of tests, and makes the table `t` of them."""
    monkeypatch.setattr(tables, "TESTS", tmp_path)

    def table(*marks, name="test_it"):
        for number, mark in enumerate(marks):
            (tmp_path / f"test_{number}.py").write_text(f"@pytest.mark.shows{mark}\ndef {name}():\n    assert True\n")
        return tables.markdown("t")

    return table


def test_every_row_is_shown_once(tables):
    assert sorted(SHOWN) == sorted({claim.topic for claim in tables.claims()})


@pytest.mark.parametrize("topic", SHOWN)
def test_every_table_can_be_made(tables, topic):
    head, rule, *rows = tables.markdown(topic)
    assert head == "| case | plain Keras | keras_trainkit |" and rows
    assert {line.count("|") for line in (head, rule, *rows)} == {4}
    assert not [row for row in rows if "|  |" in row]


def test_a_row_may_come_from_two_tests_in_their_order(marked):
    kit = '("t", "first", kit="right")'
    assert marked('("t", "first", keras="wrong")', '("t", "second", keras="a" "b", kit="c")', kit)[2:] == [
        "| first | wrong | right |",
        "| second | ab | c |",
    ]


@pytest.mark.parametrize(("has", "lacks"), [("keras", "keras_trainkit"), ("kit", "plain Keras")])
def test_a_row_without_a_half_is_an_error(marked, has, lacks):
    with pytest.raises(ValueError, match=f"the row 'one' lacks a test of {lacks}; it has test_0.py::test_it"):
        marked(f'("t", "one", {has}="words")')


def test_two_tests_may_not_tell_one_half(marked):
    with pytest.raises(ValueError, match=r"test_0.py::test_it and test_1.py::test_it tell `kit` of one row: 'one'"):
        marked('("t", "one", keras="wrong", kit="right")', '("t", "one", kit="other")')


def test_a_table_that_no_test_speaks_of_is_an_error(marked):
    with pytest.raises(ValueError, match="no test shows anything about 't'; there are u"):
        marked('("u", "one", keras="wrong", kit="right")')


@pytest.mark.parametrize(
    "mark",
    [
        "",
        '("t", "one")',
        '("t", keras="wrong", kit="right")',
        '("t", "one", kears="wrong")',
        '("t", "one", keras=WORDS)',
        '("t", "one", keras="")',
        '("t", "one", keras="this | that")',
        '("t", "one", **WORDS)',
    ],
)
def test_a_mark_is_literal_and_whole(marked, mark):
    with pytest.raises(ValueError, match=r"the mark of test_0.py::test_it must be shows\(topic, case"):
        marked(mark)


def test_what_is_no_test_shows_nothing(marked):
    with pytest.raises(ValueError, match="the mark of test_0.py::helper must be"):
        marked('("t", "one", keras="wrong", kit="right")', name="helper")

"""Every table of measurements that a page shows can be made from the files there are, and says what they say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SHOWN = [
    name
    for page in PAGES
    for name in re.findall(r"^```\{benchmark-table\} (.*)$", page.read_text("utf-8"), re.MULTILINE)
]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "docs" / "benchmark_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_shown(tables):
    assert sorted(SHOWN) == sorted(tables.TABLES)


@pytest.mark.parametrize("name", SHOWN)
def test_a_table_has_rows_of_one_length(tables, name):
    lines = [line for line in tables.markdown(name) if line.startswith("|")]
    assert len(lines) > 2
    widths, blocks = [], []
    for line in lines:
        if set(line) <= set("|- "):
            blocks.append(line.count("|"))
        widths.append(line.count("|"))
    assert set(widths) == set(blocks)


def test_figures_are_those_of_the_file(tables):
    path = ROOT / "benchmarks" / "results" / "update_step.json"
    figures = json.loads(path.read_text("utf-8"))
    (row,) = [line for line in tables.markdown("update-step transformer") if line.startswith("| `adam` ")]
    assert f"{figures['cases']['transformer adam']['ours_to']['keras']['median']:.3g} [" in row
    assert figures["date"] in "\n".join(tables.markdown("update-step transformer"))


def test_a_table_that_is_not_known_is_an_error(tables):
    with pytest.raises(ValueError, match="'speed' is no table; there are update-step transformer, "):
        tables.markdown("speed")


def test_a_missing_file_is_an_error(tables, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "BENCHMARKS", tmp_path)
    with pytest.raises(ValueError, match="is missing: run the benchmark first"):
        tables.markdown("fit")

"""Tables of optimizers in the guides: facts from the package, and a place for each optimizer."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from keras_trainkit import optimizers

DOCS = Path(__file__).parents[2] / "docs"
FAMILIES = sorted(DOCS.glob("optimizers-*.md"))


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("optimizer_table", DOCS / "optimizer_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_holds_the_facts_of_the_package(tables):
    head, rule, both, alone = tables.markdown(["adam, lion: a reason", "adagrad: another"], "when")
    assert head == "| optimizer | bytes of state per parameter | paper | when |" and set(rule) <= set("| -")
    cells = [cell.strip() for cell in both.strip("|").split("|")]
    assert [int(part) for part in cells[1].split(", ")] == [
        optimizers.info("adam").state_bytes,
        optimizers.info("lion").state_bytes,
    ]
    assert "keras_trainkit.optimizers.Adam>" in cells[0] and "keras_trainkit.optimizers.Lion>" in cells[0]
    assert "https://arxiv.org/abs/2302.06675" in cells[2] and cells[3] == "a reason"
    assert "Duchi et al., 2011 | another" in alone


def test_a_table_without_words_has_no_column_for_them(tables):
    assert tables.markdown(["adam"], "when")[0] == "| optimizer | bytes of state per parameter | paper |"


def test_an_unknown_name_is_an_error(tables):
    with pytest.raises(ValueError, match="'adamm' is no optimizer of the kit"):
        tables.markdown(["adamm: a reason"], "when")


def test_every_optimizer_has_a_family(tables):
    found = {name for page in FAMILIES for name in tables.named(page.read_text(encoding="utf-8"))}
    assert found == set(optimizers.list())


def test_the_guide_to_choosing_names_every_optimizer_once(tables):
    names = tables.named((DOCS / "choosing.md").read_text(encoding="utf-8"))
    assert [name for name, times in Counter(names).items() if times > 1] == []
    assert set(names) == set(optimizers.list())

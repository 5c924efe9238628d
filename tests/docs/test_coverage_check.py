"""The check that the API reference lists every public name."""

import importlib
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("coverage_check", DOCS / "coverage_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_place_in_the_reference(check):
    assert check.missing() == []


def test_the_reference_lists_what_exists_and_each_once(check):
    names = check.documented_names()
    assert [name for name, times in Counter(names).items() if times > 1] == []
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_public_names_come_from_every_subpackage(check):
    names = check.public_names()
    assert {"keras_trainkit.schedules.Warmup", "keras_trainkit.optimizers.get", "keras_trainkit.core.chain"} <= set(
        names
    )
    assert not [name for name in names if name.rpartition(".")[2].startswith("_")]


def test_a_name_that_no_page_lists_is_found(check, tmp_path, monkeypatch):
    page = (DOCS / "reference" / "schedules.md").read_text(encoding="utf-8")
    (tmp_path / "schedules.md").write_text(page.replace("   Warmup\n", ""), encoding="utf-8")
    listed = check.documented_names(tmp_path)
    assert "keras_trainkit.schedules.Cosine" in listed and "keras_trainkit.schedules.Warmup" not in listed
    monkeypatch.setattr(check, "documented_names", lambda: listed)
    assert "keras_trainkit.schedules.Warmup" in check.missing()


def test_text_after_an_autosummary_is_no_entry(check, tmp_path):
    directive = ".. autosummary::\n   :toctree: ../api\n\n   One\n   ~keras_trainkit.Two\n"
    text = "```{eval-rst}\n.. currentmodule:: a.b\n\n" + directive + "```\nThree\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert check.documented_names(tmp_path) == ["a.b.One", "keras_trainkit.Two"]

"""What README and guides show: code that runs, commands that exist, complete tables, links that lead somewhere."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from keras_trainkit.cli.main import make_parser
from keras_trainkit.recipes import Recipe, run_directory

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return [found["text"] for found in BLOCK.finditer(text) if found["language"] == language]


def rows(page, columns):
    """The body of each table of so many columns, without backticks."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.count("|") == columns + 1]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells[1:] if not set(row[0]) <= {"-"}]


def name(page):
    return page.name


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__documentation__"}
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=name)
def test_the_commands_of_a_page_exist(page):
    lines = [line for text in blocks(page, "console") for line in text.splitlines()]
    found = [line for line in lines if line.startswith("keras-trainkit ")]
    for line in found:
        assert make_parser().parse_args(shlex.split(line)[1:]).function
    assert found or "keras-trainkit" not in "".join(lines).replace(".venv/bin/keras-trainkit", "")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]*)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_example_in_the_readme_has_about_ten_lines():
    (text,) = blocks(ROOT / "README.md", "python")
    statements = [line for line in text.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 10 and "compile(" in text and "fit(" in text


def test_the_readme_names_the_two_commands():
    first, second = blocks(ROOT / "README.md", "console")[:2]
    assert "pip install ." in first and first.strip().endswith("keras-trainkit train")
    others = ("#", "set", "cd", ".ci/")
    tested = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith(others)]
    plain = [line.replace(" --quiet", "") for line in tested if line]
    assert second.strip() == " && ".join(plain)


def test_the_table_of_recipe_keys_is_complete():
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    table = {row[0]: row[1] for row in rows(ROOT / "docs" / "recipes.md", 3)}
    assert list(table) == list(defaults)
    for key, default in defaults.items():
        if default is not None:
            assert json.loads(table[key]) == default, key


def test_the_recipes_shown_are_recipes():
    page = ROOT / "docs" / "recipes.md"
    (text,) = blocks(page, "json")
    recipe = Recipe.from_dict(json.loads(text))
    yaml = pytest.importorskip("yaml")
    assert Recipe.from_dict(yaml.safe_load(blocks(page, "yaml")[0])) == recipe


def test_the_files_of_a_run_directory_are_complete():
    listed = {row[0].rstrip("/") for row in rows(ROOT / "docs" / "run-directory.md", 2)}
    assert listed == set(run_directory.CONTENTS)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=name)
def test_an_example_is_short_and_explains_itself(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert text.startswith('"""')

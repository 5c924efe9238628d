"""Run directories: their names, what is refused, what is removed, and whole JSON files."""

import json
import os

import pytest

from keras_trainkit.recipes import RecipeError, run_directory


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(path):
    run_directory.create(path)
    run_directory.write_json(path / run_directory.RECIPE, {"recipe": {}})


def test_default_names_count_up_and_choosing_writes_nothing(here):
    assert str(run_directory.choose("digits")) == os.path.join("runs", "digits-1")
    assert list(here.iterdir()) == []
    for name in ("digits-1", "digits-9", "digits-10", "digits-x", "other-50"):
        (here / "runs" / name).mkdir(parents=True)
    assert run_directory.choose("digits").name == "digits-11"


def test_an_existing_directory_is_refused(here):
    make_run(here / "mine")
    with pytest.raises(RecipeError, match=r"exists.*--overwrite"):
        run_directory.choose("digits", "mine")
    assert run_directory.choose("digits", "mine", overwrite=True).name == "mine"


def test_a_directory_that_holds_something_else_is_never_overwritten(here):
    (here / "home").mkdir()
    (here / "home" / "letter.txt").write_text("dear")
    (here / "home" / "recipe.json").write_text('{"flour": 500}')
    with pytest.raises(RecipeError, match="something else"):
        run_directory.choose("digits", "home", overwrite=True)
    (here / "file").write_text("")
    with pytest.raises(RecipeError, match="is a file"):
        run_directory.choose("digits", "file", overwrite=True)


def test_an_empty_directory_may_be_overwritten(here):
    (here / "empty").mkdir()
    with pytest.raises(RecipeError, match="exists"):
        run_directory.choose("digits", "empty")
    assert run_directory.choose("digits", "empty", overwrite=True).name == "empty"


def test_a_parent_that_is_a_file_is_refused(here):
    (here / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be made"):
        run_directory.choose("digits", "file/run")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_parent_without_permission_is_refused(here):
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(RecipeError, match="no permission"):
        run_directory.choose("digits", "locked/run")


def test_create_removes_the_old_run_and_leaves_the_rest(here):
    path = here / "run"
    make_run(path)
    (path / "tensorboard" / "deep").mkdir(parents=True)
    (path / "notes.txt").write_text("mine")
    run_directory.create(path)
    assert [child.name for child in path.iterdir()] == ["notes.txt"]


def test_json_is_whole_or_absent(here):
    path = here / "result.json"
    run_directory.write_json(path, {"a": float("inf"), "b": [1.5, float("nan")], "c": {"d": 2}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": {"d": 2}}
    with pytest.raises(TypeError):
        run_directory.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == [1.5, None]
    assert [child.name for child in here.iterdir()] == ["result.json"]

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
    assert run_directory.create("digits", path, overwrite=True) == path
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
    with pytest.raises(RecipeError, match="exists"):
        run_directory.create("digits", path)
    run_directory.create("digits", path, overwrite=True)
    assert [child.name for child in path.iterdir()] == ["notes.txt"]


def test_runs_that_begin_together_get_directories_of_their_own(here, monkeypatch):
    """Between the look for a free name and the making, another run takes it."""
    choose, taken = run_directory.choose, []

    def slow(*arguments):
        path = choose(*arguments)
        if not taken:
            path.mkdir(parents=True)
            run_directory.write_json(path / run_directory.RECIPE, {"recipe": {}})
            taken.append(path)
        return path

    monkeypatch.setattr(run_directory, "choose", slow)
    make_second = run_directory.create("digits")
    assert [taken[0].name, make_second.name] == ["digits-1", "digits-2"]
    assert (here / taken[0] / run_directory.RECIPE).exists()


def test_json_is_whole_or_absent(here):
    path = here / "result.json"
    run_directory.write_json(path, {"a": float("inf"), "b": [1.5, float("nan")], "c": {"d": 2}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": {"d": 2}}
    with pytest.raises(TypeError):
        run_directory.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == [1.5, None]
    assert [child.name for child in here.iterdir()] == ["result.json"]

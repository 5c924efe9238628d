"""Recipe: what it accepts, what it refuses and in which words, and its files."""

import dataclasses
import inspect
import json
import sys

import pytest

from keras_trainkit import optimizers
from keras_trainkit.recipes import Recipe, RecipeError, catalog
from keras_trainkit.recipes.recipe import read_file


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"learning_rate": -0.1}, ["`learning_rate`", "above 0", "-0.1"]),
        ({"learning_rate": "fast"}, ["`learning_rate`", "number", "'fast'"]),
        ({"learning_rate": float("nan")}, ["`learning_rate`", "nan"]),
        ({"optimizer": "radm"}, ["'radm'", "'radam'"]),
        ({"optimizer": "qqqqq"}, ["'qqqqq'", "sgd", "radam"]),
        ({"optimizer": {"beta_1": 0.9}}, ["`optimizer`", "`name`"]),
        ({"optimizer": {"name": "adam", "weight_decay": 0.1}}, ["`weight_decay`", "own key"]),
        ({"optimizer": {"name": "adam", "gradient_accumulation_steps": 2}}, ["`accumulation`"]),
        ({"optimizer": 3}, ["`optimizer`", "3"]),
        ({"schedule": "cosin"}, ["`schedule`", "Did you mean 'cosine'"]),
        ({"schedule": {"name": "cosin"}}, ["`schedule`", "Did you mean 'cosine'"]),
        ({"schedule": {"decay_steps": 5}}, ["`schedule` as a mapping needs a `name`"]),
        ({"schedule": {"name": "wsd", "learning_rate": 5}}, ["recipe's own key `learning_rate`"]),
        ({"precision": "float16"}, ["`precision`", "mixed_float16"]),
        ({"warmup": -1}, ["`warmup`", "at least 0"]),
        ({"warmup": 2.5}, ["`warmup`", "whole number"]),
        ({"weight_decay": -1}, ["`weight_decay`"]),
        ({"global_clipnorm": 0}, ["`global_clipnorm`", "above 0"]),
        ({"epochs": 0}, ["`epochs`", "at least 1"]),
        ({"epochs": 1.5}, ["`epochs`", "integer"]),
        ({"replicas": 2, "batch_size": 33}, ["`batch_size`", "multiple", "replicas=2"]),
        ({"accumulation": True}, ["`accumulation`", "True"]),
        ({"seed": -1}, ["`seed`"]),
        ({"target": "price"}, ["`target`", "`data`"]),
        ({"data": ""}, ["`data`"]),
        ({"data": 7}, ["`data`", "7"]),
        ({"model": "nets"}, ["`model`", "module:function"]),
        ({"model": "nets:build()"}, ["`model`", "module:function"]),
        ({"model": ":build"}, ["`model`"]),
    ],
)
def test_bad_values_are_refused_in_one_line_that_names_them(arguments, words):
    with pytest.raises(RecipeError) as caught:
        Recipe(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_values_are_brought_into_one_form(tmp_path):
    recipe = Recipe(data=tmp_path / "cats.v2.npz", optimizer="RAdam", learning_rate=1, global_clipnorm=None)
    assert recipe.data == str(tmp_path / "cats.v2.npz")
    assert recipe.name == "cats"
    assert recipe.optimizer == "radam"
    assert recipe.learning_rate == 1.0 and type(recipe.learning_rate) is float
    assert recipe.global_clipnorm is None
    assert Recipe(data="t.csv", target=3).target == "3"


def test_optimizer_with_arguments():
    recipe = Recipe(optimizer={"name": "Adam", "beta_2": 0.95})
    assert (recipe.optimizer_name, recipe.optimizer_arguments) == ("adam", {"beta_2": 0.95})
    assert (Recipe().optimizer_name, Recipe().optimizer_arguments) == ("adamw", {})


def test_a_recipe_cannot_be_changed_but_replaced():
    recipe = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3
    assert dataclasses.replace(recipe, epochs=3).epochs == 3
    with pytest.raises(RecipeError):
        dataclasses.replace(recipe, epochs=0)


def test_round_trip_through_json():
    recipe = Recipe(
        data="a.csv", target="y", optimizer={"name": "lion", "beta_1": 0.8}, warmup=10, global_clipnorm=None
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_unknown_keys_are_errors_with_near_names():
    with pytest.raises(RecipeError, match=r"no key 'learning_rat'. Did you mean 'learning_rate'"):
        Recipe.from_dict({"learning_rat": 1e-3})
    with pytest.raises(RecipeError, match=r"no key 'zzz'. The keys are data, target"):
        Recipe.from_dict({"zzz": 1})


@pytest.mark.parametrize(("warmup", "updates"), [(0, 0), (0.25, 50), (1, 1), (30, 30), (0.999, 200)])
def test_warmup_is_a_share_or_a_number_of_updates(warmup, updates):
    assert Recipe(warmup=warmup).warmup_updates(200) == updates


def test_from_json_file_and_from_a_run(tmp_path):
    plain, of_a_run = tmp_path / "recipe.json", tmp_path / "run.json"
    plain.write_text('{"epochs": 3, "optimizer": "sgd"}')
    of_a_run.write_text(json.dumps({"recipe": Recipe(epochs=4).to_dict(), "resolved": {"updates": 9}}))
    assert Recipe.from_file(plain) == Recipe(epochs=3, optimizer="sgd")
    assert Recipe.from_file(of_a_run) == Recipe(epochs=4)


def test_from_yaml_file(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-3  # text to YAML 1.1\nepochs: 2\noptimizer:\n  name: adam\n  epsilon: 1e-5\n")
    recipe = Recipe.from_file(path)
    assert recipe == Recipe(learning_rate=1e-3, epochs=2, optimizer={"name": "adam", "epsilon": 1e-5})
    path.write_text("")
    assert Recipe.from_file(path) == Recipe()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"epochs": }', ["a.json", "not JSON", "line 1"]),
        ("a.json", "[1]", ["mapping", "list"]),
        ("a.json", '{"epoch": 3}', ["'epoch'", "'epochs'"]),
        ("a.yaml", "epochs: [1\nseed: 2", ["a.yaml", "not YAML", "line 2"]),
        ("a.yml", "just text", ["mapping", "str"]),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, text, words):
    pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        read_file(tmp_path / "none.json")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_file(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_file(tmp_path / "binary.json")


def test_yaml_without_pyyaml_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "recipe.yaml").write_text("epochs: 2\n")
    with pytest.raises(RecipeError, match=r"keras-trainkit\[yaml\]"):
        Recipe.from_file(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("optimizer", "rate", "schedule"),
    [
        ("adamw", 2e-3, "cosine"),
        ("Muon", 0.02, "cosine"),
        ("prodigy", 1.0, "cosine"),
        ({"name": "schedulefreesgd", "momentum": 0.95}, 1.0, "constant"),
        ("cocob", 1.0, "constant"),
    ],
)
def test_rate_and_schedule_are_the_optimizers_own_unless_given(optimizer, rate, schedule):
    recipe = Recipe(optimizer=optimizer)
    assert (recipe.learning_rate, recipe.schedule) == (rate, schedule)
    given = Recipe(optimizer=optimizer, learning_rate=0.5, schedule="cosine")
    assert (given.learning_rate, given.schedule) == (0.5, "cosine")
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_what_the_source_says_of_rates_is_what_the_classes_have():
    for kind in optimizers.classes():
        name = kind.__name__.lower()
        assert catalog.own_rate(name) == inspect.signature(kind).parameters["learning_rate"].default, name
        assert (catalog.own_schedule(name) == "constant") == kind.info.constant_rate, name

"""`TrainingSpace`: what users may say, what is declared, and the recipe of a point."""

import itertools
import json
import types
from pathlib import Path

import keras_tuner
import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from keras_trainkit.recipes import Recipe, RecipeError, catalog
from keras_trainkit.tuning import Range, TrainingSpace, spaces, training_ranges

RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "training.jsonl"


def declared(space, base=None, dataset=None):
    hp = keras_tuner.HyperParameters()
    space.declare(hp, base, dataset)
    return hp


def entries(hp, name):
    return [parameter for parameter in hp.space if parameter.name == name]


def images(count, shape=(8, 8, 1)):
    """As much of a data set as a space looks at."""
    return types.SimpleNamespace(train=(np.zeros((count, *shape)), np.zeros(count)), input_shape=shape)


def test_more_is_searched_with_more_trials():
    kept = [TrainingSpace.ready(trials).searched for trials in (1, 9, 10, 24, 25, 60, 150, 1000)]
    assert kept[0] == kept[1] == ["learning_rate"]
    assert kept[2] == kept[3] == ["learning_rate", "weight_decay", "batch_size"]
    for fewer, more in itertools.pairwise(kept):
        assert set(fewer) <= set(more)
    assert {"optimizer", "schedule"} <= set(kept[4]) and kept[6] == kept[7]
    with pytest.raises(ValueError, match="`trials` must be an integer at least 1"):
        TrainingSpace.ready(0)


def test_lists_are_choices_and_pairs_are_ranges():
    space = TrainingSpace(learning_rate=(1e-4, 1e-1), batch_size=[16, 64], warmup=(0.0, 0.3), epochs=7, dropout=0.25)
    rate, warmup, batch_size, epochs, dropout = declared(space).space
    assert (rate.sampling, rate.min_value, rate.max_value) == ("log", 1e-4, 1e-1)
    assert (warmup.sampling, batch_size.values, batch_size.ordered) == ("linear", [16, 64], True)
    assert (epochs.value, dropout.value) == (7, 0.25)
    sizes = declared(TrainingSpace(batch_size=(16, 256))).space[0]
    assert (type(sizes).__name__, sizes.sampling) == ("Int", "log")
    assert declared(TrainingSpace(learning_rate=Range(0.1, 0.5))).space[0].sampling == "linear"


def test_each_optimizer_has_rates_of_its_own():
    hp = declared(TrainingSpace(optimizer=["adamw", "lion", "prodigy"], learning_rate="auto", weight_decay="auto"))
    rates = {p.conditions[0].values[0]: (p.min_value, p.max_value, p.default) for p in entries(hp, "learning_rate")}
    assert rates == {"adamw": (1e-4, 0.03, 0.002), "lion": (1e-5, 0.003, 1e-4), "prodigy": (0.1, 10.0, 1.0)}
    assert {p.conditions[0].values[0]: p.max_value for p in entries(hp, "weight_decay")}["lion"] == 3.0
    alone = declared(TrainingSpace(learning_rate="auto"), Recipe(optimizer="lion"))
    assert (alone.space[0].conditions, alone.space[0].max_value) == ([], 0.003)


@pytest.mark.skipif(not RUNS.exists(), reason="needs benchmarks/results of the repository")
def test_the_best_rates_of_the_training_benchmark_lie_inside():
    best = {}
    for line in RUNS.read_text().splitlines():
        run = json.loads(line)
        losses = [loss for loss in run.get("losses", []) if loss is not None]
        if run.get("seed") == 1000 and losses and run["optimizer"] in catalog.optimizer_names():
            key = run["optimizer"], run["problem"]
            best[key] = min(best.get(key, (np.inf, 0.0)), (min(losses), run["rate"]))
    assert len(best) > 100
    outside = {key: rate for key, (_, rate) in best.items() if not training_ranges.rates_of(key[0]).holds(rate)}
    assert outside == {}


def test_every_optimizer_has_a_space_around_its_own_values():
    for name in catalog.optimizer_names():
        assert training_ranges.rates_of(name).low < training_ranges.rates_of(name).high
        own = catalog.own_defaults(name)
        for argument, values in training_ranges.arguments_of(name).items():
            assert own[argument] in values


def test_arguments_are_there_with_the_optimizers_that_take_them():
    space = TrainingSpace(optimizer=["adamw", "sgd"], arguments={"momentum": (0.0, 0.99), "beta_2": [0.9, 0.99]})
    hp = declared(space)
    assert [p.conditions[0].values for p in entries(hp, "momentum") + entries(hp, "beta_2")] == [["sgd"], ["adamw"]]
    recipe = space.recipe({"optimizer": "sgd", "momentum": 0.5})
    assert recipe.optimizer == {"name": "sgd", "momentum": 0.5}
    with pytest.raises(ValueError, match="none of adamw takes 'momentum'"):
        declared(TrainingSpace(arguments={"momentum": [0.5]}))
    auto = declared(TrainingSpace(optimizer=["sgd", "lion"], arguments="auto"))
    assert [(p.name, p.conditions[0].values[0]) for p in auto.space[1:]] == [
        ("momentum", "sgd"), ("beta_1", "lion"), ("beta_2", "lion"),
    ]  # fmt: skip


def test_a_point_is_a_recipe():
    space = TrainingSpace(optimizer=["adamw", "lion"], batch_size=[16], regularizer=["none", "l2"], dropout=(0, 0.5))
    base = Recipe(optimizer={"name": "adamw", "beta_2": 0.9}, learning_rate=0.5, schedule="wsd", epochs=3, seed=4)
    values = {"optimizer": "adamw", "batch_size": 16, "regularizer": "l2", "regularizer_strength": 1e-3, "dropout": 0.1}
    recipe = space.recipe(values, base)
    assert recipe.optimizer == {"name": "adamw", "beta_2": 0.9} and recipe.learning_rate == 0.5
    assert (recipe.regularizer, recipe.dropout) == ({"name": "l2", "l2": 1e-3}, 0.1)
    assert (recipe.epochs, recipe.seed, recipe.batch_size) == (3, 4, 16)
    other = space.recipe({"optimizer": "lion", "regularizer": "none"}, base)
    assert (other.optimizer, other.learning_rate, other.schedule, other.regularizer) == ("lion", 1e-4, "cosine", None)


def test_the_strength_of_a_penalty_is_searched_where_there_is_one():
    hp = declared(TrainingSpace(regularizer=["none", "l1", "l2"]))
    assert entries(hp, "regularizer_strength")[0].conditions[0].values == ["l1", "l2"]
    fixed = declared(TrainingSpace(regularizer="l2", regularizer_strength=(1e-5, 1e-3)))
    assert entries(fixed, "regularizer_strength")[0].conditions == []


def test_the_recipe_is_the_first_point_as_far_as_it_lies_inside():
    space = TrainingSpace.ready(60)
    base = Recipe(batch_size=64, dropout=0.3)
    hp = declared(space, base)
    point = space.start_point(base, hp)
    assert point["batch_size"] == 64 and point["dropout"] == 0.3 and point["augmentation"] == "none"
    assert space.recipe(point, base).to_dict() == base.to_dict() | {
        "optimizer": {"name": "adamw", "beta_1": 0.9, "beta_2": 0.999}
    }
    names = {spaces.study_name(p) for p in hp.space if p.name == "learning_rate"}
    assert len(names) == 5  # one name, five ranges
    assert "learning_rate" not in space.start_point(Recipe(learning_rate=5.0), hp)


def test_what_does_not_go_with_the_data_is_left_out():
    auto = TrainingSpace(batch_size="auto", augmentation="auto")
    sizes, kinds = declared(auto, Recipe(), images(1259)).space
    assert sizes.values == [16, 32, 64] and kinds.values == ["none", "mixup", "cutmix"]
    sizes, kinds = declared(auto, Recipe(replicas=32, batch_size=32), images(100, (4,))).space
    assert sizes.value == 32 and kinds.values == ["none", "mixup"]


def test_a_space_survives_a_file():
    space = TrainingSpace(
        learning_rate=(1e-4, 1e-2), optimizer=["lion"], arguments={"beta_1": (0.5, 0.9)}, epochs="auto"
    )
    assert TrainingSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    given = TrainingSpace.from_dict({"learning_rate": {"low": 1e-4, "high": 1e-2}, "batch_size": [8, 16]})
    assert given.learning_rate.sampling == "log"
    assert declared(TrainingSpace(epochs="auto"), Recipe(epochs=9)).space[0].max_value == 18


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"optimizer": ["adamv"]}, ValueError, "Did you mean 'adam"),
        ({"optimizer": (1, 2)}, TypeError, "`optimizer` must be names"),
        ({"batch_size": (0.5, 2.0)}, TypeError, "`batch_size` must be whole numbers"),
        ({"batch_size": [0, 16]}, RecipeError, "`batch_size` must be an integer at least 1"),
        ({"warmup": (0.0, -0.1)}, ValueError, "`high` must be a number above 0.0"),
        ({"dropout": (0.0, 1.0)}, RecipeError, "`dropout` must be a number at least 0 and below 1"),
        ({"learning_rate": []}, ValueError, "`learning_rate` must have a value to choose"),
        ({"learning_rate": [0.1, 0.1]}, ValueError, "must not have a value twice"),
        ({"learning_rate": [0.1, "high"]}, TypeError, "numbers or names, not both"),
        ({"learning_rate": {"low": 0.1, "hi": 1}}, ValueError, "Did you mean 'high'"),
        ({"schedule": ["cosin"]}, RecipeError, "Did you mean 'cosine'"),
        ({"regularizer_strength": [0.1]}, ValueError, "needs a `regularizer`"),
        ({"arguments": 3}, TypeError, "`arguments` must be a mapping or 'auto'"),
    ],
)
def test_what_is_wrong_shows_at_once(keys, error, words):
    with pytest.raises(error, match=words):
        TrainingSpace(**keys)


def test_an_unknown_key_offers_near_ones():
    with pytest.raises(ValueError, match="no key 'learning_rat'. Did you mean 'learning_rate'"):
        TrainingSpace.from_dict({"learning_rat": [0.1]})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((1.0, 0.5), "`high` must be a number above 1.0"), ((0.0, 1.0, "log"), "`low` must be a number above 0"),
     ((0.1, 1.0, "logg"), "Did you mean 'log'"), ((1, 9, "log", 1), "`step` must be a number above 1")],
)  # fmt: skip
def test_ranges_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        Range(*arguments)

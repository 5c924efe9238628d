"""The catalog read from source text names what the imported package has, no more and no less."""

import dataclasses
import importlib
import inspect

import pytest

from keras_trainkit import optimizers
from keras_trainkit.recipes import catalog


def test_optimizer_names_are_those_of_the_registry():
    assert sorted(catalog.optimizer_names()) == sorted(optimizers.list())


def test_optimizers_tell_what_their_classes_tell():
    for part in catalog.parts("optimizers"):
        known = dataclasses.asdict(optimizers.info(part.name)) if part.is_class else None
        assert part.info == known
    assert all(part.info is None for part in catalog.parts() if part.kind != "optimizers")


@pytest.mark.parametrize("kind", [kind for kind in catalog.KINDS if kind != "optimizers"])
def test_parts_are_the_public_names_of_the_subpackage(kind):
    module = importlib.import_module(f"keras_trainkit.{kind}")
    public = {name for name in getattr(module, "__all__", []) if callable(getattr(module, name))}
    assert {part.name for part in catalog.parts(kind)} == public


def test_kind_and_summary_come_from_the_object():
    for part in catalog.parts():
        thing = getattr(importlib.import_module(f"keras_trainkit.{part.kind}"), part.name)
        assert part.is_class == inspect.isclass(thing)
        assert part.summary == " ".join(inspect.getdoc(thing).partition("\n\n")[0].split())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("chasticdep", {"StochasticDepth"}),
        ("CHASTICDEP", {"StochasticDepth"}),
        ("stochasticdep*", {"StochasticDepth"}),
        ("stochasticdep?h", {"StochasticDepth"}),
        ("stochasticdep?", set()),
        ("nothing", set()),
    ],
)
def test_patterns(pattern, expected):
    assert {part.name for part in catalog.parts(pattern)} == expected


def test_a_kind_is_a_pattern():
    assert {part.kind for part in catalog.parts("Schedules")} == {"schedules"}

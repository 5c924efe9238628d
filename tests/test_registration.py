"""Importing the package is enough to load saved models: every class that says it is serializable is registered."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import keras_trainkit

PROGRAM = """
import json, keras_trainkit, keras
print(json.dumps([name for name in keras.saving.get_custom_objects() if name.startswith("keras_trainkit>")]))
"""
REGISTERING = {"register_keras_serializable", "register_transform"}


def registered_in_source():
    for path in pathlib.Path(keras_trainkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list}
                if names & REGISTERING:
                    yield node.name


@pytest.mark.slow
def test_importing_the_package_registers_every_class():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    known = {name.partition(">")[2] for name in json.loads(done.stdout.splitlines()[-1])}
    expected = set(registered_in_source())
    assert len(expected) > 80 and "RateByBatch" in expected
    assert expected - known == set()


def test_no_two_classes_are_registered_under_one_name():
    import keras

    found = {}
    for kind in [keras_trainkit.schedules, keras_trainkit.transforms, keras_trainkit.layers, keras_trainkit.callbacks,
                 keras_trainkit.regularizers, keras_trainkit.initializers, keras_trainkit.optimizers]:  # fmt: skip
        for part in vars(kind).values():
            if isinstance(part, type) and part.__module__.startswith("keras_trainkit."):
                found.setdefault(keras.saving.get_registered_name(part), set()).add(part)
    assert {name: kinds for name, kinds in found.items() if len(kinds) > 1} == {}
    assert "keras_trainkit>Scale" in found and "keras_trainkit>ScaleSchedule" in found

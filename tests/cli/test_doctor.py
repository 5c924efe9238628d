"""`keras-trainkit doctor`: facts about this machine, and the limits that follow from facts."""

import json

import keras
import pytest

from keras_trainkit import precision
from keras_trainkit.cli import doctor
from keras_trainkit.cli.main import main
from keras_trainkit.recipes.recipe import PRECISIONS

pytestmark = pytest.mark.tensorflow


def test_facts_of_this_machine(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["keras"] == keras.__version__
    assert facts["backend"] == "tensorflow" and facts["import_error"] is None
    assert facts["devices"][0]["type"] == "CPU"
    assert facts["machine"]["memory_gib"] >= facts["machine"]["memory_available_gib"] > 0
    by_name = {answer["policy"]: answer for answer in facts["precisions"]}
    assert set(by_name) == set(PRECISIONS)
    assert by_name["float32"]["speed"] == 1.0
    assert all(answer["speed"] > 0 for answer in by_name.values() if answer["works"])


def test_text_has_a_line_for_each_fact(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in (
        f"keras           {keras.__version__}",
        "mixed_bfloat16",
        "CPU:0",
        "GiB free",
        "What will not work here",
    ):
        assert words in out


def test_the_recipe_takes_the_precisions_that_there_are():
    assert set(PRECISIONS) == {answer["policy"] for answer in precision.supported()}


def facts(**changes):
    answers = [{"policy": "mixed_float16", "works": True, "fast": True, "note": "", "speed": 1.0, "device": "GPU:0"}]
    given = {
        "versions": {"keras": "3.12.0", "tensorflow": "2.20.1"},
        "machine": {"memory_available_gib": 10.0, "disk_free_gib": 10.0},
        "backend": "tensorflow",
        "devices": [{"type": "CPU", "name": "CPU:0"}, {"type": "GPU", "name": "GPU:0"}],
        "precisions": answers,
        "import_error": None,
    }
    return {**given, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": {"keras": "3.9.2", "tensorflow": "2.20.0"}}, "keras 3.9.2 is too old; versions 3.10 to"),
        ({"versions": {"keras": "3.99.0", "tensorflow": "2.20.0"}}, "keras 3.99.0 is newer"),
        ({"versions": {"keras": "4.0", "tensorflow": "2.20.0"}}, "keras 4.0 is newer"),
        ({"versions": {"keras": "3.12.0", "tensorflow": None}}, "tensorflow is not installed"),
        ({"backend": "jax"}, "set KERAS_BACKEND=tensorflow"),
        ({"import_error": "no AVX", "devices": [], "precisions": []}, "cannot be imported (no AVX)"),
        ({"devices": [{"type": "CPU", "name": "CPU:0"}]}, "no GPU is visible"),
        ({"devices": [{"type": "CPU", "name": "CPU:0"}]}, "logical CPUs"),
        ({"machine": {"memory_available_gib": 0.5, "disk_free_gib": 10.0}}, "0.5 GiB of memory"),
        ({"machine": {"memory_available_gib": 9.0, "disk_free_gib": 0.2}}, "0.2 GiB are free on the disk"),
        (
            {"precisions": [{"policy": "mixed_float16", "works": True, "fast": False, "note": "", "speed": 0.5}]},
            "mixed_float16 gives right results, but",
        ),
        (
            {"precisions": [{"policy": "float64", "works": False, "fast": False, "note": "no doubles", "speed": None}]},
            "float64 does not work: no doubles",
        ),
    ],
)  # fmt: skip
def test_limits_say_what_will_not_work_and_why(changes, words):
    assert not any(words in limit for limit in doctor.limits(facts()))
    assert any(words in limit for limit in doctor.limits(facts(**changes)))


def test_a_precision_that_fails_is_told_and_not_raised(monkeypatch):
    def broken(device, dtype):
        if dtype == "float16":
            raise RuntimeError("no kernel\nfor half")
        return 1.0

    monkeypatch.setattr(doctor, "product_seconds", broken)
    answers = {
        answer["policy"]: answer for answer in doctor.precisions([{"type": "CPU", "name": "CPU:0", "model": ""}])
    }
    assert answers["mixed_float16"]["works"] is False and answers["mixed_float16"]["note"] == "no kernel for half"
    assert answers["float32"]["speed"] == 1.0

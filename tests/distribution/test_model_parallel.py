"""Model parallelism with Keras on JAX. It needs 8 devices from the start, so it runs in a process of its own.

None of it is marked slow, although it takes a minute: the environment of JAX leaves out what is slow.
"""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest
from cases import CASES

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution is for JAX: tox -e jax")

HERE = pathlib.Path(__file__).parent
ROWS = {case.name: case for case in CASES if case.name in ("adamw", "adafactor", "muon", "lion", "shampoo")}


@pytest.fixture(scope="module")
def found():
    """What parallel_program.py printed."""
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    page = HERE.parents[1] / "docs" / "model-parallel.md"
    program = [sys.executable, str(HERE / "parallel_program.py"), str(page), ",".join(ROWS)]
    done = subprocess.run(program, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ROWS)
def test_two_by_four_devices_equal_one(found, name):
    row = found["rows"][name]
    assert row["moved"] > 5e-3
    assert row["model parallel"] < ROWS[name].replica_tolerance
    assert row["strange slots"] == []


@pytest.mark.parametrize("name", ["adamw", "shampoo"])
def test_data_parallel_equals_one_device(found, name):
    assert found["rows"][name]["data parallel"] < ROWS[name].replica_tolerance


@pytest.mark.parametrize("name", ROWS)
def test_each_device_holds_what_the_layout_said(found, name):
    assert found["rows"][name]["planned"] == found["rows"][name]["measured"]


def test_a_transformer_on_two_by_four_devices_equals_one(found):
    assert found["transformer"]["moved"] > 0.05
    assert found["transformer"]["difference"] < 1e-5
    shards = found["transformer"]["shards"]
    assert shards["embedding/embeddings"] == [5, 16]
    assert shards["multi_head_attention/query/kernel"] == [16, 1, 4]
    assert shards["multi_head_attention/attention_output/kernel"] == [1, 4, 16]
    assert (shards["dense/kernel"], shards["dense_1/kernel"]) == ([16, 8], [8, 16])


def test_keras_looks_slots_of_another_shape_up_in_the_layout_map(found):
    # The fault: a pattern that finds the kernel finds its rows and columns, too, which have one axis and not two.
    assert "Error" in found["keras"]["keras"]
    assert found["keras"]["keras_trainkit"] == [[None], ["model"]]


def test_slots_too_large_to_make_on_one_device(found):
    assert found["large"] == {"rows": 2**16, "mean": 1.0}


def test_the_code_of_the_page_runs(found):
    assert found["page"] == 2

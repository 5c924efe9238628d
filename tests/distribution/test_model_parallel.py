"""Model parallelism with Keras on JAX. It needs 8 devices from the start, so it runs in processes of its own.

None of it is marked slow, although it takes a minute: the environment of JAX leaves out what is slow. Some optimizers
stand for the others there; all run by `KERAS_BACKEND=jax pytest --thorough tests/distribution`.
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
ROWS = {case.name: case for case in CASES}
SOME = ("adamw", "adafactor", "muon", "lion", "shampoo")
OTHERS = [name for name in ROWS if name not in SOME]


def found(*parts):
    """What parallel_program.py found."""
    # Compiling takes longest by far, so it optimizes nothing.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    program = [sys.executable, str(HERE / "parallel_program.py"), *parts]
    done = subprocess.run(program, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "names", [SOME, *(pytest.param(OTHERS[i::5], marks=pytest.mark.thorough) for i in range(5))], ids=" ".join
)
def test_optimizers_on_eight_devices_equal_one_and_hold_what_the_layout_said(names):
    rows = found(*names)
    assert set(rows) == set(names)
    for name, row in rows.items():
        # Some begin very slowly: they first gather what they know.
        assert row["moved"] > (9e-4 if name in SOME else 5e-5), name
        assert row["model parallel"] < ROWS[name].replica_tolerance, name
        assert row.get("data parallel", 0.0) < ROWS[name].replica_tolerance, name
        assert row["strange slots"] == [], name
        assert row["planned"] == row["measured"], name
    assert {name for name in rows if "data parallel" in rows[name]} == {"adamw", "shampoo"} & set(names)


def test_a_transformer_on_two_by_four_devices_equals_one():
    row = found("transformer", str(HERE.parents[1] / "docs" / "model-parallel.md"))
    assert row["transformer"]["moved"] > 0.05
    assert row["transformer"]["difference"] < 1e-5
    shards = row["transformer"]["shards"]
    assert shards["embedding/embeddings"] == [5, 16]
    assert shards["multi_head_attention/query/kernel"] == [16, 1, 4]
    assert shards["multi_head_attention/attention_output/kernel"] == [1, 4, 16]
    assert (shards["dense/kernel"], shards["dense_1/kernel"]) == ([16, 8], [8, 16])
    assert row["page"] == [2, True]


def test_slots_that_keras_cannot_place():
    row = found("slots")
    # The fault: a pattern that finds the kernel finds its rows and columns, too, which have one axis and not two.
    assert "Error" in row["looked up"]["keras"]
    assert row["looked up"]["keras_trainkit"] == [[None], ["model"]]
    assert row["large"] == {"rows": 2**16, "mean": 1.0}

"""Four replicas equal one device. A process can hold one number of replicas, so these run in one of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
from keras_trainkit import distribution

strategy = distribution.strategy(4)

from cases import CASES
from keras_trainkit.testing import contracts

rows = {case.name: case for case in CASES}
for name in ("adamw", "muon", "lazyadam"):
    contracts.replicas_agree(rows[name], strategy)
    print(name, "dense")
for name in ("adamw", "lazyadam"):
    contracts.embeddings_agree(rows[name], strategy)
    print(name, "sparse")
contracts.overflow_skips_everywhere(rows["adamw"], strategy)
print("overflow")
"""


@pytest.mark.slow
@pytest.mark.tensorflow
def test_four_replicas_equal_one_device():
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    tests = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tests, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-6:] == [
        "adamw dense", "muon dense", "lazyadam dense", "adamw sparse", "lazyadam sparse", "overflow"
    ]  # fmt: skip

"""Four replicas equal one device, and so does one. A process can hold one number of replicas: each has its own."""

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
for kind, bound in (("clipvalue", 0.01), ("clipnorm", 0.05)):
    contracts.replicas_agree(rows["sgd-momentum"], strategy, clipping={kind: bound})
    print("sgd", kind)
for name in ("adamw", "lazyadam"):
    contracts.embeddings_agree(rows[name], strategy)
    print(name, "sparse")
contracts.overflow_skips_everywhere(rows["adamw"], strategy)
print("overflow")
"""


ONE = """
import keras, tensorflow as tf
from keras_trainkit import optimizers

strategy = tf.distribute.MirroredStrategy(["CPU:0"])

from cases import CASES
from keras_trainkit.testing import contracts

rows = {case.name: case for case in CASES}
with strategy.scope():
    theirs = contracts.small_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
try:
    contracts.fit(theirs, epochs=1)
except RuntimeError as error:
    print("Keras stops", "merge_call" in str(error))
contracts.replicas_agree(rows["adamw"], strategy)
contracts.embeddings_agree(rows["adamw"], strategy)
contracts.overflow_skips_everywhere(rows["adamw"], strategy)
print("all right")
"""


def output(program):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    tests = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tests, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_four_replicas_equal_one_device():
    assert output(PROGRAM)[-8:] == [
        "adamw dense", "muon dense", "lazyadam dense", "sgd clipvalue", "sgd clipnorm", "adamw sparse",
        "lazyadam sparse", "overflow",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_strategy_of_one_replica_equals_one_device():
    assert output(ONE)[-2:] == ["Keras stops True", "all right"]

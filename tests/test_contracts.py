"""Every optimizer through every contract. A new optimizer is a row in cases.py, nothing here."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from cases import CASES

from keras_trainkit import optimizers
from keras_trainkit.testing import contracts
from keras_trainkit.testing.problems import Stepper

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# The dearer contracts: in every environment for some rows, on the newest Keras alone for the others.
AT_LENGTH = [pytest.param(c, id=c.name, marks=[] if c.everywhere else [pytest.mark.exhaustive]) for c in CASES]
case_at_length = pytest.mark.parametrize("case", AT_LENGTH)
GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "optimizers.json"


def test_every_optimizer_has_a_row_that_varies_its_arguments():
    assert set(optimizers.classes()) == {case.make for case in CASES if case.others}


@every_case
def test_configuration_survives(case):
    contracts.keeps_configuration(case)


@pytest.mark.parametrize("case", [p for p, case in zip(AT_LENGTH, CASES, strict=True) if case.others])
def test_every_argument_counts(case):
    contracts.feels_every_argument(case)


@every_case
@pytest.mark.every_row
def test_equals_numpy_twin(case):
    contracts.equals_twin(case)


@pytest.mark.parametrize(
    ("case", "golden"),
    [pytest.param(c, g, id=f"{c.name}-{g.method}-{g.source[:8]}") for c in CASES for g in c.golden],
)
def test_agrees_with_third_parties(case, golden):
    if not GOLDEN.exists():
        pytest.skip("needs the vectors of third parties: ../shared/golden/optimizers.json")
    contracts.agrees_with_golden(case, json.loads(GOLDEN.read_text()), golden)


@case_at_length
def test_converges(case):
    contracts.converges(case)


@every_case
def test_keeps_dtypes_and_state_size(case):
    contracts.keeps_dtypes(case)


@case_at_length
def test_follows_window_policy(case):
    contracts.follows_window_policy(case)


@case_at_length
@pytest.mark.tensorflow
def test_rests_at_rate_zero(case):
    contracts.rests_at_rate_zero(case)


@case_at_length
def test_micro_batches_equal_big_ones(case):
    contracts.micro_batches_equal_big_ones(case)


@case_at_length
def test_resumes_exactly(case, tmp_path, request):
    """On one device, and on two replicas where there are such."""
    replicas = request.getfixturevalue("two_replicas") if keras.backend.backend() == "tensorflow" else None
    contracts.resumes_exactly(case, tmp_path, replicas)


@case_at_length
@pytest.mark.tensorflow
def test_replicas_agree(case, two_replicas):
    contracts.replicas_agree(case, two_replicas)


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.replica_tolerance > 2e-6], ids=lambda case: case.name)
def test_where_replicas_agree_less_it_is_rounding_alone(case, two_replicas):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        contracts.replicas_agree(dataclasses.replace(case, replica_tolerance=1e-10), two_replicas)
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.mark.tensorflow
@pytest.mark.parametrize("clipping", [{"clipvalue": 0.01}, {"clipnorm": 0.05}], ids=["by value", "by norm"])
def test_replicas_agree_with_other_clipping(clipping, two_replicas):
    (case,) = [case for case in CASES if case.name == "sgd-momentum"]
    contracts.replicas_agree(case, two_replicas, clipping=clipping)


@case_at_length
@pytest.mark.tensorflow
def test_sparse_equals_dense(case):
    contracts.sparse_equals_dense(case)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("adamw", "lazyadam", "adafactor")], ids=lambda c: c.name
)
def test_embeddings_agree_on_replicas(case, two_replicas):
    contracts.embeddings_agree(case, two_replicas)


@case_at_length
@pytest.mark.tensorflow
def test_overflow_skips_everywhere(case, two_replicas):
    contracts.overflow_skips_everywhere(case, two_replicas)


@case_at_length
@pytest.mark.tensorflow
def test_compiled_equals_graph(case):
    contracts.compiled_equals_graph(case)


def _trajectories() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    initial = [rng.normal(size=(4, 3)), rng.normal(size=3)]
    gradients = [[rng.normal(size=p.shape) for p in initial] for _ in range(20)]
    ends = {case.name: Stepper(case.optimizer(0.03), initial, dtype="float32").run(gradients) for case in CASES}
    return {f"{name}.{i}": p for name, ps in ends.items() for i, p in enumerate(ps)}


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="compares JAX with TensorFlow: run it on JAX (tox -e jax)")
def test_jax_equals_tensorflow(tmp_path):
    program = (
        f"import numpy, test_contracts; numpy.savez({str(tmp_path / 'end.npz')!r}, **test_contracts._trajectories())"
    )
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", program], cwd=pathlib.Path(__file__).parent, env=environment, check=True)
    ours = _trajectories()
    with np.load(tmp_path / "end.npz") as theirs:
        assert set(theirs) == set(ours)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=2e-6)

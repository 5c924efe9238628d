"""Trials on a Ray cluster of this machine: what ends an actor costs its trial only."""

import os
import sys

import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")
pytest.importorskip("ray", reason="the extra `ray` is not installed")

import ray
from searching import proposed, search
from test_isolated_trials import rough

from keras_trainkit import tuning

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {"env_vars": {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"}}
    ray.init(
        num_cpus=2, include_dashboard=False, runtime_env=environment, log_to_driver=False,
        object_store_memory=100_000_000,
    )  # fmt: skip
    yield
    ray.shutdown()


def test_killed_raising_and_hanging_trials_fail_with_their_reason(tmp_path):
    tuner = rough(tmp_path, [20, 2, 1, 3], runner=tuning.RayRunner(cpus=1), workers=1)
    tuner.search(marks=str(tmp_path / "marks"))
    found = {t.hyperparameters.get("fate"): t for t in tuner.oracle.trials.values()}
    reasons = {1: "its actor ended: ActorDiedError on ", 2: "RuntimeError: the data is bad", 3: "no epoch ended within"}
    for fate, reason in reasons.items():
        assert found[fate].status == "FAILED" and reason in found[fate].message.splitlines()[0], found[fate].message
    assert found[20].status == "COMPLETED" and found[20].score == 20 / 3
    assert len(found[20].metrics.get_history("val_loss")) == 3
    trained_in = [int(line.split()[1]) for line in (tmp_path / "marks").read_text().splitlines()]
    assert os.getpid() not in trained_in and len(set(trained_in)) == 2
    assert ray.is_initialized()  # it was there before, and stays


@pytest.mark.thorough
def test_a_search_proposes_and_prunes_as_with_processes(tmp_path):
    arguments = {"max_trials": 10, "max_epochs": 16, "epochs": 16}
    there = search(tmp_path / "ray", tuning.SuccessiveHalving, workers=1, runner=tuning.RayRunner(), **arguments)
    here = search(tmp_path / "here", tuning.SuccessiveHalving, **arguments)
    assert proposed(there) == proposed(here)
    assert there.oracle.ended_early == here.oracle.ended_early != {}


def test_resources_that_no_node_has_are_said(capsys):
    runner = tuning.RayRunner(cpus=1, gpus=64, resources={"moon": 1})
    runner.open(b"")
    runner.close()
    assert "no node of the cluster has {'CPU': 1.0, 'GPU': 64.0, 'moon': 1}" in capsys.readouterr().out

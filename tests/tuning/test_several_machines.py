"""Several processes that work on one search: nothing lost, nothing proposed twice, whoever is killed."""

import json
import os
import signal
import time

import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")
pytest.importorskip("psycopg", reason="the extra `postgresql` is not installed")

import optuna
import postgres_server
import psutil
from machines import Machines
from searching import proposed, search

from keras_trainkit import tuning

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines():
    made = Machines()
    yield made
    made.end()


@pytest.fixture(scope="session")
def server():
    folder = postgres_server.programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    made = postgres_server.Server(folder)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(params=["postgresql", "sqlite"])
def storage(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return request.getfixturevalue("server").new_database()


def runs(folder):
    path = folder / "runs"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(ready, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbers(trials):
    return [str(number).zfill(len(str(trials))) for number in range(trials)]


def check(folder, storage, trials):
    """All trials ended once, with values of their own; each oracle that went to the end saw all of them."""
    study = optuna.load_study(study_name="p", storage=storage)
    ended = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    found = [trial.user_attrs["proposal"] for trial in ended]
    assert sorted(proposal["trial_id"] for proposal in found) == numbers(trials)
    assert len({json.dumps(proposal["values"], sort_keys=True) for proposal in found}) == trials
    assert sorted(trial.user_attrs["record"]["order"] for trial in ended) == list(range(1, trials + 1))
    assert not [trial for trial in study.trials if not trial.state.is_finished()]
    best = min(ended, key=lambda trial: trial.value)
    for path in folder.glob("*.json"):
        seen = json.loads(path.read_text())
        assert seen["trials"] == trials and len(seen["ended"]) == trials, path
        assert seen["best"] == [best.user_attrs["proposal"]["trial_id"], best.value]
    return study


def test_two_that_start_at_the_same_moment_share_the_trials(machines, storage, tmp_path):
    both = [machines.start(tmp_path, name=name, storage=storage, max_trials=24) for name in "ab"]
    machines.wait(*both)
    check(tmp_path, storage, 24)
    done = runs(tmp_path)
    assert len(done) == 24 and {who for _, who, _ in done} == {"a", "b"}
    assert {path.name for path in tmp_path.glob("*.json")} == {"a.json", "b.json"}


def test_a_random_search_of_three_proposes_what_one_does(machines, storage, tmp_path):
    three = [machines.start(tmp_path, name=name, storage=storage, base="RandomSearch", max_trials=18) for name in "abc"]
    machines.wait(*three)
    check(tmp_path, storage, 18)
    whole = search(tmp_path / "whole", tuning.RandomSearch, max_trials=18)
    assert proposed(search(tmp_path / "look", storage=storage, max_trials=18, run=False)) == proposed(whole)


def test_a_killed_one_loses_nothing_and_another_takes_over(machines, storage, tmp_path):
    arguments = {"storage": storage, "max_trials": 16, "seconds": 0.3}
    first, second, third = (machines.start(tmp_path, name=name, **arguments) for name in "abc")
    wait_until(lambda: len({who for _, who, _ in runs(tmp_path)}) == 3)
    machines.kill(first)
    wait_until(lambda: len(runs(tmp_path)) >= 9)
    machines.kill(second)
    fourth = machines.start(tmp_path, name="d", **arguments)
    machines.wait(third, fourth)
    check(tmp_path, storage, 16)
    again = sorted(trial_id for trial_id, _, _ in runs(tmp_path))
    assert len(again) <= 18 and len(set(again)) == 16
    assert not (tmp_path / "a.json").exists() and (tmp_path / "c.json").exists()


def test_a_machine_that_falls_silent_is_given_up_and_gives_up_itself(machines, server, tmp_path):
    """One is killed, one only held, and its trial ends elsewhere in the meantime; nobody sees their processes."""
    storage = server.new_database()
    arguments = {"storage": storage, "max_trials": 6, "seconds": 0.5, "elsewhere": True, "grace_period": 2.0}
    machines.wait(machines.start(tmp_path, name="a", fate="SIGKILL", **arguments))
    held = machines.start(tmp_path, name="b", fate="SIGSTOP", **arguments)
    wait_until(lambda: psutil.Process(held).status() == psutil.STATUS_STOPPED)
    last = machines.start(tmp_path, name="c", **arguments)
    machines.wait(last)
    os.kill(held, signal.SIGCONT)
    machines.wait(held)
    check(tmp_path, storage, 6)
    assert sorted(trial_id for trial_id, _, _ in runs(tmp_path)) == sorted([*numbers(6), "0", "1"])
    assert "runs in another process, which had heard nothing of this one" in (tmp_path / "b.log").read_text()


def test_an_outage_is_waited_for(machines, server, tmp_path):
    storage = server.new_database()
    both = [
        machines.start(tmp_path, name=n, storage=storage, max_trials=40, elsewhere=True, grace_period=6.0) for n in "ab"
    ]
    wait_until(lambda: len(runs(tmp_path)) >= 6)
    server.stop()
    time.sleep(6.5)  # more than the grace period: nobody is dead for having been unable to write
    server.start()
    machines.wait(*both)
    check(tmp_path, storage, 40)
    assert len(runs(tmp_path)) == 40
    for name in "ab":
        assert "Search: the database does not answer" in (tmp_path / f"{name}.log").read_text()


def test_an_outage_that_lasts_ends_the_search_with_its_reason(machines, server, tmp_path):
    storage = server.new_database()
    one = machines.start(tmp_path, name="a", storage=storage, max_trials=12, wait=1)
    wait_until(lambda: len(runs(tmp_path)) >= 3)
    server.stop()
    machines.wait(one)
    server.start()
    assert "ConnectionError: the database did not answer for 1 s" in (tmp_path / "a.log").read_text()
    machines.wait(machines.start(tmp_path, name="b", storage=storage, max_trials=12))
    check(tmp_path, storage, 12)

"""Searches that are killed go on as if they had not been; what changed in between is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras_tuner
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import Killed, curve, declare, killed_after, proposed, search

from keras_trainkit import tuning

GRID = {"base": tuning.GridSearch, "space": lambda hp: {"x": 0.5, "kind": hp.Choice("kind", ["a", "b"]),
                                                        "layers": hp.Int("layers", 1, 4)}}  # fmt: skip


@pytest.mark.parametrize("base", [tuning.RandomSearch, tuning.TPESearch])
@pytest.mark.parametrize(("method", "calls"), [("update_trial", 50), ("end_trial", 13), ("_save_trial", 50)])
def test_a_killed_search_proposes_what_the_uninterrupted_one_does(tmp_path, base, method, calls):
    whole = search(tmp_path / "whole", base, max_trials=16)
    killed = search(tmp_path / "killed", base, max_trials=16, run=False)
    with killed_after(killed, calls, method):
        killed.search()
    again = search(tmp_path / "killed", base, max_trials=16)
    assert 5 < len(killed.oracle.start_order) < 16
    assert proposed(again) == proposed(whole)
    assert [t.score for t in again.oracle.trials.values()] == [t.score for t in whole.oracle.trials.values()]
    assert len({json.dumps(values, sort_keys=True) for values in proposed(again)}) == 16


def test_every_proposal_may_be_the_last(tmp_path):
    """A kill between the first write of a proposal and its last: nothing is lost, and nothing proposed twice."""
    whole = search(tmp_path / "whole", max_trials=4)
    for method in ("ask", "propose", "finish", "_tell"):
        folder = tmp_path / method
        killed = search(folder, max_trials=4, run=False)
        base, original = killed.oracle._base, getattr(killed.oracle._base, method)
        left = [3]

        def dying(*args, original=original, left=left, method=method, **kwargs):
            left[0] -= 1
            if left[0] == 0 and method != "ask":
                raise Killed
            result = original(*args, **kwargs)
            if left[0] == 0:
                raise Killed
            return result

        setattr(base, method, dying)
        with pytest.raises(Killed):
            killed.search()
        again = search(folder, max_trials=4)
        assert proposed(again) == proposed(whole), method
        assert all(trial.status == "COMPLETED" for trial in again.oracle.trials.values()), method
        assert [trial.state.name for trial in again.study.trials].count("COMPLETE") == 4, method


def test_torn_files_are_rebuilt(tmp_path):
    first = search(tmp_path, max_trials=5)
    for path in (tmp_path / "p").rglob("*.json"):
        path.write_text(path.read_text()[:17])
    again = search(tmp_path, max_trials=5, run=False)
    before = {trial_id: trial.get_state() for trial_id, trial in first.oracle.trials.items()}
    assert {trial_id: trial.get_state() for trial_id, trial in again.oracle.trials.items()} == before
    assert again.oracle.end_order == first.oracle.end_order
    again.search()
    assert json.loads((tmp_path / "p" / "oracle.json").read_text())["start_order"] == first.oracle.start_order
    assert not list((tmp_path / "p").rglob("*.partial"))


def test_a_grid_goes_on_where_it_was(tmp_path):
    killed = search(tmp_path, run=False, **GRID)
    with killed_after(killed, 3, "end_trial"):
        killed.search()
    found = proposed(search(tmp_path, **GRID))
    assert sorted((v["kind"], v["layers"]) for v in found) == [(k, n) for k in "ab" for n in range(1, 5)]


def test_more_trials_go_on_with_the_same_ones(tmp_path):
    search(tmp_path / "grown", tuning.TPESearch, max_trials=9)
    grown = search(tmp_path / "grown", tuning.TPESearch, max_trials=14)
    assert proposed(grown) == proposed(search(tmp_path / "whole", tuning.TPESearch, max_trials=14))


def test_what_changed_is_said(tmp_path, capsys):
    def wider(hp):
        return {"x": hp.Float("x", -2.0, 2.0), "kind": hp.Choice("kind", ["b", "c"]), "layers": hp.Int("new", 1, 2)}

    search(tmp_path, max_trials=3)
    search(tmp_path, space=wider, seed=4, max_trials=5)
    again = capsys.readouterr().out
    for said in ("'x' changed from", "count where they lie inside the new range", "'kind' changed from",
                 "not for this one, whose values differ", "'layers|kind=b' is no longer searched", "'new' is new",
                 "`seed` changed from 0 to 4"):  # fmt: skip
        assert said in again
    assert len(proposed(search(tmp_path, space=wider, seed=4, max_trials=5))) == 5
    with pytest.raises(ValueError, match=r"`objective` must be that of the search"):
        search(tmp_path, objective=keras_tuner.Objective("val_loss", "max"), max_trials=5)


def test_overwrite_begins_anew(tmp_path):
    search(tmp_path, max_trials=3)
    assert len(search(tmp_path, max_trials=3, overwrite=True, run=False).oracle.trials) == 0


def test_an_unchanged_search_says_nothing_of_changes(tmp_path, capsys):
    search(tmp_path, max_trials=3)
    search(tmp_path, max_trials=3)
    assert "changed from" not in capsys.readouterr().out


def test_entries_that_trials_find_are_searched_and_stay_after_a_kill(tmp_path):
    def growing(hp):
        return declare(hp)

    def run(folder, **kwargs):
        tuner = search(folder, tuning.RandomSearch, space=growing, max_trials=8, run=False, **kwargs)
        original = tuner.run_trial

        def run_trial(trial, **kwargs):
            trial.hyperparameters.Choice("late", [1, 2, 3, 4, 5])
            return original(trial, **kwargs)

        tuner.run_trial = run_trial
        return tuner

    whole = run(tmp_path / "whole")
    whole.search()
    assert len({values["late"] for values in proposed(whole)}) > 1
    killed = run(tmp_path / "killed")
    with killed_after(killed, 4, "end_trial"):
        killed.search()
    again = run(tmp_path / "killed")
    again.search()
    assert proposed(again) == proposed(whole)


PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
from searching import curve, search
from keras_trainkit import tuning

def slow(values, epochs):
    time.sleep(0.05)
    return curve(values, epochs)

search({target!r}, tuning.TPESearch, score=slow, max_trials=30)
"""


@pytest.mark.slow
def test_kill_minus_9_at_any_moment(tmp_path):
    whole = proposed(search(tmp_path / "whole", tuning.TPESearch, max_trials=30))
    target = tmp_path / "killed"
    program = PROGRAM.format(folder=str(Path(__file__).parent), target=str(target))
    kills = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program], env=os.environ)
        aim = len(list(target.glob("p/trial_*"))) + 4
        while len(list(target.glob("p/trial_*"))) < aim and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    again = search(target, tuning.TPESearch, max_trials=30)
    assert proposed(again) == whole
    assert all(trial.status == "COMPLETED" for trial in again.oracle.trials.values())
    assert again.oracle.trials["00"].score == min(curve(whole[0], 4))

"""The brackets of Hyperband, without training."""

import json

import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import curve, killed_after, proposed, search

from keras_trainkit import tuning

ARGUMENTS = {"base": tuning.Hyperband, "max_epochs": 9, "factor": 3}


def test_rounds_keep_the_best_and_brackets_have_the_sizes_of_the_paper(tmp_path):
    tuner = search(tmp_path, **ARGUMENTS)
    groups = {}
    for trial in tuner.oracle.trials.values():
        values = trial.hyperparameters.values
        groups.setdefault((values["tuner/bracket"], values["tuner/round"]), []).append(trial)
    # S = 2: ceil(3/3 * 9) = 9, ceil(3/2 * 3) = 5 and ceil(3/1 * 1) = 3 trials, a third of them from round to round.
    assert {key: len(trials) for key, trials in groups.items()} == {
        (2, 0): 9, (2, 1): 3, (2, 2): 1, (1, 0): 5, (1, 1): 1, (0, 0): 3,
    }  # fmt: skip
    assert {t.hyperparameters.values["tuner/epochs"] for t in groups[2, 1]} == {3}
    for bracket, number in ((2, 1), (2, 2), (1, 1)):
        before = sorted(groups[bracket, number - 1], key=lambda trial: trial.score)
        best = {trial.trial_id for trial in before[: len(groups[bracket, number])]}
        assert {t.hyperparameters.values["tuner/trial_id"] for t in groups[bracket, number]} == best


def test_a_killed_hyperband_goes_on(tmp_path):
    whole = search(tmp_path / "whole", **ARGUMENTS)
    for ends in (3, 11):
        killed = search(tmp_path / str(ends), run=False, **ARGUMENTS)
        with killed_after(killed, ends, "end_trial"):
            killed.search()
        assert proposed(search(tmp_path / str(ends), **ARGUMENTS)) == proposed(whole)


def test_failed_trials_are_not_promoted_and_the_search_ends(tmp_path):
    def failing(values, epochs):
        if values["x"] > -0.5:
            raise RuntimeError("no")
        return curve(values, epochs)

    tuner = search(tmp_path, score=failing, **ARGUMENTS)
    trials = tuner.oracle.trials
    for trial in trials.values():
        parent = trial.hyperparameters.values.get("tuner/trial_id")
        assert parent is None or trials[parent].status == "COMPLETED"
    assert {trial.status for trial in trials.values()} == {"COMPLETED", "FAILED"}


def test_a_small_space_gives_smaller_brackets(tmp_path):
    def small(hp):
        return {"x": hp.Choice("x", [0.0, 0.25, 0.5, 1.0])}

    found = [v for v in proposed(search(tmp_path, space=small, **ARGUMENTS)) if v["tuner/round"] == 0]
    assert len({json.dumps(v["x"]) for v in found}) == len(found) == 4

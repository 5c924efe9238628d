"""Budgets, start points, finite spaces, pruning, failures and several objectives."""

import json
import math

import keras_tuner
import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

import optuna
from searching import LOSS, FakeModel, curve, proposed, search, synthetic

from keras_trainkit import tuning
from keras_trainkit.tuning import sampling


def finite(hp):
    return {"x": hp.Choice("x", [0.0, 0.25, 0.5]), "layers": hp.Int("layers", 1, 3), "flag": hp.Boolean("flag")}


@pytest.mark.parametrize("base", [tuning.RandomSearch, tuning.TPESearch, tuning.GridSearch, tuning.Search])
def test_a_finite_space_ends_when_it_is_exhausted_and_nothing_is_repeated(tmp_path, base):
    tuner = search(tmp_path, base, space=finite, max_trials=40, epochs=1)
    assert len({json.dumps(values, sort_keys=True) for values in proposed(tuner)}) == len(proposed(tuner)) == 18
    assert "tried" in tuner.oracle.stop_reason


def test_seeds(tmp_path):
    runs = [proposed(search(tmp_path / str(i), seed=seed, max_trials=6, epochs=1)) for i, seed in enumerate((0, 0, 1))]
    assert runs[0] == runs[1]
    assert not {values["x"] for values in runs[0]} & {values["x"] for values in runs[2]}


def test_a_search_without_seed_goes_on_with_its_own(tmp_path):
    first = search(tmp_path, seed=None, max_trials=2, epochs=1)
    assert search(tmp_path, seed=None, max_trials=3, epochs=1).oracle.seed == first.oracle.seed
    assert search(tmp_path / "b", seed=None, max_trials=1, epochs=1).oracle.seed != first.oracle.seed


def test_start_points_come_first_and_once(tmp_path):
    for _ in range(2):
        tuner = search(tmp_path, tuning.TPESearch, max_trials=5, run=False, epochs=1)
        tuner.enqueue(x=0.125, kind="b", layers=3)
        tuner.enqueue(kind="a")
    tuner.search()
    found = proposed(tuner)
    assert found[0] == {"x": 0.125, "kind": "b", "layers": 3}
    assert found[1]["kind"] == "a" and "layers" not in found[1]
    assert len(found) == 5 and found.count(found[0]) == 1
    with pytest.raises(ValueError, match=r"Received: 'lyers'. Did you mean 'layers'"):
        tuner.enqueue(lyers=3)
    with pytest.raises(ValueError, match="`x` must be a value of"):
        tuner.enqueue(x=7.0)


def test_epoch_budget_ends_within_a_trial_and_counts_over_runs(tmp_path):
    tuner = search(tmp_path, max_trials=99, epoch_budget=10)
    assert sum(len(t.intermediate_values) for t in tuner.study.trials) == 10
    assert [len(t.intermediate_values) for t in tuner.study.trials] == [4, 4, 2]
    assert "budget of 10 epochs" in tuner.oracle.trials["02"].message
    assert len(search(tmp_path, max_trials=99, epoch_budget=10).oracle.trials) == 3


def test_time_budget_counts_over_runs(tmp_path):
    def run():
        tuner = search(tmp_path, max_trials=99, time_budget=10.0, run=False, epochs=1)
        ticks = iter(np.arange(0.0, 1000.0, 0.5))
        tuner.oracle._clock = lambda: float(next(ticks))
        tuner.search()
        return tuner

    first = run()
    assert 1 <= len(first.oracle.trials) < 99 and "time budget of 10 s" in first.oracle.stop_reason
    assert len(run().oracle.trials) == len(first.oracle.trials)


def test_patience_ends_a_search_that_no_longer_improves(tmp_path):
    levels = iter([3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0])
    tuner = search(tmp_path, max_trials=99, patience=4, epochs=1, score=lambda values, epochs: [next(levels)])
    assert len(tuner.oracle.trials) == 6 and "4 trials in a row were no better" in tuner.oracle.stop_reason


@pytest.mark.parametrize("argument", [{"max_trials": 0}, {"time_budget": 0.0}, {"patience": 0}, {"seed": -1},
                                      {"epoch_budget": 1.5}, {"max_retries_per_trial": -1}])  # fmt: skip
def test_bad_arguments_are_named(tmp_path, argument):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(argument))}` must be"):
        search(tmp_path, run=False, **argument)


def pruned_search(tmp_path, **kwargs):
    kwargs = {"base": tuning.SuccessiveHalving, "max_epochs": 16, "max_trials": 24, "epochs": 16, **kwargs}
    return search(tmp_path, **kwargs)


def test_pruning_ends_what_falls_behind_and_keeps_whole_curves(tmp_path):
    tuner = pruned_search(tmp_path)
    early = tuner.oracle.ended_early
    assert 8 < len(early) < 24 and all("pruned at epoch" in reason for reason in early.values())
    states = [trial.state.name for trial in tuner.study.trials]
    assert states.count("PRUNED") == len(early) and states.count("COMPLETE") == 24 - len(early)
    best = tuner.oracle.get_best_trials()[0]
    assert best.trial_id not in early
    assert [o.value[0] for o in best.metrics.get_history("val_loss")] == curve(best.hyperparameters.values, 16)
    again = pruned_search(tmp_path, run=False)
    assert again.oracle.ended_early == early


def test_a_gaussian_process_is_told_the_best_value_of_a_pruned_trial(tmp_path):
    class ItsSampler(optuna.samplers.RandomSampler):
        """Random; the oracle takes it for a Gaussian process."""

    assert sampling.tells_best_value("gp", ItsSampler()) and not sampling.tells_best_value("tpe", ItsSampler())
    tuner = pruned_search(tmp_path, run=False)
    tuner.oracle._plan = sampling.Plan("tpe", tuner.oracle.plan.pruner)
    original, sampling.tells_best_value = sampling.tells_best_value, lambda sampler, made: True
    try:
        tuner.search()
    finally:
        sampling.tells_best_value = original
    assert len(tuner.oracle.ended_early) > 8
    for trial in tuner.study.trials:
        assert trial.state.name == "COMPLETE"
        assert trial.value == min(trial.intermediate_values.values())


def failing(values, epochs):
    if values["x"] > 0:
        raise RuntimeError("the disk is full")
    return [1.0, math.nan, 0.5, 0.5] if values["x"] > -0.5 else curve(values, epochs)


def test_failures_have_reasons_and_the_search_goes_on(tmp_path):
    tuner = search(tmp_path, score=failing, max_trials=20)
    trials = tuner.oracle.trials.values()
    assert len(trials) == 20
    for trial in trials:
        x = trial.hyperparameters.values["x"]
        assert trial.status == ("COMPLETED" if x <= -0.5 else "FAILED")
        if x > 0:
            assert trial.message.startswith("RuntimeError: the disk is full")
        elif x > -0.5:
            assert trial.message.startswith("NonfiniteError: `val_loss` is nan after epoch 2")
    assert {trial.status for trial in trials} == {"COMPLETED", "FAILED"}
    assert {trial.state.name for trial in tuner.study.trials} == {"COMPLETE", "FAIL"}


def test_failures_are_retried_with_fresh_curves(tmp_path):
    calls = []

    def third_time(values, epochs):
        calls.append(values["x"])
        return [0.1, math.nan] if len(calls) < 3 else [0.5, 0.4, 0.3, 0.2]

    tuner = search(tmp_path, score=third_time, max_trials=1, max_retries_per_trial=2)
    trial = tuner.oracle.trials["0"]
    assert len(calls) == 3 and len(set(calls)) == 1
    assert trial.status == "COMPLETED" and trial.score == 0.2
    assert [o.value for o in trial.metrics.get_history("val_loss")] == [[0.5], [0.4], [0.3], [0.2]]
    assert [t.state.name for t in tuner.study.trials] == ["FAIL", "FAIL", "COMPLETE"]


def test_as_many_failures_in_a_row_as_are_allowed(tmp_path):
    def broken(values, epochs):
        raise RuntimeError("no")

    tuner = search(tmp_path, score=broken, max_trials=9, max_consecutive_failed_trials=4, run=False)
    with pytest.raises(RuntimeError, match=r"4 trials in a row failed. The last one: RuntimeError: no"):
        tuner.search()
    assert len(tuner.oracle.trials) == 4


def test_several_objectives_have_a_front(tmp_path):
    class Two(tuning.TPESearch):
        def run_trial(self, trial, **kwargs):
            x = trial.hyperparameters.Float("x", 0.0, 1.0)
            return {"loss": x**2, "accuracy": 1 - (1 - x) ** 2 if x > 0.5 else 0.0}

    objective = [keras_tuner.Objective("loss", "min"), keras_tuner.Objective("accuracy", "max")]
    tuner = Two(objective=objective, max_trials=15, seed=0, directory=tmp_path)
    tuner.oracle.verbose = 0
    tuner.search()
    front = tuner.get_pareto_trials()
    points = [(t.metrics.get_last_value("loss"), -t.metrics.get_last_value("accuracy"))
              for t in tuner.oracle.trials.values()]  # fmt: skip
    best = {p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)}
    assert {(t.metrics.get_last_value("loss"), -t.metrics.get_last_value("accuracy")) for t in front} == best
    assert 1 < len(front) < 15


def test_search_chooses_and_says_why(monkeypatch):
    number, words = keras_tuner.HyperParameters(), keras_tuner.HyperParameters()
    number.Float("x", 0.0, 1.0)
    words.Float("x", 0.0, 1.0)
    words.Choice("kind", ["a", "b"])
    few = keras_tuner.HyperParameters()
    few.Int("n", 1, 5)
    choose = sampling.choose
    assert choose(few.space, max_trials=5, max_epochs=None).grid
    assert not choose(few.space, max_trials=4, max_epochs=None).grid
    for there, name in ((True, "gp"), (False, "tpe")):
        monkeypatch.setattr(sampling, "gp_is_there", lambda there=there: there)
        plan = choose(number.space, max_trials=9, max_epochs=26)
        assert plan.sampler == name and plan.pruner is not None
        assert choose(words.space, max_trials=9, max_epochs=26).sampler == "tpe"
    assert "'kind' is not a number" in choose(words.space, max_trials=9, max_epochs=26).reasons[0]
    assert "from epoch 2 on" in plan.reasons[1]
    for saves, epochs, first, factor in ((True, 27, 1, 3), (False, 27, 2, 2), (True, 52, 4, 2), (False, 52, 4, 2)):
        plan = choose(number.space, max_trials=9, max_epochs=epochs, saves=saves)
        assert (plan.pruner._min_resource, plan.pruner._reduction_factor) == (first, factor)
        assert f"from epoch {first} on, by factor {factor}" in plan.reasons[-1]
    assert choose(number.space, max_trials=9, max_epochs=26, objectives=2).pruner is None


def test_search_prints_its_choice(tmp_path, capsys):
    tuner = search(tmp_path, tuning.Search, max_trials=2, max_epochs=26, run=False)
    tuner.oracle.verbose = 1
    tuner.search(verbose=1)
    printed = capsys.readouterr().out
    assert "TPE: some hyperparameters are there only under a condition" in printed
    assert "successive halving from epoch 2 on" in printed


def test_without_torch_bayesian_optimization_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sampling, "gp_is_there", lambda: False)
    tuner = search(tmp_path, tuning.BayesianOptimization, max_trials=2, epochs=1)
    assert "torch" in capsys.readouterr().out and len(tuner.oracle.trials) == 2


@pytest.mark.slow
def test_the_gaussian_process_finds_the_bottom(tmp_path):
    pytest.importorskip("torch", reason="Optuna's Gaussian process needs torch")

    def number(hp):
        return {"x": hp.Float("x", -1.0, 1.0)}

    tuner = search(tmp_path, tuning.BayesianOptimization, space=number, max_trials=16, num_initial_points=5, epochs=1)
    assert abs(tuner.get_best_hyperparameters()[0].get("x") - 0.3) < 0.02
    again = search(tmp_path / "b", tuning.BayesianOptimization, space=number, max_trials=12, num_initial_points=5,
                   epochs=1)  # fmt: skip
    assert proposed(again) == proposed(tuner)[:12]


def test_faces(tmp_path):
    for base in (tuning.RandomSearch, tuning.GridSearch, tuning.TPESearch, tuning.BayesianOptimization,
                 tuning.SuccessiveHalving, tuning.Search, tuning.Hyperband):  # fmt: skip
        tuner = search(tmp_path / base.__name__, base, run=False)
        assert isinstance(tuner, keras_tuner.Tuner) and isinstance(tuner.oracle, keras_tuner.Oracle)
    assert FakeModel().stop_training is False and LOSS.direction == "min"
    with pytest.raises(TypeError, match="`oracle` must be a keras_trainkit"):
        tuning.Tuner(keras_tuner.oracles.RandomSearchOracle(objective="val_loss", max_trials=1), lambda hp: None)


def test_a_sampler_that_is_sure_of_itself_does_not_end_the_search(tmp_path):
    class Sure(optuna.samplers.RandomSampler):
        """Has found the best point, and proposes nothing else."""

        def sample_independent(self, study, trial, name, distribution):
            return 0.25

    def one(hp):
        return {"x": hp.Float("x", -1.0, 1.0)}

    made = synthetic(tuning.Tuner, one)(
        tuning.Oracle(LOSS, 6, seed=0, sampler=lambda seed: Sure(seed=seed)), directory=tmp_path, project_name="p"
    )
    made.oracle.verbose = 0
    made.search()
    values = [v["x"] for v in proposed(made)]
    assert len(values) == len(set(values)) == 6 and values[0] == 0.25

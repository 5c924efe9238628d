"""Population-based training: what is perturbed, who inherits from whom, and what is inherited."""

import json

import keras
import keras_tuner
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import killed_after, proposed, search

from keras_trainkit import optimizers, schedules, tuning
from keras_trainkit.tuning.perturbing import near, perturb
from keras_trainkit.tuning.population import PopulationBasedTraining

SMALL = {"base": PopulationBasedTraining, "population_size": 5, "generations": 4, "max_epochs": 8}


def everything(hp):
    """A hyperparameter of each kind."""
    hp.Float("rate", 1e-4, 1e-1, sampling="log")
    hp.Float("momentum", 0.5, 0.999, sampling="reverse_log")
    hp.Float("shift", -1.0, 1.0)
    hp.Float("stepped", 0.0, 1.0, step=0.25)
    hp.Int("layers", 1, 9)
    hp.Int("even", 2, 20, step=6)
    hp.Int("wide", 4, 1024, sampling="log")
    hp.Choice("units", [16, 32, 64, 128])
    hp.Choice("kind", ["a", "b"])
    hp.Boolean("flag")
    hp.Fixed("fixed", 3)
    with hp.conditional_scope("kind", ["b"]):
        hp.Float("only_b", 0.0, 1.0)


def drawn(seed):
    hp = keras_tuner.HyperParameters()
    everything(hp)
    values = perturb(hp.space, {}, np.random.default_rng(seed))
    return hp.space, values


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_perturbed_values_lie_in_the_space(seed, resample):
    space, values = drawn(seed)
    for _ in range(4):
        values = perturb(space, values, np.random.default_rng(seed + 1), resample_probability=resample)
        names = {p.name for p in space} - ({"only_b"} if values["kind"] == "a" else set())
        assert set(values) == names
        for parameter in space:
            if parameter.name in values and parameter.name != "fixed":
                assert tuning.spaces.to_study(parameter, values[parameter.name]) is not None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_without_drawing_anew_numbers_move_by_a_factor_and_the_rest_stays(seed):
    space, values = drawn(seed)
    new = perturb(space, values, np.random.default_rng(seed), resample_probability=0.0)
    by_name = {parameter.name: parameter for parameter in space}
    assert (new["kind"], new["flag"], new["fixed"]) == (values["kind"], values["flag"], 3)
    for name in ("rate", "shift"):
        low, high = by_name[name].min_value, by_name[name].max_value
        allowed = [np.clip(values[name] * factor, low, high) for factor in (0.8, 1.2)]
        assert min(abs(new[name] - each) for each in allowed) < 1e-12
    far, new_far = 1.499 - values["momentum"], 1.499 - new["momentum"]
    assert min(abs(new_far - np.clip(far * factor, 0.5, 0.999)) for factor in (0.8, 1.2)) < 1e-12
    units = [16, 32, 64, 128]
    assert abs(units.index(new["units"]) - units.index(values["units"])) <= 1
    for name, most in (("layers", 2), ("even", 6), ("stepped", 0.25)):
        assert abs(new[name] - values[name]) <= most


def test_whole_numbers_move_though_the_factor_would_not_move_them():
    layers = keras_tuner.engine.hyperparameters.Int("layers", 1, 9)
    assert [near(layers, 2, factor) for factor in (0.8, 1.2)] == [1, 3]
    assert [near(layers, 9, 1.2), near(layers, 1, 0.8), near(layers, 8, 0.5)] == [9, 1, 4]


def test_only_named_ones_change():
    space, values = drawn(1)
    new = perturb(space, values, np.random.default_rng(0), names=["rate"], resample_probability=1.0)
    assert {name for name in values if new[name] != values[name]} == {"rate"}


def test_the_worst_inherit_from_the_best_and_the_others_stay(tmp_path):
    tuner = search(tmp_path, **SMALL, quantile_fraction=0.4)
    oracle = tuner.oracle
    assert [t.hyperparameters.values["tuner/generation"] for t in oracle.trials.values()] == [0] * 5 + [1] * 5 + [
        2
    ] * 5 + [3] * 5
    spans = {(t.hyperparameters.values["tuner/initial_epoch"], t.hyperparameters.values["tuner/epochs"])
             for t in oracle.trials.values()}  # fmt: skip
    assert spans == {(0, 2), (2, 4), (4, 6), (6, 8)}
    for generation in (1, 2, 3):
        ranked, members = oracle.ranked(generation - 1), oracle.members(generation)
        assert [t.score for t in ranked] == sorted(t.score for t in ranked)
        for rank, before in enumerate(ranked):
            now = members[before.hyperparameters.values["tuner/member"]].hyperparameters.values
            parent = oracle.trials[now["tuner/trial_id"]]
            if rank < 3:
                assert parent is before
                own = {n: v for n, v in before.hyperparameters.values.items() if not n.startswith("tuner/")}
                assert own.items() <= now.items()
            else:
                assert parent in ranked[:2]
    assert tuner.oracle.stop_reason == "all 4 generations are through"


def test_the_score_is_that_of_the_last_epoch(tmp_path):
    def worse(values, epochs):
        return [values["x"] ** 2 + 0.1 * epoch for epoch in range(epochs)]

    tuner = search(tmp_path, **SMALL, score=worse)
    tuner.oracle._results.clear()  # what the trials returned: as with `fit`, the epochs are all there is
    for trial in tuner.oracle.trials.values():
        tuner.oracle.score_trial(trial)
        assert (trial.score, trial.best_step) == (trial.hyperparameters.values["x"] ** 2 + 0.1 * 3, 3)


@pytest.mark.parametrize("ends", [3, 12])
def test_a_killed_population_goes_on(tmp_path, ends):
    whole = search(tmp_path / "whole", **SMALL)
    killed = search(tmp_path / "killed", run=False, **SMALL)
    with killed_after(killed, ends, "end_trial"):
        killed.search()
    again = search(tmp_path / "killed", **SMALL)
    assert proposed(again) == proposed(whole)
    assert again.get_lineage() == whole.get_lineage()
    assert len({json.dumps(v, sort_keys=True) for v in proposed(search(tmp_path / "other", **SMALL | {"seed": 1}))}) > 9


def test_failed_members_are_replaced_and_a_population_of_failures_ends(tmp_path):
    def failing(values, epochs):
        if values["x"] > 0.0:
            raise RuntimeError("no")
        return [values["x"] ** 2] * epochs

    tuner = search(tmp_path / "some", **SMALL, score=failing, perturb=["kind"])
    statuses = [[t.status for t in tuner.oracle.members(g).values()] for g in range(4)]
    assert "FAILED" in statuses[0] and set(statuses[1]) == {"COMPLETED"}

    def hopeless(values, epochs):
        raise RuntimeError("no")

    tuner = search(tmp_path / "none", **SMALL, score=hopeless)
    assert len(tuner.oracle.trials) == 5 and tuner.oracle.stop_reason == "every member of generation 1 failed"
    with pytest.raises(ValueError, match="no trial has been completed"):
        tuner.get_lineage()


def test_a_small_space_is_filled(tmp_path):
    tuner = search(tmp_path, **SMALL, space=lambda hp: {"x": hp.Choice("x", [0.0, 1.0])})
    assert len(tuner.oracle.trials) == 20


class Toy(PopulationBasedTraining):
    """The example of the paper: maximise 1.2 - a^2 - b^2, while the hyperparameters weigh what the gradient sees."""

    thetas = None

    def run_trial(self, trial, **kwargs):
        hp = trial.hyperparameters
        h = np.array([hp.Float("h0", 0.0, 1.0), hp.Float("h1", 0.0, 1.0)])
        values = hp.values
        self.thetas = self.thetas or {}
        theta = self.thetas.get(values.get("tuner/trial_id"), np.array([0.9, 0.9]))
        for epoch in range(values["tuner/initial_epoch"], values["tuner/epochs"]):
            theta = theta - 0.02 * 2 * h * theta
            self.oracle.update_trial(trial.trial_id, {"q": 1.2 - float(np.sum(theta**2))}, step=epoch)
        self.thetas[trial.trial_id] = theta
        return {"q": 1.2 - float(np.sum(theta**2))}


def test_on_the_papers_example_it_beats_the_same_members_alone(tmp_path):
    """What falls behind inherits from the best and grows its weights; alone each keeps the weights it drew."""
    gains = []
    for seed in range(2):
        together, alone = [], []
        for found, perturb_names, fraction in ((together, None, 0.4), (alone, [], 0.01)):
            tuner = Toy(
                objective=keras_tuner.Objective("q", "max"), population_size=5, generations=20, max_epochs=60,
                quantile_fraction=fraction, resample_probability=0.0, perturb=perturb_names, seed=seed,
                directory=tmp_path / f"{seed}{fraction}",
            )  # fmt: skip
            tuner.oracle.verbose = 0
            tuner.oracle.hyperparameters.Float("h0", 0.0, 1.0)
            tuner.oracle.hyperparameters.Float("h1", 0.0, 1.0)
            tuner.search()
            found.append(tuner.oracle.get_best_trials()[0].score)
        gains.append(together[0] - alone[0])
    assert min(gains) > 0


RNG = np.random.default_rng(3)
X = RNG.normal(size=(64, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


class Watched(PopulationBasedTraining):
    """Notes the optimizer's rate and count as training begins and ends."""

    def _build_and_fit_model(self, trial, *args, **kwargs):
        seen = self.__dict__.setdefault("seen", {})

        class Watch(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
                seen[trial.trial_id] = [float(optimizer.learning_rate), int(optimizer.iterations)]
                seen[trial.trial_id].append([np.array(w) for w in self.model.get_weights()])

            def on_train_end(self, logs=None):
                seen[trial.trial_id].append([np.array(w) for w in self.model.get_weights()])

        kwargs["callbacks"].insert(0, Watch())
        return super()._build_and_fit_model(trial, *args, **kwargs)


def adam_of_the_kit(rate):
    return optimizers.Adam(rate)


def scaled(rate):
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate, momentum=0.9), initial_scale=4.0)


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("make", [adam_of_the_kit, scaled])
def test_weights_and_optimizer_are_inherited_and_the_rate_is_the_new_one(tmp_path, make):
    def build(hp):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        model.compile(make(hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")), "mse")
        return model

    tuner = Watched(
        build, "val_loss", population_size=4, generations=3, max_epochs=3, quantile_fraction=0.5, seed=0,
        directory=tmp_path,
    )  # fmt: skip
    tuner.oracle.verbose = 0
    tuner.search(X, Y, validation_data=(X, Y), batch_size=32, verbose=0)
    moved = 0
    for trial in tuner.oracle.trials.values():
        values, (rate, steps, first, _) = trial.hyperparameters.values, tuner.seen[trial.trial_id]
        assert trial.status == "COMPLETED", trial.message
        assert rate == pytest.approx(values["learning_rate"], rel=1e-6)
        assert steps == 2 * values["tuner/generation"]
        parent = values.get("tuner/trial_id")
        if parent is not None:
            assert all(np.array_equal(a, b) for a, b in zip(first, tuner.seen[parent][-1], strict=True))
            moved += tuner.oracle.trials[parent].hyperparameters.values["learning_rate"] != values["learning_rate"]
    assert moved >= 2
    lineage = tuner.get_lineage()
    assert lineage[-1]["trial"] == tuner.oracle.get_best_trials()[0].trial_id
    kept = {path.parent.name for path in tmp_path.rglob("*.weights.h5")}
    assert {f"trial_{trial.trial_id}" for trial in tuner.oracle.members(2).values()} <= kept
    loss = tuner.get_best_models()[0].evaluate(X, Y, verbose=0)
    assert loss == pytest.approx(tuner.oracle.get_best_trials()[0].score, rel=1e-4)


@pytest.mark.tensorflow
def test_members_whose_weights_do_not_fit_say_so(tmp_path):
    def build(hp):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(hp.Int("units", 1, 99)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    tuner = PopulationBasedTraining(
        build, "loss", population_size=2, generations=2, max_epochs=2, seed=0, quantile_fraction=0.5, directory=tmp_path
    )
    tuner.oracle.verbose = 0
    tuner.search(X, Y, verbose=0)
    failed = [trial for trial in tuner.oracle.trials.values() if trial.status == "FAILED"]
    assert len(failed) == 1 and "`perturb` must leave out what changes the model" in failed[0].message


def test_the_rates_of_a_lineage_are_a_schedule(tmp_path):
    tuner = search(tmp_path, **SMALL)
    steps = [{"initial_epoch": 2 * n, "values": {"rate": rate}} for n, rate in enumerate([0.1, 0.1, 0.08, 0.2])]
    tuner.get_lineage = lambda trial=None: steps
    assert tuner.learning_rate_schedule("rate") == schedules.Piecewise(["4ep", "6ep"], [0.1, 0.08, 0.2])
    steps[2]["values"]["rate"] = steps[3]["values"]["rate"] = 0.1
    assert tuner.learning_rate_schedule("rate") == 0.1
    with pytest.raises(ValueError, match="`name` must be a number in every trial"):
        tuner.learning_rate_schedule("kind")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"population_size": 1}, "`population_size` must be an integer at least 2"),
        ({"generations": 9, "max_epochs": 8}, "`max_epochs` must be an integer at least 9"),
        ({"quantile_fraction": 0.6}, "`quantile_fraction` must be a number above 0 and at most 0.5"),
        ({"perturbation_factors": ()}, "`perturbation_factors` must hold a number"),
        ({"resample_probability": 2}, "`resample_probability` must be a number"),
        ({"objective": ["loss", "accuracy"]}, "`objective` must be one"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        search(tmp_path, run=False, **SMALL | arguments)

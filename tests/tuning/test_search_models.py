"""Searches over real, tiny models."""

import json

import keras
import keras_tuner
import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from keras_trainkit import tuning

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(3)
X = RNG.normal(size=(64, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def build(hp):
    model = keras.Sequential([keras.layers.Dense(hp.Choice("units", [1, 2, 4, 8])), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-1, sampling="log")), "mse")
    return model


def make(folder, base=tuning.RandomSearch, hypermodel=build, **kwargs):
    kwargs = {"objective": "val_loss", "seed": 0, "directory": folder, **kwargs}
    tuner = base(hypermodel, **kwargs)
    tuner.oracle.verbose = 0
    return tuner


def fit(tuner, **kwargs):
    tuner.search(X, Y, **{"validation_data": (X, Y), "epochs": 2, "batch_size": 32, "verbose": 0, **kwargs})
    return tuner


def test_the_best_models_come_back_and_the_others_leave_no_weights(tmp_path):
    tuner = fit(make(tmp_path, max_trials=4, keep_checkpoints=2))
    best = tuner.oracle.get_best_trials(2)
    for model, trial in zip(tuner.get_best_models(2), best, strict=True):
        assert model.evaluate(X, Y, verbose=0) == pytest.approx(trial.score, rel=1e-4)
        assert len(trial.metrics.get_history("val_loss")) == len(trial.metrics.get_history("loss")) == 2
    weights = {path.parent.name for path in tmp_path.rglob("*.weights.h5")}
    assert weights == {f"trial_{trial.trial_id}" for trial in best}
    with pytest.raises(FileNotFoundError, match="keep_checkpoints"):
        tuner.get_best_models(3)


class Stop(keras.callbacks.Callback):
    """Cannot be copied, as a callback with an open file."""

    made = []

    def __init__(self, rate):
        super().__init__()
        self.made.append(rate)

    def __deepcopy__(self, memory):
        raise TypeError("an open file cannot be copied")


def test_callbacks_come_from_a_factory(tmp_path):
    Stop.made.clear()
    tuner = fit(make(tmp_path, max_trials=2), callbacks=lambda hp: [Stop(hp.get("rate"))], epochs=1)
    assert Stop.made == [t.hyperparameters.get("rate") for t in tuner.oracle.trials.values()]
    with pytest.raises(keras_tuner.errors.FatalValueError, match="deep-copyable"):
        fit(make(tmp_path / "b", max_trials=1), callbacks=[Stop(0.0)])


def test_a_trial_that_turns_nan_ends_there(tmp_path):
    def exploding(hp):
        model = build(hp)
        model.compile(keras.optimizers.SGD(hp.Choice("speed", [1e-2, 1e15])), "mse")
        return model

    tuner = make(tmp_path, hypermodel=exploding, max_trials=2)
    tuner.enqueue(speed=1e15)
    tuner.enqueue(speed=1e-2)
    fit(tuner, epochs=5)
    bad, good = tuner.oracle.trials.values()
    assert bad.status == "FAILED" and bad.message.startswith("NonfiniteError") and "epoch" in bad.message
    assert good.status == "COMPLETED" and len(good.metrics.get_history("val_loss")) == 5
    assert len(tuner.study.trials[0].intermediate_values) < 5


class Watch(keras.callbacks.Callback):
    """What a trial began with."""

    seen = []

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        slots = sum(float(np.abs(keras.ops.convert_to_numpy(v)).sum()) for v in optimizer.variables[2:])
        self.seen.append((int(optimizer.iterations), slots > 0))


@pytest.mark.slow
def test_hyperband_promotes_weights_with_the_state_of_the_optimizer(tmp_path):
    Watch.seen.clear()
    tuner = make(tmp_path, tuning.Hyperband, max_epochs=4, factor=2, keep_checkpoints=1)
    fit(tuner, callbacks=lambda hp: [Watch()])
    promoted = 0
    for trial, (iterations, has_slots) in zip(tuner.oracle.trials.values(), Watch.seen, strict=True):
        values = trial.hyperparameters.values
        epochs = values["tuner/epochs"] - values["tuner/initial_epoch"]
        assert len(trial.metrics.get_history("val_loss")) == epochs
        if "tuner/trial_id" in values:
            parent = tuner.oracle.trials[values["tuner/trial_id"]]
            assert iterations == 2 * (parent.best_step + 1) and has_slots
            promoted += 1
        else:
            assert iterations == 0 and not has_slots
    assert promoted == 4
    assert len(list(tmp_path.rglob("*.weights.h5"))) == 1
    assert tuner.get_best_models()[0].evaluate(X, Y, verbose=0) == pytest.approx(
        tuner.oracle.get_best_trials()[0].score, rel=1e-4
    )


@pytest.mark.slow
def test_a_hypermodel_with_its_own_fit(tmp_path):
    class Own(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, *args, **kwargs):
            kwargs["batch_size"] = hp.Choice("batch_size", [16, 32])
            return model.fit(*args, **kwargs)

    tuner = fit(make(tmp_path, hypermodel=Own(), max_trials=3, executions_per_trial=2), epochs=1)
    assert {"batch_size", "rate", "units"} == set(tuner.get_best_hyperparameters()[0].values)
    trial = tuner.oracle.get_best_trials()[0]
    assert len(trial.metrics.get_history("val_loss")[0].value) == 2
    assert (
        json.loads((tmp_path / "untitled_project" / f"trial_{trial.trial_id}" / "trial.json").read_text())["status"]
        == "COMPLETED"
    )


@pytest.mark.slow
def test_workers_train_real_models(tmp_path):
    tuner = fit(make(tmp_path, max_trials=4, workers=2))
    assert [t.status for t in tuner.oracle.trials.values()] == ["COMPLETED"] * 4
    best = tuner.oracle.get_best_trials()[0]
    assert tuner.get_best_models()[0].evaluate(X, Y, verbose=0) == pytest.approx(best.score, rel=1e-4)
    again = fit(make(tmp_path / "again", max_trials=4, workers=1))
    assert [t.score for t in again.oracle.trials.values()] == pytest.approx(
        [t.score for t in tuner.oracle.trials.values()]
    )


def test_fit_may_return_several_objectives_in_a_mapping(tmp_path):
    class Sized(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, x, y, callbacks=(), **kwargs):
            history = model.fit(x, y, epochs=1, verbose=0)
            return {"loss": history.history["loss"][-1], "weights": model.count_params()}

    objectives = [keras_tuner.Objective("loss", "min"), keras_tuner.Objective("weights", "min")]
    tuner = make(tmp_path, hypermodel=Sized(), objective=objectives, max_trials=3)
    tuner.search(X, Y)
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 3
    assert {trial.metrics.get_last_value("weights") for trial in tuner.get_pareto_trials()} <= {6, 11, 21, 41}
    lost = make(tmp_path / "lost", hypermodel=Sized(), objective="val_loss", max_trials=1)
    with pytest.raises(keras_tuner.errors.FatalValueError, match="must return the objective 'val_loss'"):
        lost.search(X, Y)

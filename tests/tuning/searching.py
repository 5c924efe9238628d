"""Searches without training, shared by the tests of tuning."""

import contextlib
import math

import keras_tuner
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from keras_trainkit import tuning

LOSS = keras_tuner.Objective("val_loss", "min")


class FakeModel:
    """As much of a model as the end of an epoch needs."""

    def __init__(self):
        self.stop_training = False


def curve(values, epochs):
    """A loss that falls towards a level that the hyperparameters decide; lower is better from the first epoch on."""
    level = (values["x"] - 0.3) ** 2 + 0.05 * values.get("layers", 1)
    return [level + math.exp(-epoch) for epoch in range(epochs)]


def declare(hp):
    """A number, a choice, and a number that is there under a condition."""
    values = {"x": hp.Float("x", -1.0, 1.0), "kind": hp.Choice("kind", ["a", "b"])}
    with hp.conditional_scope("kind", ["b"]):
        if values["kind"] == "b":
            values["layers"] = hp.Int("layers", 1, 8)
    return values


def synthetic(base, space=declare, epochs=4, score=curve):
    """A search of the class `base` whose trials only compute; they report every epoch, as `fit` does."""

    class Synthetic(base):
        def _populate_initial_space(self):
            hp = self.oracle.get_space()
            for kind in ("a", "b"):  # opens both branches
                hp.values["kind"] = kind
                space(hp)
            self.oracle.update_space(hp)
            super()._populate_initial_space()

        def run_trial(self, trial, **kwargs):
            model = FakeModel()
            values = space(trial.hyperparameters)
            first, last = kwargs.get("initial_epoch", 0), kwargs.get("epochs", epochs)
            seen = []
            for epoch, loss in list(enumerate(score(values, last)))[first:]:
                seen.append(loss)
                self.on_epoch_end(trial, model, epoch, {"val_loss": loss})
                if model.stop_training:
                    break
            return min(seen)

    return Synthetic


def search(folder, base=tuning.RandomSearch, *, space=declare, score=curve, epochs=4, run=True, **kwargs):
    """A finished search."""
    kwargs = {"objective": LOSS, "seed": 0, "directory": folder, "project_name": "p", **kwargs}
    tuner = synthetic(base, space, epochs, score)(**kwargs)
    tuner.oracle.verbose = 0
    if run:
        tuner.search()
    return tuner


def proposed(tuner):
    """What was tried, in order."""
    return [tuner.oracle.trials[trial_id].hyperparameters.values for trial_id in tuner.oracle.start_order]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@contextlib.contextmanager
def killed_after(tuner, calls, method="update_trial"):
    """The search dies in the midst of the given call of its oracle."""
    original, left = getattr(tuner.oracle, method), [calls]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*args, **kwargs)

    setattr(tuner.oracle, method, dying)
    with pytest.raises(Killed):
        yield

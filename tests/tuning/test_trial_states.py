"""Trials that are killed go on from their last epoch, where states are saved."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import Killed

from keras_trainkit import tuning

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(3)
X = RNG.normal(size=(64, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def build(hp):
    dense = keras.layers.Dense(hp.Choice("units", [2, 4, 8]), kernel_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), dense, keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


class Dies(keras.callbacks.Callback):
    """Ends the process, or what stands for it, as an epoch begins; once for each file that it finds."""

    def __init__(self, folder, epoch, how):
        super().__init__()
        self.folder, self.epoch, self.how = folder, epoch, how

    def on_epoch_begin(self, epoch, logs=None):
        with open(self.folder / "epochs", "a") as file:
            file.write(f"{epoch} ")
        if epoch == self.epoch and (self.folder / "armed").exists():
            (self.folder / "armed").unlink()
            self.how()

    def get_state(self):
        return {}

    def set_state(self, state):
        return None


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def stopped():
    raise Killed


def failed():
    raise RuntimeError("once")


def searched(folder, how, **kwargs):
    kwargs = {"max_trials": 1, "seed": 0, "save_every": "1ep", "max_retries_per_trial": 1, **kwargs}
    tuner = tuning.RandomSearch(build, "val_loss", directory=folder, project_name="p", **kwargs)
    fit = {"validation_data": (X, Y), "epochs": 5, "batch_size": 16, "shuffle": False, "verbose": 0}
    tuner.search(X, Y, callbacks=lambda hp: [Dies(folder, 3, how)], **fit)
    return tuner


def curve(tuner):
    trial = next(iter(tuner.oracle.trials.values()))
    return [(o.step, o.mean()) for o in trial.metrics.get_history("val_loss")], trial.score


def test_a_search_that_was_killed_goes_on_in_the_midst_of_a_trial(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = searched(tmp_path / "whole", stopped)
    (tmp_path / "killed" / "armed").touch()
    with pytest.raises(Killed):
        searched(tmp_path / "killed", stopped)
    again = searched(tmp_path / "killed", stopped)
    assert (tmp_path / "killed" / "epochs").read_text().split() == ["0", "1", "2", "3", "3", "4"]
    assert curve(again) == curve(whole)  # the first epochs are reported, too
    best, best_whole = again.get_best_models()[0], whole.get_best_models()[0]
    assert all(np.array_equal(a, b) for a, b in zip(best.get_weights(), best_whole.get_weights(), strict=True))
    assert not list(tmp_path.rglob("resume/*"))


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_its_trial_to_the_next(tmp_path):
    (tmp_path / "armed").touch()
    tuner = searched(tmp_path, killed, workers=1)
    epochs = [int(epoch) for epoch in (tmp_path / "epochs").read_text().split()]
    # The state of the last epoch may have been on its way to the disk.
    assert epochs[:4] == [0, 1, 2, 3] and epochs[4] in (2, 3) and epochs[4:] == list(range(epochs[4], 5))
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"]
    assert [step for step, _ in curve(tuner)[0]] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_machine_that_shares_the_folder_goes_on_where_another_was_killed(tmp_path):
    (tmp_path / "armed").touch()
    storage = f"sqlite:///{tmp_path}/searches.db"
    call = f"searched(pathlib.Path({str(tmp_path)!r}), killed, storage={storage!r})"
    program = f"import pathlib; from test_trial_states import killed, searched; {call}"
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    other = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, timeout=300)
    assert other.returncode == -signal.SIGKILL
    tuner = searched(tmp_path, stopped, storage=storage)
    epochs = [int(epoch) for epoch in (tmp_path / "epochs").read_text().split()]
    assert epochs[:4] == [0, 1, 2, 3] and epochs[4] in (2, 3) and epochs[4:] == list(range(epochs[4], 5))
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"]
    assert [step for step, _ in curve(tuner)[0]] == [0, 1, 2, 3, 4]


def test_what_raised_begins_anew(tmp_path):
    (tmp_path / "armed").touch()
    tuner = searched(tmp_path, failed)
    assert (tmp_path / "epochs").read_text().split() == ["0", "1", "2", "3", "0", "1", "2", "3", "4"]
    assert curve(tuner)[0][0][0] == 0 and not list(tmp_path.rglob("resume/*"))


def test_several_trainings_of_a_trial_have_states_of_their_own(tmp_path):
    tuner = searched(tmp_path, stopped, executions_per_trial=2)
    assert (tmp_path / "epochs").read_text().split() == [str(epoch) for epoch in range(5)] * 2
    assert next(iter(tuner.oracle.trials.values())).status == "COMPLETED"


def test_how_often_is_checked_at_once(tmp_path):
    with pytest.raises(ValueError, match="`every` must be"):
        tuning.RandomSearch(build, "val_loss", directory=tmp_path, save_every="soon")

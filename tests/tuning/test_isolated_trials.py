"""Trials in processes of their own: what ends one costs that trial only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import LOSS, FakeModel

from keras_trainkit import tuning

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


class Rough(tuning.RandomSearch):
    """The start point decides what becomes of a trial."""

    def run_trial(self, trial, marks, **kwargs):
        fate = trial.hyperparameters.Int("fate", 0, 99)
        with open(marks, "a") as file:
            file.write(f"{trial.trial_id} {os.getpid()}\n")
        if fate == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == 2:
            raise RuntimeError("the data is bad")
        if fate == 3:
            time.sleep(600)
        if fate == 4:
            os._exit(7)
        for epoch in range(3):
            loss = float("nan") if fate == 5 and epoch == 1 else fate / (epoch + 1)
            self.on_epoch_end(trial, FakeModel(), epoch, {"val_loss": loss})
        trial.hyperparameters.Choice("late", [1, 2])
        return fate / 3


def rough(folder, fates, **kwargs):
    kwargs = {"workers": 2, "trial_timeout": 3.0, "max_trials": len(fates), **kwargs}
    tuner = Rough(objective=LOSS, seed=0, directory=folder, **kwargs)
    tuner.oracle.hyperparameters.Int("fate", 0, 99)
    for fate in fates:
        tuner.enqueue(fate=fate)
    tuner.oracle.verbose = 0
    return tuner


def test_killed_raising_hanging_and_nan_trials_fail_with_their_reason(tmp_path):
    fates = [20, 1, 2, 30, 3, 4, 5, 40, 50]
    tuner = rough(tmp_path, fates, recycle_after=2)
    tuner.search(marks=str(tmp_path / "marks"))
    found = {t.hyperparameters.get("fate"): t for t in tuner.oracle.trials.values()}
    assert sorted(found) == sorted(fates)
    for fate, reason in {1: "SIGKILL", 2: "RuntimeError: the data is bad", 3: "no epoch ended within", 4: "exit code 7",
                         5: "NonfiniteError: `val_loss` is nan after epoch 2"}.items():  # fmt: skip
        assert found[fate].status == "FAILED" and reason in found[fate].message.splitlines()[0]
    for fate in (20, 30, 40, 50):
        assert found[fate].status == "COMPLETED" and found[fate].score == fate / 3
        assert len(found[fate].metrics.get_history("val_loss")) == 3
    assert "late" in {p.name for p in tuner.oracle.hyperparameters.space}
    processes = [line.split()[1] for line in (tmp_path / "marks").read_text().splitlines()]
    assert str(os.getpid()) not in processes
    assert max(processes.count(process) for process in processes) <= 2


def test_retries_are_as_set(tmp_path):
    tuner = rough(tmp_path, [1, 60], max_retries_per_trial=2, workers=1)
    tuner.search(marks=str(tmp_path / "marks"))
    begun = [line.split()[0] for line in (tmp_path / "marks").read_text().splitlines()]
    assert begun == ["0", "0", "0", "1"]
    assert [t.status for t in tuner.oracle.trials.values()] == ["FAILED", "COMPLETED"]


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from test_isolated_trials import rough
if __name__ == "__main__":
    rough({target!r}, {fates!r}, trial_timeout=None).search(marks={marks!r})
"""


def test_kill_minus_9_of_the_parent_takes_its_processes_along_and_loses_nothing(tmp_path):
    fates, marks = [20, 30, 3, 40], tmp_path / "marks"
    text = PROGRAM.format(folder=str(Path(__file__).parent), target=str(tmp_path), fates=fates, marks=str(marks))
    (tmp_path / "program.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env=environment)
    while not (marks.exists() and len(marks.read_text().splitlines()) == 4):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    workers = {int(line.split()[1]) for line in marks.read_text().splitlines()}
    deadline = time.monotonic() + 60
    while any(is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(worker) for worker in workers)
    tuner = rough(tmp_path, fates)
    tuner.search(marks=str(marks))
    assert [t.hyperparameters.get("fate") for t in tuner.oracle.trials.values()] == fates
    assert [t.status for t in tuner.oracle.trials.values()] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    begun = [line.split()[0] for line in marks.read_text().splitlines()]
    assert begun.count("0") == 1 and begun.count("2") == 2


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_timeout_without_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`trial_timeout` needs `workers`"):
        rough(tmp_path, [], workers=0, max_trials=1)

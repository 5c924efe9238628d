"""Several oracles on one database, by turns in one process: who proposes what, and who takes what over."""

import sqlite3

import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

import keras_tuner
import sqlalchemy
from searching import declare, search

from keras_trainkit import tuning
from keras_trainkit.tuning import connections, database, stored_oracle
from keras_trainkit.tuning.running import workers


@pytest.fixture
def two(tmp_path):
    """Two searches on one database, each in a folder of its own."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    return [search(tmp_path / name, storage=storage, max_trials=4, run=False) for name in "ab"]


def train(tuner, trial, value):
    tuner.oracle.update_trial(trial.trial_id, {"val_loss": value})
    trial.status = "COMPLETED"
    tuner.oracle.end_trial(trial)


def test_numbers_and_values_are_given_once_and_results_are_seen_by_all(two):
    a, b = two
    trials = [tuner.oracle.create_trial("t") for tuner in (a, b)]
    assert [trial.trial_id for trial in trials] == ["0", "1"]
    assert trials[0].hyperparameters.values != trials[1].hyperparameters.values
    train(b, trials[1], 0.5)
    assert [trial.trial_id for trial in a.oracle.get_best_trials()] == ["1"]
    assert a.oracle.trials["1"].score == 0.5 and b.oracle.trials["0"].status == "RUNNING"
    train(a, trials[0], 0.25)
    assert a.oracle.end_order == ["1", "0"]
    b.oracle.refresh()
    assert b.oracle.end_order == ["1", "0"] and b.oracle.get_best_trials()[0].score == 0.25


def test_whoever_has_no_trial_left_waits_for_the_others(two, monkeypatch):
    a, b = two
    monkeypatch.setattr("keras_trainkit.tuning.oracle._IDLE", 0.0)
    first = a.oracle.create_trial("t")
    for value in (1.0, 2.0, 3.0):
        train(b, b.oracle.create_trial("t"), value)
    assert b.oracle.create_trial("t").status == "IDLE"
    a.oracle.leave()  # in the midst of its trial
    again = b.oracle.create_trial("t")
    assert again.trial_id == first.trial_id == "0"
    assert again.hyperparameters.values == first.hyperparameters.values
    train(b, again, 4.0)
    assert b.oracle.create_trial("t").status == "STOPPED"


def test_a_trial_that_was_given_away_is_let_go(two):
    a, b = two
    trial = a.oracle.create_trial("t")
    a.oracle.update_trial(trial.trial_id, {"val_loss": 1.0})
    a.oracle.leave()
    train(b, b.oracle.create_trial("t"), 2.0)
    assert a.oracle.update_trial(trial.trial_id, {"val_loss": 0.1}, step=1).status == "STOPPED"
    trial.status = "COMPLETED"
    a.oracle.end_trial(trial)
    assert a.oracle.trials["0"].score == 2.0 and not a.oracle.ongoing_trials
    assert a.oracle.create_trial("t").trial_id == "1"


def test_an_outage_in_the_midst_of_an_end_changes_nothing(two, monkeypatch, capsys):
    a, b = two
    monkeypatch.setattr(database.time, "sleep", lambda seconds: None)
    locked = sqlalchemy.exc.OperationalError("", {}, sqlite3.OperationalError("database is locked"))
    a.oracle.verbose = 1
    for method in ("_tell", "set_fact"):
        trial, original, left = a.oracle.create_trial("t"), getattr(a.oracle._base, method), [locked, locked]

        def failing(*args, left=left, original=original):
            if left:
                raise left.pop()
            return original(*args)

        monkeypatch.setattr(a.oracle._base, method, failing)
        train(a, trial, 1.0)
        assert not left
        monkeypatch.setattr(a.oracle._base, method, original)
    assert capsys.readouterr().out.count("the database does not answer (database is locked); waits for it") == 2
    assert [t.user_attrs["record"]["order"] for t in b.study.trials] == [1, 2]
    assert b.oracle.create_trial("t").trial_id == "2"


def test_tries_count_over_all(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    arguments = {"storage": storage, "max_trials": 2, "run": False, "max_retries_per_trial": 1}
    for name, status in (("a", "INVALID"), ("b", "FAILED")):
        oracle = search(tmp_path / name, **arguments).oracle
        trial = oracle.create_trial("t")
        assert trial.trial_id == "0"
        trial.status = "INVALID"
        oracle.end_trial(trial)
        assert oracle.trials["0"].status == status
        oracle.leave()


def test_epochs_time_and_patience_count_over_all(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    clock = [0.0]

    def begin(name, **kwargs):
        tuner = search(tmp_path / name, storage=storage, max_trials=99, run=False, **kwargs)
        tuner.oracle._clock = lambda: clock[0]
        return tuner

    a, b = begin("a"), begin("b", epoch_budget=4)
    first, second = a.oracle.create_trial("t"), b.oracle.create_trial("t")
    clock[0] = 10.0
    train(a, first, 0.1)
    clock[0] = 13.0
    train(b, second, 0.2)
    train(a, a.oracle.create_trial("t"), 0.3)
    c = begin("c", time_budget=13.0)  # they took 13 s together, not 10, and not 23
    assert c.oracle._elapsed() == 13.0
    assert c.oracle.create_trial("t").status == "STOPPED" and "13 s" in c.oracle.stop_reason
    d = begin("d", patience=2)
    assert d.oracle.create_trial("t").status == "STOPPED" and "2 trials in a row" in d.oracle.stop_reason
    last = b.oracle.create_trial("t")
    assert b.oracle.update_trial(last.trial_id, {"val_loss": 1.0}).status == "STOPPED"
    assert "the budget of 4 epochs is spent" in b.oracle.ended_early[last.trial_id]


def test_entries_that_others_find_are_searched(two):
    a, b = two
    trial = a.oracle.create_trial("t")
    trial.hyperparameters.Choice("late", [1, 2, 3])
    train(a, trial, 1.0)
    assert "late" in b.oracle.create_trial("t").hyperparameters.values


def test_another_space_and_overwriting_are_refused_while_others_work(two, tmp_path):
    a, _ = two
    a.oracle.create_trial("t")
    arguments = {"storage": a.oracle._storage_url, "max_trials": 4, "run": False}

    def other(hp):
        return {**declare(hp), "new": hp.Int("new", 1, 3)}

    with pytest.raises(ValueError, match=r"`hypermodel` must have the space .* Differs: new"):
        search(tmp_path / "c", space=other, **arguments)
    with pytest.raises(ValueError, match="`overwrite=True` would remove the search 'p'"):
        search(tmp_path / "c", overwrite=True, **arguments)
    a.oracle.leave()
    assert "new" in {p.name for p in search(tmp_path / "c", space=other, **arguments).oracle.hyperparameters.space}
    assert not search(tmp_path / "c", overwrite=True, **arguments).oracle.trials


def test_a_start_point_that_nobody_got_is_asked_for_again(two):
    a, b = two
    a.enqueue(x=0.125)
    a.oracle._base.study.ask()  # a process dies before it can say what it asked for
    assert b.oracle.create_trial("t").hyperparameters.values["x"] == 0.125


def test_what_is_written_to_be_seen_may_be_written_by_two(tmp_path, monkeypatch):
    def gone(path, value):
        raise FileNotFoundError(path)

    monkeypatch.setattr(stored_oracle, "write_json", gone)
    stored_oracle.write_to_be_seen(tmp_path / "x.json", {})


def test_signs_of_life():
    here = {"place": workers.place(), "pid": 1, "started": workers.psutil.Process(1).create_time()}
    away = {**here, "place": "elsewhere"}
    assert workers.is_alive("x", here, 5.0, 6.0) and workers.is_alive("x", away, 5.0, 6.0)
    assert not workers.is_alive("x", here, 7.0, 6.0) and not workers.is_alive("x", away, 7.0, 6.0)
    assert not workers.is_alive("x", {**here, "pid": 2**22 + 1}, 0.0, 6.0)
    assert not workers.is_alive("x", {**here, "started": here["started"] - 1000}, 0.0, 6.0)
    assert not workers.is_alive("x", {**away, "left": True}, 0.0, 6.0) and not workers.is_alive("x", None, 0.0, 6.0)


def test_what_is_no_outage_is_raised_at_once(tmp_path):
    (tmp_path / "torn.db").write_text("this is no database " * 500)
    with pytest.raises(sqlalchemy.exc.DatabaseError):
        connections.Opened(f"sqlite:///{tmp_path / 'torn.db'}")
    base = database.Database(None, "p", ["minimize"])
    with pytest.raises(ZeroDivisionError):
        base.patiently(lambda: 1 / 0)


def test_a_server_that_is_not_there_is_named_without_the_password():
    pytest.importorskip("psycopg", reason="the extra `postgresql` is not installed")
    with pytest.raises(ConnectionError, match=r"the database postgresql\+psycopg://me:\*\*\*@127.0.0.1:9/x cannot"):
        connections.Opened("postgresql://me:secret@127.0.0.1:9/x")


@pytest.mark.parametrize("argument", [{"grace_period": 0.5}, {"runner": object()}])
def test_bad_arguments_are_named(tmp_path, argument):
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}`"):
        tuning.RandomSearch(lambda hp: None, keras_tuner.Objective("val_loss", "min"), directory=tmp_path, **argument)

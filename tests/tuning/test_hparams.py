"""TensorBoard's HParams of a search, read back with TensorBoard's own loader."""

import warnings

import keras
import keras_tuner
import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from searching import curve, killed_after, search
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from keras_trainkit import tuning
from keras_trainkit.tuning import hparams


def read(folder):
    """The space, and by run its session's start, its end and its scalars."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    space, sessions = None, {}
    for run, data in multiplexer.PluginRunToTagToContent("hparams").items():
        found = {tag: plugin_data_pb2.HParamsPluginData.FromString(content) for tag, content in data.items()}
        if "_hparams_/experiment" in found:
            space = found["_hparams_/experiment"].experiment
            continue
        tags = multiplexer.GetAccumulator(run).Tags()["scalars"]
        scalars = {tag: [(event.step, event.value) for event in multiplexer.Scalars(run, tag)] for tag in tags}
        sessions[run] = (
            found["_hparams_/session_start_info"].session_start_info,
            found["_hparams_/session_end_info"].session_end_info, scalars,
        )  # fmt: skip
    return space, sessions


def values_of(start):
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def sometimes(values, epochs):
    """Trials that complete, that a NaN ends, and that raise."""
    if values["x"] > 0.6:
        raise ValueError("x is too high")
    losses = curve(values, epochs)
    return [*losses[:2], float("nan")] if values["x"] < -0.6 else losses


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return search(
        tmp_path_factory.mktemp("hparams"), tuning.SuccessiveHalving, score=sometimes, max_trials=24, max_epochs=4,
        epochs=4, min_epochs=1,
    )  # fmt: skip


def test_domains_of_all_hyperparameters(searched):
    space, _ = read(searched.project_dir + "/tensorboard")
    infos = {info.name: info for info in space.hparam_infos}
    assert list(infos) == ["x", "kind", "layers", "status"]
    assert (infos["x"].domain_interval.min_value, infos["x"].domain_interval.max_value) == (-1, 1)
    assert [v.string_value for v in infos["kind"].domain_discrete.values] == ["a", "b"]
    assert infos["layers"].domain_interval.max_value == 8 and infos["layers"].description == "if kind = b"
    assert [v.string_value for v in infos["status"].domain_discrete.values] == ["completed", "pruned", "failed"]
    metrics = {info.name.tag: info.display_name for info in space.metric_infos}
    assert metrics == {"score/val_loss": "val_loss", "epochs": "", "seconds": ""}


def test_every_trial_has_a_session_with_its_score_epochs_time_and_status(searched):
    _, sessions = read(searched.project_dir + "/tensorboard")
    oracle, statuses = searched.oracle, set()
    assert set(sessions) == {f"trial_{trial_id}" for trial_id in oracle.trials}
    for trial_id, trial in oracle.trials.items():
        start, end, scalars = sessions[f"trial_{trial_id}"]
        told = values_of(start)
        status = told.pop("status")
        statuses.add(status)
        assert told == trial.hyperparameters.values and start.group_name == trial_id
        assert (status == "failed") == (trial.status == "FAILED") == (end.status == api_pb2.STATUS_FAILURE)
        assert (status == "pruned") == (trial_id in oracle.ended_early)
        assert ("score/val_loss" in scalars) == (status != "failed")
        if status != "failed":
            assert scalars["score/val_loss"] == [(0, pytest.approx(trial.score))]
        points = trial.metrics.get_history("val_loss") if trial.metrics.exists("val_loss") else []
        assert scalars["epochs"] == [(0, len(points))]
        assert scalars.get("val_loss", []) == [(p.step, pytest.approx(p.mean())) for p in points]
        assert scalars["seconds"][0][1] >= 0 and end.end_time_secs >= start.start_time_secs > 1e9
    assert statuses == {"completed", "pruned", "failed"}


def test_a_killed_search_goes_on_without_repeats_or_gaps(tmp_path):
    killed = search(tmp_path, max_trials=8, run=False)
    with killed_after(killed, 5, "end_trial"):
        killed.search()
    folder = tmp_path / "p" / "tensorboard"
    (folder / "trial_1" / "events.out.tfevents.0000000000.search").unlink()  # as if killed before it was written
    kept = folder / "trial_2" / "events.out.tfevents.0000000000.search"
    before = kept.stat().st_mtime_ns
    again = search(tmp_path, max_trials=8)
    _, sessions = read(folder)
    assert set(sessions) == {f"trial_{trial_id}" for trial_id in again.oracle.trials} and len(sessions) == 8
    assert all(len(list(path.iterdir())) == 1 for path in folder.glob("trial_*"))
    assert len(list(folder.glob("events*"))) == 1 and kept.stat().st_mtime_ns == before
    start, end, scalars = sessions["trial_1"]
    assert scalars["score/val_loss"][0][1] == pytest.approx(again.oracle.trials["1"].score)
    assert end.end_time_secs >= start.start_time_secs


def test_a_trial_that_is_tried_again_has_one_session_in_the_end(tmp_path):
    calls = []

    def at_the_second_time(values, epochs):
        calls.append(values)
        if len(calls) == 1:
            raise ValueError("once")
        assert len(calls) > 2 or not list((tmp_path / "p" / "tensorboard").glob("trial_*"))
        return curve(values, epochs)

    search(tmp_path, score=at_the_second_time, max_trials=2, max_retries_per_trial=1)
    _, sessions = read(tmp_path / "p" / "tensorboard")
    assert len(calls) == 3 and [values_of(s[0])["status"] for s in sessions.values()] == ["completed", "completed"]


def test_several_objectives_have_a_score_each(tmp_path):
    wanted = [keras_tuner.Objective("val_loss", "min"), keras_tuner.Objective("size", "max")]
    tuner = search(tmp_path, objective=wanted, max_trials=1, run=False)
    tuner.run_trial = lambda trial, **kwargs: {"val_loss": 0.25, "size": 3.0}
    tuner.search()
    space, sessions = read(tmp_path / "p" / "tensorboard")
    assert [info.name.tag for info in space.metric_infos][:2] == ["score/val_loss", "score/size"]
    scalars = sessions["trial_0"][2]
    assert scalars["score/val_loss"][0][1] == 0.25 and scalars["score/size"][0][1] == 3.0


def test_a_space_that_grows_is_told_anew(tmp_path):
    def space(hp):
        return {"x": hp.Float("x", 0, 1), **({"new": hp.Boolean("new")} if hp.values["x"] else {})}

    search(tmp_path, space=space, max_trials=2)
    told, _ = read(tmp_path / "p" / "tensorboard")
    assert {info.name for info in told.hparam_infos} == {"x", "new", "status"}
    assert {i.name: i.type for i in told.hparam_infos}["new"] == api_pb2.DATA_TYPE_BOOL
    assert len(list((tmp_path / "p" / "tensorboard").glob("events*"))) == 1


def test_a_hyperparameter_called_status_keeps_its_name(tmp_path):
    def space(hp):
        return {"x": hp.Float("x", 0, 1), "status": hp.Choice("status", ["new", "old"])}

    search(tmp_path, space=space, max_trials=1)
    told, sessions = read(tmp_path / "p" / "tensorboard")
    assert [info.name for info in told.hparam_infos] == ["x", "status", "trial status"]
    assert values_of(sessions["trial_0"][0])["trial status"] == "completed"


def test_it_can_be_switched_off(tmp_path):
    search(tmp_path, max_trials=1, hparams=False)
    assert not (tmp_path / "p" / "tensorboard").exists()


def test_a_disk_that_is_full_warns_once_and_ends_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    tuner = search(tmp_path, max_trials=3, run=False)
    monkeypatch.setattr(hparams.Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="HParams of this search cannot be written") as caught:
        tuner.search()
    assert len([w for w in caught if "HParams" in str(w.message)]) == 1 and len(tuner.oracle.end_order) == 3


@pytest.mark.tensorflow
@pytest.mark.parametrize("ours", [True, False])
def test_kerastuner_makes_no_second_session_for_a_tensorboard_callback(tmp_path, ours):
    def build(hp):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(hp.Float("rate", 0.01, 0.1)), "mse")
        return model

    tuner = tuning.RandomSearch(build, "val_loss", 1, directory=tmp_path, project_name="p", hparams=ours, seed=0)
    x = np.ones((8, 2), "float32")
    board = [keras.callbacks.TensorBoard(tmp_path / "p" / "board", write_graph=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner.search(x, x[:, :1], validation_split=0.5, epochs=1, callbacks=board, verbose=0)
    _, sessions = read(tmp_path / "p")
    assert list(sessions) == (["tensorboard/trial_0"] if ours else ["board/0/execution0"])
    assert list((tmp_path / "p" / "board").rglob("events*"))  # the callback's own curves are there

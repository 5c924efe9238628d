"""TensorBoard's HParams of a search: the domains of all hyperparameters, and a session for every trial that ended."""

from __future__ import annotations

import io
import os
import time
import warnings
from pathlib import Path
from typing import Any

from keras_tuner.engine import hyperparameters as types
from keras_tuner.engine.trial import Trial
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api, api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from keras_trainkit.tuning.watching import Watcher, how_it_ended

FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents.{:010d}.search"
_STATUS = "status"


class HParamsLog(Watcher):
    """Writes a file for each trial when it ended, and one for the space.

    A trial's file has its values, `score/<objective>` for each objective, `epochs`, `seconds`, how it ended as the
    value `status` (completed, pruned or failed; TensorBoard's own status knows no pruned ones), and the objective by
    epoch as a scalar. It is written to another name and renamed, and never twice: a search that goes on finds what is
    there, and adds what a kill kept it from writing.

    Args:
        folder: that TensorBoard is to be given, `tensorboard` in the project's directory.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._oracle: Any = None
        self._began: dict[str, float] = {}
        self._domains = b""
        self._spaces = 0
        self._failed = False

    def search_began(self, tuner: Any) -> None:
        """Writes what is known of earlier trials and is not there yet."""
        self._oracle = tuner.oracle
        self._write_space()
        spans: dict[str, tuple[float, float]] | None = None
        for trial_id in list(self._oracle.end_order):
            if not self._file(trial_id).exists():
                spans = self._spans() if spans is None else spans
                self._write_trial(self._oracle.trials[trial_id], spans.get(trial_id))

    def trial_began(self, trial: Trial) -> None:
        """Notes the time."""
        self._began.setdefault(trial.trial_id, time.time())

    def trial_ended(self, trial: Trial, again: bool) -> None:
        """Writes the trial's file."""
        if not again and self._oracle is not None:  # somebody may ask an oracle without a search
            self._write_space()
            now = time.time()
            self._write_trial(trial, (self._began.pop(trial.trial_id, now), now))

    def _file(self, trial_id: str) -> Path:
        return self.folder / f"trial_{trial_id}" / _EVENTS.format(0)

    def _spans(self) -> dict[str, tuple[float, float]]:
        found = {}
        for entry in self._oracle.study.get_trials(deepcopy=False):
            proposal = entry.user_attrs.get("proposal")
            if proposal and entry.datetime_start and entry.datetime_complete:
                found[proposal["trial_id"]] = entry.datetime_start.timestamp(), entry.datetime_complete.timestamp()
        return found

    def _write_space(self) -> None:
        names = [objective.name for objective in self._oracle._objectives()]
        space = self._oracle.hyperparameters.space
        merged: dict[str, list[types.HyperParameter]] = {}
        for parameter in space:
            merged.setdefault(parameter.name, []).append(parameter)
        told = [_told(name, alike) for name, alike in merged.items()]
        status = api_pb2.HParamInfo(
            name=_status_name(merged), description="how the trial ended", type=api_pb2.DATA_TYPE_STRING
        )
        status.domain_discrete.extend(["completed", "pruned", "failed"])
        metrics = [
            *(api.Metric(f"score/{name}", display_name=name, description="best value of the trial") for name in names),
            api.Metric("epochs", description="epochs that the trial trained"),
            api.Metric("seconds", description="seconds that the trial took"),
        ]
        experiment = api_pb2.Experiment(
            hparam_infos=[*told, status], metric_infos=[metric.as_proto() for metric in metrics]
        )
        domains = experiment.SerializeToString(deterministic=True)
        if domains == self._domains:
            return
        self._domains = domains
        # TensorBoard goes on where it stopped in a file that it knows: a space that grew gets a new one.
        for old in self.folder.glob("events.out.tfevents.*"):
            self._spaces = max(self._spaces, int(old.name.split(".")[3]) + 1)
            old.unlink()
        data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
        self._put(self.folder / _EVENTS.format(self._spaces), time.time(), [_summary(metadata.EXPERIMENT_TAG, data)])

    def _write_trial(self, trial: Trial, span: tuple[float, float] | None) -> None:
        began, ended = span or (time.time(), time.time())
        ending = how_it_ended(trial, self._oracle.ended_early.get(trial.trial_id))
        start = plugin_data_pb2.SessionStartInfo(group_name=trial.trial_id, start_time_secs=began)
        for name, value in trial.hyperparameters.values.items():
            held = start.hparams[name]
            if isinstance(value, bool):
                held.bool_value = value
            elif isinstance(value, int | float):
                held.number_value = value
            else:
                held.string_value = str(value)
        start.hparams[_status_name(trial.hyperparameters.values)].string_value = ending
        good = api_pb2.STATUS_FAILURE if ending == "failed" else api_pb2.STATUS_SUCCESS
        end = plugin_data_pb2.SessionEndInfo(status=good, end_time_secs=ended)
        summaries: list[tuple[int, Any]] = [
            (0, _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)))
        ]
        curves = {name: self._curve(trial, name) for name in {o.name for o in self._oracle._objectives()}}
        for name, curve in curves.items():
            summaries += [(step, _scalar(name, value)) for step, value in curve]
        epochs = max((len(curve) for curve in curves.values()), default=0)
        for objective in self._oracle._objectives() if ending != "failed" else ():
            summaries.append((0, _scalar(f"score/{objective.name}", self._oracle._value(trial, objective.name))))
        summaries += [(0, _scalar("epochs", epochs)), (0, _scalar("seconds", max(0.0, ended - began)))]
        summaries.append(
            (0, _summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)))
        )
        self._put(self._file(trial.trial_id), ended, [s for _, s in summaries], [step for step, _ in summaries])

    def _curve(self, trial: Trial, name: str) -> list[tuple[int, float]]:
        if not trial.metrics.exists(name):
            return []
        return [(int(point.step), float(point.mean())) for point in trial.metrics.get_history(name)]

    def _put(self, path: Path, moment: float, summaries: list[Any], steps: list[int] | None = None) -> None:
        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        writer.write(event_pb2.Event(wall_time=moment, file_version="brain.Event:2").SerializeToString())
        for summary, step in zip(summaries, steps or [0] * len(summaries), strict=True):
            writer.write(event_pb2.Event(wall_time=moment, step=step, summary=summary).SerializeToString())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name("partial")  # without "tfevents" TensorBoard does not look at it
            partial.write_bytes(buffer.getvalue())
            partial.replace(path)
        except OSError as error:
            if not self._failed:
                warnings.warn(f"the HParams of this search cannot be written: {error}", stacklevel=2)
            self._failed = True


def _status_name(names: Any) -> str:
    return _STATUS if _STATUS not in names else f"trial {_STATUS}"


def _told(name: str, alike: list[types.HyperParameter]) -> Any:
    """A hyperparameter with its domain; one name of several branches has the values of all of them."""
    first = alike[0]
    info = api_pb2.HParamInfo(name=name, description="; ".join(_conditions(p) for p in alike if p.conditions))
    if all(isinstance(p, types.Float | types.Int) for p in alike):
        info.type = api_pb2.DATA_TYPE_FLOAT64
        info.domain_interval.min_value = min(float(p.min_value) for p in alike)
        info.domain_interval.max_value = max(float(p.max_value) for p in alike)
        return info
    values: list[Any] = []
    for parameter in alike:
        for value in _values(parameter):
            if not any(value == other and type(value) is type(other) for other in values):
                values.append(value)
    if all(isinstance(value, bool) for value in values):
        info.type = api_pb2.DATA_TYPE_BOOL
    elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        info.type = api_pb2.DATA_TYPE_FLOAT64
    else:
        info.type = api_pb2.DATA_TYPE_STRING
        values = [str(value) for value in values]
    if isinstance(first, types.Float | types.Int) and len(alike) == 1:
        return info
    info.domain_discrete.extend(values)
    return info


def _values(parameter: types.HyperParameter) -> list[Any]:
    if isinstance(parameter, types.Boolean):
        return [False, True]
    if isinstance(parameter, types.Fixed):
        return [parameter.value]
    if isinstance(parameter, types.Choice):
        return list(parameter.values)
    return [parameter.min_value, parameter.max_value]


def _conditions(parameter: types.HyperParameter) -> str:
    held = [f"{c.name} = {' or '.join(map(str, c.values))}" for c in parameter.conditions]
    return "if " + " and ".join(held)


def _scalar(tag: str, value: float) -> Any:
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=float(value))])


def _summary(tag: str, data: Any) -> Any:
    held = metadata.create_summary_metadata(data)
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=held, tensor=metadata.NULL_TENSOR)])

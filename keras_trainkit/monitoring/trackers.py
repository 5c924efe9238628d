"""Experiment trackers as sinks of a monitor, through their own clients."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_trainkit.monitoring.sinks import Sink, flat

_AT_ONCE = 50  # lines that wait for each other: a store may take milliseconds


@keras.saving.register_keras_serializable("keras_trainkit")
class MLflowSink(Sink):
    """Writes what a `TrainingMonitor` measures to MLflow, as the metrics of one run, and the recipe as its parameters.

    The run is made with the first line. A resumed run goes on in it; metrics that come again stand there twice, the
    later ones with a later time. It needs the package mlflow: `pip install keras-trainkit[mlflow]`.

    Args:
        experiment: the experiment's name.
        run_name: the run's name; MLflow makes one up if it is left out.
        tracking_uri: where to write; MLflow's own setting if it is left out.
        layers: whether to write the statistics of layers, too.

    Raises:
        ImportError: when `fit` begins, if mlflow is not installed.

    Example:

    >>> MLflowSink("digits").get_config()["experiment"]
    'digits'
    """

    def __init__(
        self,
        experiment: str = "Default",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        layers: bool = True,
    ) -> None:
        self.experiment, self.run_name, self.tracking_uri, self.layers = experiment, run_name, tracking_uri, layers
        self._client: Any = None
        self._run: str | None = None
        self._begun = False
        self._recipe: Mapping[str, Any] = {}
        self._waiting: list[tuple[str, float, int, int]] = []
        self._lines = 0

    def get_config(self) -> dict[str, Any]:
        own = {"experiment": self.experiment, "run_name": self.run_name, "tracking_uri": self.tracking_uri}
        return own | {"layers": self.layers}

    def open(self, directory: Path, recipe: Mapping[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImportError("`MLflowSink` needs mlflow: pip install keras-trainkit[mlflow]") from error
        self._client = MlflowClient(self.tracking_uri)
        self._recipe, self._begun = recipe, False

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        self._add(step, {f"{kind}/{name}": value for name, value in values.items() if value is not None})

    def write_layers(self, step: int, epoch: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        if self.layers:
            self._add(step, {f"layers/{n}/{layer}": v for layer, of in layers.items() for n, v in of.items()})

    def flush(self) -> None:
        if self._waiting:
            from mlflow.entities import Metric

            self._begin()
            metrics = [Metric(*values) for values in self._waiting]
            for first in range(0, len(metrics), 1000):  # the most that MLflow takes
                self._client.log_batch(self._run, metrics=metrics[first : first + 1000])
            self._waiting.clear()

    def close(self) -> None:
        self.flush()
        if self._begun:
            self._client.set_terminated(self._run)
        self._client, self._begun = None, False

    def get_state(self) -> dict[str, Any]:
        if self._client is not None:
            self.flush()
        return {"run": self._run}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._run = state["run"]

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._waiting += [(_allowed(name), float(value), now, step) for name, value in values.items()]
        self._lines += 1
        if self._lines % _AT_ONCE == 0:
            self.flush()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self._run is not None:
            self._client.update_run(self._run, status="RUNNING")
            return
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(self.experiment)
        number = known.experiment_id if known else self._client.create_experiment(self.experiment)
        self._run = self._client.create_run(number, run_name=self.run_name).info.run_id
        parameters = [Param(_allowed(name), str(value)[:500]) for name, value in flat(self._recipe).items()]
        for first in range(0, len(parameters), 100):
            self._client.log_batch(self._run, params=parameters[first : first + 100])


@keras.saving.register_keras_serializable("keras_trainkit")
class WandbSink(Sink):
    """Writes what a `TrainingMonitor` measures to Weights & Biases: one run, its config the recipe.

    The axis is the metric `update`. The run is made with the first line; a resumed run goes on in it. It needs the
    package wandb: `pip install keras-trainkit[wandb]`.

    Args:
        project: the project's name; wandb's own setting if it is left out.
        name: the run's name; wandb makes one up if it is left out.
        mode: "online", "offline" (files under the monitor's directory, for `wandb sync`) or "disabled"; wandb's own
            setting if it is left out.
        layers: whether to write the statistics of layers, too.

    Raises:
        ImportError: when `fit` begins, if wandb is not installed.

    Example:

    >>> WandbSink("digits", mode="offline").get_config()["mode"]
    'offline'
    """

    def __init__(
        self, project: str | None = None, name: str | None = None, mode: str | None = None, layers: bool = True
    ) -> None:
        self.project, self.name, self.mode, self.layers = project, name, mode, layers
        self._run: Any = None
        self._id: str | None = None
        self._opened: tuple[Path, Mapping[str, Any]] | None = None

    def get_config(self) -> dict[str, Any]:
        return {"project": self.project, "name": self.name, "mode": self.mode, "layers": self.layers}

    def open(self, directory: Path, recipe: Mapping[str, Any]) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ImportError("`WandbSink` needs wandb: pip install keras-trainkit[wandb]") from error
        self._opened = directory, recipe

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        self._log(step, epoch, {f"{kind}/{name}": value for name, value in values.items() if value is not None})

    def write_layers(self, step: int, epoch: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        if self.layers:
            self._log(step, epoch, {f"layers/{n}/{layer}": v for layer, of in layers.items() for n, v in of.items()})

    def write_weights(self, step: int, weights: Mapping[str, Any]) -> None:
        import wandb

        drawn = {f"weights/{path}": wandb.Histogram(value) for path, value in weights.items() if _finite(value)}
        self._log(step, None, drawn)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = self._opened = None

    def get_state(self) -> dict[str, Any]:
        return {"run": self._id}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._id = state["run"]

    def _log(self, step: int, epoch: int | None, values: Mapping[str, Any]) -> None:
        if self._opened is None:
            return
        if self._run is None:
            self._begin(*self._opened)
        self._run.log({"update": step, **values} | ({} if epoch is None else {"epoch": epoch}))

    def _begin(self, directory: Path, recipe: Mapping[str, Any]) -> None:
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self.project,
            name=self.name,
            mode=self.mode,
            dir=str(directory),
            config=dict(recipe),
            id=self._id,
            resume=None if self._id is None else "allow",
        )
        self._id = self._run.id
        # The axis: a resumed run may go back, which wandb's own steps may not.
        self._run.define_metric("*", step_metric="update")


def _allowed(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _finite(value: Any) -> bool:
    return value.size > 0 and math.isfinite(float(abs(value).max()))

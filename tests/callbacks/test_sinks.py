"""Where a monitor's lines go beside its own file: TensorBoard's other pages, sinks of anyone's, trackers."""

import json
import sys

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, optimizers
from keras_trainkit.monitoring import sinks

RNG = np.random.default_rng(9)


@keras.saving.register_keras_serializable("test_sinks")
class Kept(callbacks.Sink):
    """Notes every call."""

    def __init__(self, name="kept"):
        self.name = name
        self.calls = []

    def get_config(self):
        return {"name": self.name}

    def open(self, directory, recipe):
        self.calls.append(("open", directory.name, dict(recipe)))

    def write(self, kind, step, epoch, values):
        self.calls.append((kind, step, epoch, {name: v for name, v in values.items() if v is not None}))

    def write_layers(self, step, epoch, layers):
        self.calls.append(("layers", step, epoch, layers))

    def write_weights(self, step, weights):
        self.calls.append(("weights", step, weights))

    def rewind(self, step):
        self.calls.append(("rewind", step))

    def flush(self):
        self.calls.append(("flush",))

    def close(self):
        self.calls.append(("close",))

    def get_state(self):
        return {"calls": len(self.calls)}

    def set_state(self, state):
        self.calls.append(("state", state))


def make_model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu", name="low"), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.01), "mse")
    return model


def fit(directory, epochs=2, **arguments):
    x = RNG.normal(size=(32, 3)).astype("float32")
    model = make_model()
    monitor = callbacks.TrainingMonitor(directory, every=2, **arguments)
    model.fit(x, x[:, :1], batch_size=4, epochs=epochs, verbose=0, callbacks=[monitor], validation_data=(x, x[:, :1]))
    return model, monitor


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_sinks_get_what_the_file_gets(tmp_path):
    kept = Kept()
    model, _ = fit(tmp_path, layers_every=4, histograms_every=2, sinks=[kept], recipe={"seed": 3}, tensorboard=False)
    kinds = [call[0] for call in kept.calls]
    epoch = ["step", "step", "layers", "step", "step", "layers", "epoch"]
    assert kinds == ["open", *epoch, "flush", *epoch, "weights", "flush", "close"]
    assert kept.calls[0] == ("open", tmp_path.name, {"seed": 3})
    for call, line in zip([c for c in kept.calls if c[0] in ("step", "epoch", "layers")], lines(tmp_path), strict=True):
        assert (call[0], call[1], call[2]) == (line["kind"], line["step"], line["epoch"])
        assert line["layers"] == call[3] if call[0] == "layers" else call[3].items() <= line.items()
    _, step, weights = kept.calls[kinds.index("weights")]
    assert step == 16 and list(weights) == [v.path for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, weights.values(), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_configuration_and_state_of_sinks(tmp_path):
    monitor = callbacks.TrainingMonitor(tmp_path, sinks=[Kept("mine")], recipe={"a": [1]}, layers_every=20)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(monitor)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.sinks[0].name == "mine" and again.recipe == {"a": [1]} and again.layers_every == 20
    _, used = fit(tmp_path, epochs=1, sinks=[Kept()], tensorboard=False)
    used.on_train_begin()
    state = json.loads(json.dumps(used.get_state()))
    assert state["sinks"] == [{"calls": len(used.sinks[0].calls)}]
    used.set_state(state)
    assert used.sinks[0].calls[-2:] == [("state", state["sinks"][0]), ("rewind", 9)]
    used.on_train_end()
    with pytest.raises(TypeError, match=r"`sinks` must hold objects of the class `callbacks\.Sink`\. Received: sinks="):
        callbacks.TrainingMonitor(tmp_path, sinks=["wandb"])


def events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory / "tensorboard" / "train")).Reload()


def test_pages_of_tensorboard(tmp_path):
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.custom_scalar import metadata as scalar_metadata
    from tensorboard.plugins.hparams import metadata as hparams_metadata

    recipe = {"name": "first", "optimizer": {"class": "SGD", "rate": 0.01}, "none": None}
    model, _ = fit(tmp_path, layers_every=4, histograms_every=1, recipe=recipe)
    found = events(tmp_path)
    tensors = {tag: found.Tensors(tag)[0].tensor_proto for tag in found.Tags()["tensors"]}
    assert json.loads(tensors["recipe"].string_val[0].decode().split("```")[1].removeprefix("json\n")) == recipe

    layout = layout_pb2.Layout.FromString(tensors[scalar_metadata.CONFIG_SUMMARY_TAG].string_val[0])
    assert [category.title for category in layout.category] == ["Learning", "Gradients", "Layers", "Speed"]
    assert [chart.title for chart in layout.category[1].chart] == ["norm"], "no chart stays empty"
    import re

    patterns = [t for category in layout.category for chart in category.chart for t in chart.multiline.tag]
    drawn = [tag for tag in found.Tags()["scalars"] if any(re.search(pattern, tag) for pattern in patterns)]
    assert {"step/loss", "step/gradient_norm", "step/samples_per_second", "step/host_memory"} <= set(drawn)
    layer = next(name for line in lines(tmp_path) if line["kind"] == "layers" for name in line["layers"])
    assert f"layers/gradient_norm/{layer}" in drawn

    session = found.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = hparams_metadata.parse_session_start_info_plugin_data(session).hparams
    assert values["optimizer.rate"].number_value == 0.01 and values["name"].string_value == "first"

    for variable in model.trainable_variables:
        last = found.Tensors(f"weights/{variable.path}")[-1]
        rows = np.frombuffer(last.tensor_proto.tensor_content, "float64").reshape(30, 3)
        weights = keras.ops.convert_to_numpy(variable)
        assert last.step == 16 and rows[:, 2].sum() == weights.size
        if weights.min() < weights.max():
            assert (rows[0, 0], rows[-1, 1]) == pytest.approx((weights.min(), weights.max()))


def test_a_run_that_nobody_described_is_described(tmp_path):
    kept = Kept()
    model, _ = fit(tmp_path, epochs=1, sinks=[kept], tensorboard=False)
    recipe = sinks.flat(kept.calls[0][2])
    assert recipe["optimizer.name"] == "SGD" and recipe["optimizer.learning_rate"] == pytest.approx(0.01)
    assert recipe["parameters"] == model.count_params()


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_trackers_that_are_not_installed_say_so(tmp_path, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)
    sink = {"mlflow": callbacks.MLflowSink, "wandb": callbacks.WandbSink}[kind]()
    with pytest.raises(ImportError, match=rf"needs {kind}: pip install keras-trainkit\[{kind}\]"):
        fit(tmp_path, sinks=[sink])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(sink))
    assert again.get_config() == sink.get_config()


def test_mlflow(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sink = callbacks.MLflowSink("digits", run_name="first", tracking_uri=uri)
    fit(tmp_path, layers_every=4, sinks=[sink], recipe={"optimizer": {"rate": 0.01}}, tensorboard=False)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.run_name == "first" and run.info.status == "FINISHED"
    assert run.data.params == {"optimizer.rate": "0.01"}
    history = client.get_metric_history(run.info.run_id, "step/gradient_norm")
    written = [line for line in lines(tmp_path) if line["kind"] == "step"]
    assert [metric.step for metric in history] == [line["step"] for line in written]
    assert [metric.value for metric in history] == pytest.approx([line["gradient_norm"] for line in written])
    assert any(name.startswith("layers/weight_norm/") for name in run.data.metrics)
    again = callbacks.MLflowSink("digits", tracking_uri=uri)
    again.set_state(sink.get_state())
    fit(tmp_path / "again", epochs=1, sinks=[again], tensorboard=False)
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.slow
def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = callbacks.WandbSink("digits", name="first", mode="offline")
    fit(tmp_path, layers_every=4, histograms_every=1, sinks=[sink], recipe={"rate": 0.01}, tensorboard=False)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (stored,) = folder.glob("run-*.wandb")
    content = stored.read_bytes()
    assert b"step/gradient_norm" in content and b"rate" in content and folder.name.endswith(sink.get_state()["run"])

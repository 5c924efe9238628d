"""TrainingMonitor's times, tokens, memory and the share of the device's arithmetic."""

import json
import os
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, optimizers
from keras_trainkit.core import backend
from keras_trainkit.monitoring import device_peaks, resources

TENSORFLOW = pytest.mark.tensorflow
RNG = np.random.default_rng(8)


def lines(directory, kind="step"):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def make_model(**arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizers.SGD(0.01), "mse", **arguments)
    return model


def test_percentiles_are_those_of_numpy():
    seconds = RNG.exponential(size=137)
    found = resources.percentiles(seconds)
    for percent in (50, 90, 99):
        expected = np.percentile(seconds, percent, method="inverted_cdf")
        assert found[f"step_seconds_p{percent}"] == expected


def test_step_times_hold_steps_alone(tmp_path, monkeypatch):
    """A clock that others move: by 1 in each step, by more while somebody traces, validates or writes lines."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    write = callbacks.TrainingMonitor._write

    def slow_write(self, *arguments):
        now[0] += 500.0
        write(self, *arguments)

    monkeypatch.setattr(callbacks.TrainingMonitor, "_write", slow_write)

    class Steps(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch > 0:
                now[0] += 1000.0 if self.first else 2.0 if batch == 7 else 1.0
            self.first = False

        def on_train_begin(self, logs=None):
            self.first = False

        def on_epoch_begin(self, epoch, logs=None):
            self.first = epoch == 0

        def on_test_end(self, logs=None):
            now[0] += 300.0

    x = RNG.normal(size=(40, 3)).astype("float32")
    monitor = callbacks.TrainingMonitor(tmp_path, every=2, tensorboard=False)
    make_model().fit(
        x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[Steps(), monitor], validation_data=(x, x[:, :1])
    )
    for line in lines(tmp_path, "epoch"):
        assert (line["step_seconds_p50"], line["step_seconds_p99"]) == (1.0, 2.0)
    assert max(line.get("step_seconds_p99", 0) for line in lines(tmp_path)) == 2.0


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_steps_of_one_execution_share_its_time(tmp_path, monkeypatch, steps_per_execution):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Steps(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            now[0] += steps_per_execution

    x = RNG.normal(size=(64, 3)).astype("float32")
    monitor = callbacks.TrainingMonitor(tmp_path, every=4, tensorboard=False)
    model = make_model(steps_per_execution=steps_per_execution)
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[Steps(), monitor])
    assert lines(tmp_path, "epoch")[1]["step_seconds_p99"] == 1.0


@TENSORFLOW
def test_waiting_for_data_is_told_from_computing(tmp_path):
    """A source that sleeps: no step can have waited less than it does, nor much more than it took in all."""
    import tensorflow as tf

    if not backend.times_batches(make_model()):
        pytest.skip("this version of Keras has no place to time batches at")

    def slow():
        for _ in range(12):
            time.sleep(0.03)
            yield np.ones((4, 3), "float32"), np.ones((4, 1), "float32")

    shapes = (tf.TensorSpec((4, 3)), tf.TensorSpec((4, 1)))
    data = tf.data.Dataset.from_generator(slow, output_signature=shapes)
    model = make_model()
    model.fit(data.prefetch(1), verbose=0)
    began = time.perf_counter()
    model.fit(data, verbose=0, callbacks=[callbacks.TrainingMonitor(tmp_path / "slow", every=4)])
    took = time.perf_counter() - began
    found = [line for line in lines(tmp_path / "slow") if "data_wait_seconds" in line]
    assert found and all(0.02 < line["data_wait_seconds"] < took for line in found)
    x = np.ones((48, 3), "float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[callbacks.TrainingMonitor(tmp_path / "fast", every=4)])
    fast = [line["data_wait_seconds"] for line in lines(tmp_path / "fast") if "data_wait_seconds" in line]
    assert min(fast) < min(line["data_wait_seconds"] for line in found)
    assert "_autoconvert_optionals" not in vars(model)


@TENSORFLOW
@pytest.mark.parametrize("case", ["compiled", "eager", "replicas", "executions"])
def test_waiting_is_measured_wherever_training_works(tmp_path, case, request):
    import contextlib

    arguments = {
        "compiled": {"jit_compile": True}, "eager": {"run_eagerly": True}, "executions": {"steps_per_execution": 2},
    }.get(case, {})  # fmt: skip
    scope = request.getfixturevalue("two_replicas").scope() if case == "replicas" else contextlib.nullcontext()
    with scope:
        model = make_model(**arguments)
    x = np.ones((64, 3), "float32")
    monitor = callbacks.TrainingMonitor(tmp_path, every=4, tensorboard=False)
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[monitor], validation_data=(x, x[:, :1]), epochs=2)
    measured = case in ("compiled", "replicas") and backend.times_batches(model)
    for line in lines(tmp_path)[1:]:
        assert ("data_wait_seconds" in line) is measured
        if measured:
            assert 0 < line["data_wait_seconds"] < 10 and line["compute_seconds"] >= 0


def test_memory_is_that_of_the_process(tmp_path):
    x = np.ones((16, 3), "float32")
    make_model().fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[callbacks.TrainingMonitor(tmp_path, every=2)])
    found = lines(tmp_path)[-1]["host_memory"]
    if os.path.exists("/proc/self/status"):
        status = Path("/proc/self/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
        assert found == pytest.approx(resident, rel=0.3)
    assert found > 50


@pytest.mark.parametrize("given", [None, 7])
def test_tokens(tmp_path, given):
    layers = [keras.layers.Embedding(9, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
    model.compile(optimizers.SGD(0.01), "mse")
    ids = RNG.integers(0, 9, size=(48, 5))
    monitor = callbacks.TrainingMonitor(tmp_path, every=4, tensorboard=False, tokens_per_sample=given)
    model.fit(ids, np.ones((48, 1), "float32"), batch_size=4, verbose=0, callbacks=[monitor])
    line = lines(tmp_path)[1]
    assert line["tokens_per_second"] / line["samples_per_second"] == pytest.approx(given or 5)


def test_share_of_the_peak(tmp_path):
    x = np.ones((48, 3), "float32")
    arguments = {"every": 4, "tensorboard": False, "flops_per_sample": 1e3}
    for name, peak in (("known", 1e9), ("unknown", None)):
        monitor = callbacks.TrainingMonitor(tmp_path / name, peak_flops=peak, **arguments)
        make_model().fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[monitor])
    line = lines(tmp_path / "known")[1]
    assert line["model_flops_utilisation"] == pytest.approx(line["samples_per_second"] * 1e3 / 1e9)
    assert not backend.gpu_names() and "model_flops_utilisation" not in lines(tmp_path / "unknown")[1]
    assert "tokens_per_second" not in line


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA GB200", 2500), ("NVIDIA B200", 2250), ("NVIDIA H200", 989.5), ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5), ("NVIDIA H20", None), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312), ("NVIDIA A10", 125), ("NVIDIA A10G", 70), ("NVIDIA A16", None),
        ("NVIDIA L4", 121), ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112), ("Tesla V100S-PCIE-32GB", 130), ("Tesla T4", 65), ("NVIDIA T400", None),
        ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 3090", 71), ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("NVIDIA RTX A6000", 154.8), ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("AMD Instinct MI300X", 1307.4), ("cpu", None), ("", None),
    ],
)  # fmt: skip
def test_peaks(name, teraflops):
    """Dense products in half precision, as the data sheets have them: half of what they say of sparse ones."""
    assert device_peaks.peak_flops([name]) == (teraflops and pytest.approx(teraflops * 1e12))
    assert device_peaks.peak_flops([name, "something else"]) is None


def test_peaks_of_several_devices():
    assert device_peaks.peak_flops(["Tesla T4", "NVIDIA L4"]) == pytest.approx(186e12)
    assert device_peaks.peak_flops([]) is None


@pytest.mark.parametrize(
    "arguments",
    [{"tokens_per_sample": 0}, {"flops_per_sample": 0.0}, {"peak_flops": -1.0}, {"histograms_every": 0},
     {"layers_every": 0}],
)  # fmt: skip
def test_bad_arguments(tmp_path, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
        callbacks.TrainingMonitor(tmp_path, **arguments)

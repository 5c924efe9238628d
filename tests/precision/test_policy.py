"""Policies by name, and what is said of them on different machines."""

import json

import keras
import numpy as np
import pytest

from keras_trainkit import precision
from keras_trainkit.precision import policy, supported

NAMES = ["float32", "mixed_float16", "mixed_bfloat16", "bfloat16", "float64"]


def on(kind, **details):
    cpu = {"type": "CPU", "name": "CPU:0", "model": "", "features": details.pop("features", [])}
    devices = [cpu] if kind == "CPU" else [cpu, {"type": kind, "name": f"{kind}:0", "model": "", **details}]
    return {entry["policy"]: entry for entry in supported(devices)}


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_the_one_of_keras(name):
    assert policy(name) == keras.dtype_policies.DTypePolicy(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "float64"])
def test_a_model_trains_under_every_policy(name):
    keras.config.set_dtype_policy(policy(name))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    losses = model.fit(x, x[:, :2], batch_size=8, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert keras.backend.standardize_dtype(model(x).dtype) == policy(name).compute_dtype
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {policy(name).variable_dtype}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fp16", "Did you mean 'mixed_float16'?"),
        ("float16", "Did you mean 'mixed_float16'?"),
        ("BF16", "Did you mean 'mixed_bfloat16'?"),
        ("double", "Did you mean 'float64'?"),
        ("mixed_flaot16", "Did you mean 'mixed_float16'"),
        ("int8", "Received: name='int8'"),
    ],
)
def test_an_unknown_name_offers_near_ones(name, hint):
    with pytest.raises(ValueError) as caught:
        policy(name)
    assert hint in str(caught.value) and "'float32', 'mixed_float16', 'mixed_bfloat16'" in str(caught.value)


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match=r"`name` must be a string.*Received: name=16"):
        policy(16)


def test_what_is_supported_here_is_plain_data():
    entries = supported()
    assert [entry["policy"] for entry in entries] == NAMES
    assert json.loads(json.dumps(entries)) == entries
    assert all(set(entry) == set(entries[0]) for entry in entries)
    assert entries == precision.supported()


def test_a_plain_cpu_emulates_both_halves():
    found = on("CPU", features=["avx2"])
    assert [found[name]["fast"] for name in NAMES[:4]] == [True, False, False, False]
    assert "emulated" in found["mixed_float16"]["note"] and found["mixed_float16"]["works"]


@pytest.mark.parametrize(("feature", "fast"), [("avx512_bf16", "bfloat16"), ("amx_fp16", "float16")])
def test_a_newer_cpu_says_what_it_has(feature, fast):
    found = on("CPU", features=["avx2", feature])
    assert found["mixed_bfloat16"]["fast"] == (fast == "bfloat16")
    assert found["mixed_float16"]["fast"] == (fast == "float16")
    assert feature in found[f"mixed_{fast}"]["note"]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), [True, False, False, False]), ((7, 5), [True, True, False, False]), ((9, 0), [True, True, True, True])],
)
def test_a_gpu_goes_by_its_compute_capability(capability, expected):
    found = on("GPU", compute_capability=list(capability))
    assert [found[name]["fast"] for name in NAMES[:4]] == expected
    assert found["mixed_float16"]["device"] == "GPU:0"
    assert ".".join(map(str, capability)) in found["mixed_float16"]["note"]
    assert found["float64"]["fast"] in (capability == (9, 0), False)


def test_an_unknown_device_is_not_judged():
    found = on("GPU")
    assert found["mixed_float16"]["fast"] is None
    assert on("TPU")["mixed_bfloat16"]["fast"] is True


def test_jax_says_that_its_float64_is_float32(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    pytest.importorskip("jax")
    entry = on("CPU")["float64"]
    assert not entry["works"] and "jax_enable_x64" in entry["note"]

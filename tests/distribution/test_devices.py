"""The description of the machine's devices."""

import json

import keras
import pytest

from keras_trainkit.distribution import describe_devices
from keras_trainkit.distribution.devices import describe_cpu

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile

processor\t: 1
model name\t: another
flags\t\t: none
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16 sve\n"


def test_every_device_is_a_plain_dict():
    devices = describe_devices()
    assert json.loads(json.dumps(devices)) == devices
    assert devices[0]["type"] == "CPU"
    assert devices[0]["cores"] >= 1 and devices[0]["memory_bytes"] > 2**20
    assert all({"type", "name", "model"} <= set(device) for device in devices)


@pytest.mark.tensorflow
def test_the_tests_have_two_logical_cpus():
    assert describe_devices()[0]["logical_devices"] == 2


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (XEON, ["avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16"]),
        (GRAVITON, ["float16", "bfloat16"]),
        ("", []),
    ],
)
def test_the_cpu_is_read_from_cpuinfo(text, features):
    cpu = describe_cpu(text)
    assert cpu["features"] == features
    assert (cpu["model"] == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz") == (text is XEON)


@pytest.mark.tensorflow
def test_a_gpu_is_described_by_what_tensorflow_says(monkeypatch):
    import tensorflow as tf

    cpu, gpu = (tf.config.PhysicalDevice(f"/physical_device:{kind}:0", kind) for kind in ("CPU", "GPU"))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda: [cpu, gpu])
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda device: None)
    details = {"device_name": "NVIDIA H200", "compute_capability": (9, 0)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert describe_devices()[0]["logical_devices"] == 1
    expected = {"type": "GPU", "name": "GPU:0", "model": "NVIDIA H200", "compute_capability": [9, 0]}
    assert describe_devices()[1] == expected


def test_another_backend_still_names_the_cpu(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    assert [device["type"] for device in describe_devices()] == ["CPU"]

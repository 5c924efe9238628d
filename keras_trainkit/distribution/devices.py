"""What this machine computes on, as plain data."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import keras
import psutil

CPU_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
    "amx_fp16": "amx_fp16",
    "asimdhp": "float16",
    "bf16": "bfloat16",
}
"""The instruction sets that decide which number formats are fast: Linux's names (x86, Arm) and ours."""


def describe_devices() -> list[dict[str, Any]]:
    """One plain dict per device that the backend can use, the CPU first; ready for JSON.

    Each has `type` ("CPU", "GPU", "TPU"), `name` ("GPU:0") and `model`. A CPU adds `cores` (that this process may
    use), `memory_bytes` (of the machine), `features` (instruction sets that matter for precision) and
    `logical_devices` (into how many it is split, see `strategy`). A GPU adds `compute_capability`, a list of two
    integers, where TensorFlow knows it. TensorFlow's devices are not started by asking.

    >>> describe_devices()[0]["type"]
    'CPU'
    """
    if keras.backend.backend() == "jax":
        return _jax_devices()
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_devices()
    return [describe_cpu()]


def describe_cpu(cpuinfo: str | None = None) -> dict[str, Any]:
    """The CPU's entry in `describe_devices`; `cpuinfo` stands in for the text of Linux's /proc/cpuinfo."""
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text(errors="replace") if path.is_file() else ""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return {
        "type": "CPU",
        "name": "CPU:0",
        "model": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "features": [name for flag, name in CPU_FEATURES.items() if flag in flags],
        "logical_devices": 1,
    }


def _tensorflow_devices() -> list[dict[str, Any]]:
    import tensorflow as tf

    found = []
    for device in tf.config.get_visible_devices():
        name = ":".join(device.name.split(":")[-2:])
        if device.device_type == "CPU":
            split = tf.config.get_logical_device_configuration(device)
            found.append({**describe_cpu(), "name": name, "logical_devices": len(split or [None])})
            continue
        details = tf.config.experimental.get_device_details(device)
        entry: dict[str, Any] = {"type": device.device_type, "name": name, "model": details.get("device_name", "")}
        if "compute_capability" in details:
            entry["compute_capability"] = list(details["compute_capability"])
        found.append(entry)
    return found


def _jax_devices() -> list[dict[str, Any]]:
    import jax

    accelerators = [device for device in jax.devices() if device.platform != "cpu"]
    cpu = {**describe_cpu(), "logical_devices": len(jax.devices("cpu"))}
    return [cpu] + [
        {"type": device.platform.upper(), "name": f"{device.platform.upper()}:{device.id}", "model": device.device_kind}
        for device in accelerators
    ]

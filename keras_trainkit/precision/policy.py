"""The dtype policies to train in, by name, and what this machine makes of each."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core.checks import did_you_mean
from keras_trainkit.distribution.devices import describe_devices

POLICIES = ["float32", "mixed_float16", "mixed_bfloat16", "bfloat16", "float64"]
OTHER_NAMES = {
    "fp32": "float32",
    "single": "float32",
    "float": "float32",
    "fp16": "mixed_float16",
    "16": "mixed_float16",
    "16-mixed": "mixed_float16",
    "half": "mixed_float16",
    "float16": "mixed_float16",
    "amp": "mixed_float16",
    "bf16": "mixed_bfloat16",
    "bf16-mixed": "mixed_bfloat16",
    "bf16-true": "bfloat16",
    "fp64": "float64",
    "double": "float64",
}
"""Names that people bring from elsewhere, and the policy to offer them."""


def policy(name: str) -> keras.DTypePolicy:
    """The Keras dtype policy called `name`, for `keras.config.set_dtype_policy` or a layer's `dtype`.

    - `"float32"`: everything in float32. The default, always right.
    - `"mixed_float16"`: computes in float16, keeps the weights in float32. Needs a loss scale, because gradients below
      6e-8 are 0 in float16: `model.compile` adds Keras's own, `precision.LossScaleOptimizer` is the one that is right
      on several replicas.
    - `"mixed_bfloat16"`: computes in bfloat16 (float32's range, 8 bits of precision), keeps the weights in float32.
      Needs no loss scale.
    - `"bfloat16"`: the weights in bfloat16 too. Half the memory, but an update below 1/256 of its weight may be lost:
      expect worse results unless the optimizer makes up for it.
    - `"float64"`: for checking numbers.

    Pure `"float16"` is not offered: its weights lose updates as bfloat16's do, and overflow at 65504 besides.

    Args:
        name: one of the five above.

    Raises:
        TypeError, ValueError: for anything else, with the nearest names.

    >>> policy("mixed_bfloat16").compute_dtype, policy("mixed_bfloat16").variable_dtype
    ('bfloat16', 'float32')
    >>> policy("fp16")
    Traceback (most recent call last):
    ...
    ValueError: `name` must be one of 'float32', 'mixed_float16', 'mixed_bfloat16', 'bfloat16', 'float64'. Received: \
name='fp16'. Did you mean 'mixed_float16'?
    """
    listed = ", ".join(repr(known) for known in POLICIES)
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string, one of {listed}. Received: name={name!r}")
    if name not in POLICIES:
        other = OTHER_NAMES.get(name.lower())
        hint = f". Did you mean {other!r}?" if other else did_you_mean(name, POLICIES)
        raise ValueError(f"`name` must be one of {listed}. Received: name={name!r}{hint}")
    return keras.dtype_policies.DTypePolicy(name)


def supported(devices: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """What this machine makes of each policy: plain dicts, in the order of `POLICIES`, ready for JSON.

    Each has `policy`, `compute_dtype`, `variable_dtype`, `device` (the first accelerator, or the CPU), `works` (it
    gives right results), `fast` (the hardware has instructions for it; None where that is not known) and `note`, one
    sentence. It is told from what the hardware says of itself, not measured.

    Args:
        devices: what `distribution.describe_devices` gave; None asks it.

    >>> [entry["policy"] for entry in supported()]
    ['float32', 'mixed_float16', 'mixed_bfloat16', 'bfloat16', 'float64']
    """
    devices = describe_devices() if devices is None else devices
    device = next((d for d in devices if d["type"] != "CPU"), devices[0])
    entries = []
    for name in POLICIES:
        found = keras.dtype_policies.DTypePolicy(name)
        fast, note = _on_device(found.compute_dtype, device)
        works = True
        if name == "bfloat16":
            note += " Weights in bfloat16 lose small updates."
        if name == "float64" and keras.backend.backend() == "jax" and not _jax_has_float64():
            works, fast, note = False, False, "JAX makes float32 of it unless jax_enable_x64 is set."
        entries.append(
            {
                "policy": name,
                "compute_dtype": found.compute_dtype,
                "variable_dtype": found.variable_dtype,
                "device": device["name"],
                "works": works,
                "fast": fast,
                "note": note,
            }
        )
    return entries


def _on_device(dtype: str, device: dict[str, Any]) -> tuple[bool | None, str]:
    if device["type"] == "CPU":
        return _on_cpu(dtype, set(device.get("features", [])))
    if device["type"] == "GPU" and "compute_capability" in device:
        return _on_nvidia(dtype, tuple(device["compute_capability"]))
    if device["type"] == "TPU":
        return {
            "bfloat16": (True, "What the matrix units compute in."),
            "float16": (False, "Use bfloat16: a TPU has no float16 matrix units."),
            "float64": (False, "Emulated."),
        }.get(dtype, (True, "Matrix products run in bfloat16 unless a higher precision is asked for."))
    return None, "Not known for this device."


def _on_cpu(dtype: str, features: set[str]) -> tuple[bool, str]:
    if dtype == "float32":
        return True, "What the CPU does best."
    if dtype == "float64":
        return False, "Right, at half of float32's speed or less."
    if dtype == "bfloat16":
        hardware = sorted(features & {"amx_bf16", "avx512_bf16", "bfloat16"})
        if hardware:
            return True, f"The CPU has instructions for it ({', '.join(hardware)}); about as fast as float32 or faster."
        return False, "Right, but emulated: slower than float32."
    hardware = sorted(features & {"amx_fp16", "avx512_fp16"})
    if hardware:
        return True, f"The CPU has instructions for it ({', '.join(hardware)}); convolutions may still be emulated."
    return False, "Right, but emulated: several times slower than float32. For testing what a GPU will do."


def _on_nvidia(dtype: str, capability: tuple[int, ...]) -> tuple[bool, str]:
    version = ".".join(str(part) for part in capability)
    if dtype == "float32":
        tensor_float = " TensorFlow lets tensor cores round products to TensorFloat-32." if capability >= (8, 0) else ""
        return True, f"Compute capability {version}.{tensor_float}"
    if dtype == "float16":
        if capability >= (7, 0):
            return True, f"Tensor cores (compute capability {version})."
        return False, f"No tensor cores (compute capability {version}; they came with 7.0): saves memory, little time."
    if dtype == "bfloat16":
        if capability >= (8, 0):
            return True, f"Tensor cores (compute capability {version})."
        return False, f"Emulated (compute capability {version}; the hardware came with 8.0): use mixed_float16."
    fast = capability in {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
    speed = "half of float32's speed outside tensor cores" if fast else "a small fraction of float32's speed"
    return fast, f"Compute capability {version}: {speed}."


def _jax_has_float64() -> bool:
    import jax

    return bool(jax.config.jax_enable_x64)

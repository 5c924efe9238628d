"""`keras-trainkit doctor`: versions, devices, precisions, memory, and what will not work on this machine and why."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from typing import Any

from keras_trainkit.cli.errors import COMPLETED
from keras_trainkit.cli.quiet import import_tensorflow

# First and last versions that the tests run with.
TESTED = {"keras": ((3, 10), (3, 15)), "tensorflow": ((2, 18), (2, 21))}
LITTLE_MEMORY_GIB, LITTLE_DISK_GIB = 2.0, 1.0


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="show versions, devices and precisions, and what will not work here",
        description="Looks at the installation and the machine, and says what will not work here and why.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Examines and prints."""
    facts = examine()
    print(json.dumps(facts, indent=2) if arguments.json else text(facts))
    return COMPLETED


def examine() -> dict[str, Any]:
    """All facts, as plain values; `limits` says what will not work here and why."""
    import psutil

    from keras_trainkit.recipes import environment

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(os.getcwd())
    facts: dict[str, Any] = {
        "versions": environment.versions(),
        "machine": {
            **environment.machine(),
            "memory_available_gib": round(memory.available / 2**30, 1),
            "disk_free_gib": round(disk.free / 2**30, 1),
        },
        "backend": None,
        "devices": [],
        "precisions": [],
        "import_error": None,
    }
    try:
        import_tensorflow()
        import keras
    except Exception as error:
        facts["import_error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        from keras_trainkit import distribution

        facts["backend"] = keras.backend.backend()
        facts["devices"] = distribution.describe_devices()
        facts["precisions"] = precisions(facts["devices"])
    facts["limits"] = limits(facts)
    return facts


def precisions(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the hardware says of each precision, and the measured `speed` of a matrix product, float32 = 1."""
    from keras_trainkit import precision

    seconds: dict[str, float] = {}
    answers = []
    for answer in precision.supported(devices):
        dtype = answer["compute_dtype"]
        try:
            if dtype not in seconds:
                seconds[dtype] = product_seconds(answer["device"], dtype)
            answers.append({**answer, "speed": round(seconds["float32"] / seconds[dtype], 2)})
        except Exception as error:
            answers.append({**answer, "works": False, "speed": None, "note": " ".join(str(error).split())})
    return answers


def product_seconds(device: str, dtype: str, size: int = 512, repeats: int = 5) -> float:
    """The shortest time that a product of two square matrices takes."""
    import tensorflow as tf

    with tf.device(device):
        matrix = tf.cast(tf.random.stateless_normal((size, size), seed=(0, 0)), dtype)
        tf.linalg.matmul(matrix, matrix).numpy()
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            tf.linalg.matmul(matrix, matrix).numpy()
            times.append(time.perf_counter() - began)
    return min(times)


def limits(facts: dict[str, Any]) -> list[str]:
    """What will not work, or not well, and why."""
    said = version_limits(facts["versions"])
    machine = facts["machine"]
    if facts["import_error"]:
        said.append(f"nothing can be trained: TensorFlow or Keras cannot be imported ({facts['import_error']})")
    elif facts["backend"] != "tensorflow":
        said.append(
            f"'train' will refuse: Keras runs on {facts['backend']}, it needs TensorFlow; set KERAS_BACKEND=tensorflow"
        )
    gpus = [device for device in facts["devices"] if device["type"] == "GPU"]
    if not facts["import_error"] and not gpus:
        said.append("no GPU is visible to TensorFlow, so training runs on the processor" + missing_gpu_hint())
        said.append("--replicas above 1 makes logical CPUs: right results, but no gain in speed")
        said.append("jit_compile=True fails under MirroredStrategy on processors (TensorFlow's XLA)")
    elif gpus:
        said.append(f"--replicas above {len(gpus)} is refused: there are no more GPUs")
    for answer in facts["precisions"]:
        if not answer["works"]:
            said.append(f"--precision {answer['policy']} does not work: {answer['note']}")
        elif answer["policy"] == "mixed_float16" and not answer["fast"]:
            said.append("--precision mixed_float16 gives right results, but the hardware has no instructions for it")
    if not has("pyyaml"):
        said.append("recipes in YAML cannot be read: PyYAML is missing (pip install 'keras-trainkit[yaml]'); JSON can")
    if machine["memory_available_gib"] < LITTLE_MEMORY_GIB:
        said.append(
            f"only {machine['memory_available_gib']} GiB of memory are free; TensorFlow and a small model take about 1"
        )
    if machine["disk_free_gib"] < LITTLE_DISK_GIB:
        said.append(f"only {machine['disk_free_gib']} GiB are free on the disk of this folder, where runs/ would be")
    return said


def version_limits(versions: dict[str, str | None]) -> list[str]:
    """Packages that are missing, or outside of the versions that the kit is tested with."""
    said = []
    for package, (first, last) in TESTED.items():
        version = versions[package]
        span = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
        if version is None:
            said.append(f"{package} is not installed; versions {span} are tested")
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < first:
            said.append(f"{package} {version} is too old; versions {span} are tested")
        elif numbers > last:
            said.append(f"{package} {version} is newer than what is tested, {span}; something may have moved")
    return said


def missing_gpu_hint() -> str:
    """What to do where there is a GPU that TensorFlow does not see, or nothing."""
    if platform.system() == "Windows":
        return "; TensorFlow for Windows has no GPU support, WSL 2 has"
    if shutil.which("nvidia-smi") is None:
        return ""
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if not answer.stdout.startswith("GPU"):
        return ""
    return "; there is one, but TensorFlow lacks its libraries: pip install 'tensorflow[and-cuda]'"


def has(package: str) -> bool:
    """Whether a package is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def text(facts: dict[str, Any]) -> str:
    """The facts for people."""
    machine = facts["machine"]
    lines = ["Versions"]
    lines += [f"  {name:<16}{version or 'missing'}" for name, version in facts["versions"].items()]
    lines += [
        "",
        "Machine",
        f"  system          {machine['system']}",
        f"  memory          {machine['memory_gib']} GiB, {machine['memory_available_gib']} GiB free",
        f"  disk here       {machine['disk_free_gib']} GiB free",
    ]
    lines += [f"  {device['name']:<16}{device_text(device)}" for device in facts["devices"]]
    if facts["precisions"]:
        lines += ["", f"Precision (speed of a matrix product on {facts['precisions'][0]['device']}, float32 = 1)"]
    for answer in facts["precisions"]:
        speed = "" if answer["speed"] is None else f"{answer['speed']:.2f}"
        lines.append(f"  {answer['policy']:<16}{speed:<6}{answer['note']}")
    lines += ["", "What will not work here, or not well"]
    lines += [f"  - {limit}" for limit in facts["limits"]] or ["  nothing that is known"]
    return "\n".join(lines)


def device_text(device: dict[str, Any]) -> str:
    """A device in a few words."""
    parts = [device["model"] or device["type"]]
    if "cores" in device:
        parts.append(f"{device['cores']} cores")
    if device.get("features"):
        parts.append(" ".join(device["features"]))
    if "compute_capability" in device:
        parts.append("compute capability " + ".".join(str(part) for part in device["compute_capability"]))
    return ", ".join(parts)

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
from pathlib import Path
from typing import Any

from keras_trainkit.cli.errors import COMPLETED
from keras_trainkit.cli.quiet import import_tensorflow

# First and last versions that the tests run with.
TESTED = {"keras": ((3, 10), (3, 15)), "tensorflow": ((2, 18), (2, 21))}
PRECISIONS = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16", "float64": "float64"}
# Processor features, as Linux names them, that compute in half precision.
CPU_HALVES = {"mixed_bfloat16": ("amx_bf16", "avx512_bf16"), "mixed_float16": ("amx_fp16", "avx512_fp16")}
GPU_HALVES = {"mixed_bfloat16": (8, 0), "mixed_float16": (7, 0)}
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
            "processor": processor(),
            "memory_available_gib": round(memory.available / 2**30, 1),
            "disk_free_gib": round(disk.free / 2**30, 1),
        },
        "backend": None,
        "gpus": [],
        "precisions": {},
        "import_error": None,
    }
    try:
        import_tensorflow()
        import keras
        import tensorflow as tf
    except Exception as error:
        facts["import_error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        facts["backend"] = keras.backend.backend()
        facts["gpus"] = gpus(tf)
        facts["precisions"] = precisions(tf, facts["gpus"])
    facts["limits"] = limits(facts)
    return facts


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def processor_features() -> set[str]:
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        found = re.search(r"flags\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return set(found[1].split()) if found else set()


def gpus(tf: Any) -> list[dict[str, Any]]:
    """Name and compute capability of the GPUs that TensorFlow sees."""
    found = []
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        found.append(
            {"name": details.get("device_name", device.name), "compute_capability": details.get("compute_capability")}
        )
    return found


def precisions(tf: Any, found_gpus: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each precision: whether a matrix product runs, its speed against float32, whether hardware computes in it."""
    device = "GPU:0" if found_gpus else "CPU:0"
    features = processor_features()
    answers: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for name, dtype in PRECISIONS.items():
        try:
            seconds[name] = product_seconds(tf, device, dtype)
        except Exception as error:
            answers[name] = {"works": False, "why": " ".join(str(error).split())}
            continue
        native = True
        if name in CPU_HALVES:
            capability = found_gpus[0]["compute_capability"] if found_gpus else None
            if found_gpus:
                native = capability is not None and tuple(capability) >= GPU_HALVES[name]
            else:
                native = any(feature in features for feature in CPU_HALVES[name])
        answers[name] = {"works": True, "native": native, "speed": round(seconds["float32"] / seconds[name], 2)}
    return answers


def product_seconds(tf: Any, device: str, dtype: str, size: int = 512, repeats: int = 5) -> float:
    """The shortest time that a product of two square matrices takes."""
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
    if not facts["import_error"] and not facts["gpus"]:
        said.append("no GPU is visible to TensorFlow, so training runs on the processor" + missing_gpu_hint())
        said.append("--replicas above 1 makes logical CPUs: right results, but no gain in speed")
        said.append("jit_compile=True fails under MirroredStrategy on processors (TensorFlow's XLA)")
    if len(facts["gpus"]) == 1:
        said.append("one GPU: --replicas above 1 makes logical CPUs instead, and is slower")
    for name, answer in facts["precisions"].items():
        if not answer["works"]:
            said.append(f"--precision {name} does not work: {answer['why']}")
        elif name in CPU_HALVES and not answer["native"]:
            said.append(
                f"--precision {name} works, but the hardware does not compute in it: "
                f"{answer['speed']} times the speed of float32"
            )
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
        f"  processor       {machine['processor']}, {machine['cores']} cores",
        f"  memory          {machine['memory_gib']} GiB, {machine['memory_available_gib']} free",
        f"  disk here       {machine['disk_free_gib']} GiB free",
    ]
    for gpu in facts["gpus"]:
        capability = ".".join(str(part) for part in gpu["compute_capability"] or ["?"])
        lines.append(f"  GPU             {gpu['name']}, compute capability {capability}")
    if not facts["gpus"]:
        lines.append("  GPU             none")
    if facts["precisions"]:
        lines += [
            "",
            f"Precision (speed of a matrix product on the {'GPU' if facts['gpus'] else 'processor'}, float32 = 1)",
        ]
    for name, answer in facts["precisions"].items():
        says = (
            f"{answer['speed']:<6} {'native' if answer['native'] else 'emulated'}"
            if answer["works"]
            else "does not work"
        )
        lines.append(f"  {name:<16}{says}")
    lines += ["", "What will not work here"]
    lines += [f"  - {limit}" for limit in facts["limits"]] or ["  nothing that is known"]
    return "\n".join(lines)

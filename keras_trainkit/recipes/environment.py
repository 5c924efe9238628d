"""What a run ran on: versions, machine, devices. No host name, no user name."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import psutil

from keras_trainkit._version import __version__

PACKAGES = ("keras", "tensorflow", "numpy", "keras-tuner", "tensorboard", "scikit-learn", "rich")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed versions by package, None where one is missing; nothing is imported."""
    found: dict[str, str | None] = {"python": platform.python_version(), "keras_trainkit": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """System, cores that this process may use, memory in GiB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def devices() -> list[str]:
    """The devices that Keras's backend can use: name and model."""
    from keras_trainkit.distribution import describe_devices

    return [f"{device['name']} {device['model']}".strip() for device in describe_devices()]


def now() -> str:
    """The time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")

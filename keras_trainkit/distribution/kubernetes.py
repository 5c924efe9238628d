"""The workers of an indexed Job of Kubernetes, from the variables of its pods."""

from __future__ import annotations

from collections.abc import Mapping

from keras_trainkit.distribution.hosts import PORT

INDEX = "JOB_COMPLETION_INDEX"
WORKERS, SERVICE = "KERAS_TRAINKIT_WORKERS", "KERAS_TRAINKIT_SERVICE"


def described_in(environ: Mapping[str, str]) -> bool:
    """Whether this is a pod of an indexed Job whose manifest says how many there are."""
    return INDEX in environ and WORKERS in environ


def read(environ: Mapping[str, str]) -> tuple[list[str], int]:
    """The addresses of all pods, in the order of their indices, and the index of this one."""
    index, count = _number(environ, INDEX), _number(environ, WORKERS)
    port = _number(environ, "KERAS_TRAINKIT_PORT", PORT)
    service = environ.get(SERVICE, "")
    if not service:
        raise ValueError(f"`{SERVICE}` must name the headless Service that is the `subdomain` of the Job's pods.")
    if index >= count:
        raise ValueError(f"`{WORKERS}` must be above the pod's index, {index}. Received: {WORKERS}={count}")
    job = environ.get("KERAS_TRAINKIT_JOB") or environ.get("HOSTNAME", "").removesuffix(f"-{index}")
    if not job:
        raise ValueError("`KERAS_TRAINKIT_JOB` must be the name of the Job where `HOSTNAME` is not set.")
    return [f"{job}-{other}.{service}:{port}" for other in range(count)], index


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name, "")
    if value.isdigit():
        return int(value)
    if default is not None and not value:
        return default
    raise ValueError(f"`{name}` must be a number from 0 on. Received: {name}={value!r}")

"""The workers of a Slurm step, from the variables that `srun` sets for each of its tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PART = re.compile(r"[^,\[\]]*(?:\[[^\[\]]+\][^,\[\]]*)*")
_SIZE = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_PORTS, _SPREAD = 20000, 10000


def described_in(environ: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of a step."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    return "SLURM_PROCID" in environ and tasks.isdigit() and int(tasks) > 1


def read(environ: Mapping[str, str], port: int | None = None) -> tuple[list[str], int]:
    """The addresses of all tasks, in their order, and the number of this one."""
    nodes = expand_nodes(_first(environ, "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"))
    sizes = expand_sizes(_first(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    index = _number(environ, "SLURM_PROCID")
    if len(nodes) != len(sizes):
        raise ValueError(
            f"Slurm names {len(nodes)} nodes ({', '.join(nodes)}) and the tasks of {len(sizes)}: "
            "the node list and the tasks per node must be those of one step."
        )
    places = _places(sizes, environ.get("SLURM_DISTRIBUTION", "block"))
    if index >= len(places):
        raise ValueError(f"`SLURM_PROCID` must be below {len(places)}, the tasks. Received: SLURM_PROCID={index}")
    for name, expected in zip(("SLURM_NODEID", "SLURM_LOCALID"), places[index], strict=True):
        if name in environ and _number(environ, name) != expected:
            raise ValueError(
                f"`{name}` contradicts `SLURM_PROCID`={index}, whose task should have {expected}: the tasks lie "
                f"otherwise than by block or cyclic. Received: {name}={environ[name]}"
            )
    first = port or _port(environ)
    return [f"{nodes[node]}:{first + local}" for node, local in places], index


def expand_nodes(text: str) -> list[str]:
    """The names in a node list, in its order; digits keep their leading zeros.

    >>> expand_nodes("login,n[08-10,12]-ib")
    ['login', 'n08-ib', 'n09-ib', 'n10-ib', 'n12-ib']
    >>> expand_nodes("r[1-2]n[1-2]")
    ['r1n1', 'r1n2', 'r2n1', 'r2n2']
    """
    names: list[str] = []
    position = 0
    while position <= len(text):
        part = _PART.match(text, position)
        end = part.end() if part else position
        if end == position or text[end : end + 1] not in ("", ","):
            raise ValueError(f"A Slurm node list must be such as node[01-03,7],gpu1. Received: {text!r}")
        names += _expand_part(text[position:end], text)
        position = end + 1
    return names


def _expand_part(part: str, text: str) -> list[str]:
    names = [""]
    for piece in re.split(r"(\[[^\]]+\])", part):
        choices = [c for span in piece[1:-1].split(",") for c in _span(span, text)] if piece[:1] == "[" else [piece]
        names = [name + choice for name in names for choice in choices]
    return names


def _span(span: str, text: str) -> list[str]:
    found = _RANGE.fullmatch(span)
    last = int(found[2] or found[1]) if found else -1
    if found is None or last < int(found[1]):
        raise ValueError(f"A Slurm node list must have ranges such as 01-03. Received: {span!r} in {text!r}")
    return [str(number).zfill(len(found[1])) for number in range(int(found[1]), last + 1)]


def expand_sizes(text: str) -> list[int]:
    """The tasks on each node.

    >>> expand_sizes("2(x3),1")
    [2, 2, 2, 1]
    """
    sizes: list[int] = []
    for part in text.split(","):
        found = _SIZE.fullmatch(part)
        if found is None:
            raise ValueError(f"Slurm's tasks per node must be such as 2(x3),1. Received: {text!r}")
        sizes += [int(found[1])] * int(found[2] or 1)
    return sizes


def _places(sizes: list[int], distribution: str) -> list[tuple[int, int]]:
    """Node, and number within the node, of each task."""
    places = [(node, local) for node, size in enumerate(sizes) for local in range(size)]
    if re.split(r"[:,]", distribution)[0] == "cyclic":
        return sorted(places, key=lambda place: (place[1], place[0]))
    return places


def _port(environ: Mapping[str, str]) -> int:
    if environ.get("SLURM_STEP_RESV_PORTS"):
        first = re.match(r"\d+", environ["SLURM_STEP_RESV_PORTS"])
        if first is None:
            raise ValueError(
                "`SLURM_STEP_RESV_PORTS` must begin with a port. "
                f"Received: SLURM_STEP_RESV_PORTS={environ['SLURM_STEP_RESV_PORTS']}"
            )
        return int(first[0])
    job, step = (_number(environ, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    # 64 apart, because the tasks of a node take ports one after the other.
    return _PORTS + (job * 64 + step * 1024) % _SPREAD


def _first(environ: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environ.get(name):
            return environ[name]
    raise ValueError(f"Slurm's variable `{names[0]}` must be set, as `srun` does for each task.")


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name, "")
    if value.isdigit():
        return int(value)
    if default is not None:
        return default
    raise ValueError(f"`{name}` must be a number from 0 on, as `srun` sets it. Received: {name}={value!r}")

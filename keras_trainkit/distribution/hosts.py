"""Addresses of workers, and the file that lists them."""

from __future__ import annotations

import os
import re
from pathlib import Path

PORT = 12345
"""The port of a worker that nobody gave one."""

_LINE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:=\[\]]+)(?::(?P<port>\d+))?(?P<settings>(?:\s+\w+=\d+)*)")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:=\[\]]+):(?P<port>\d+)")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `"host:port"`; the brackets around an IPv6 address are taken off.

    >>> split_address("[::1]:80")
    ('::1', 80)
    """
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(f'`workers` must be addresses such as "node1:12345". Received: {address!r}')
    return found["host"].strip("[]"), int(found["port"])


def read(path: str | os.PathLike[str]) -> list[str]:
    """The workers that a hosts file lists, as `"host:port"`, in its order."""
    found: list[str] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if text:
            found += _workers(text, f"{os.fspath(path)}, line {number}")
    if not found:
        raise ValueError(f"{os.fspath(path)} lists no workers.")
    return found


def _workers(text: str, place: str) -> list[str]:
    line = _LINE.fullmatch(text)
    if line is None:
        raise ValueError(f"{place} must be `host:port` or `host slots=N port=P`. Received: {text!r}")
    given = [pair.split("=") for pair in line["settings"].split()]
    settings = {name: int(value) for name, value in given}
    unknown = set(settings) - {"slots", "port"}
    if unknown or len(given) != len(settings) or (line["port"] and "port" in settings):
        raise ValueError(f"{place} must have `slots` and `port` once at most, and nothing else. Received: {text!r}")
    first, slots = int(line["port"] or settings.get("port", PORT)), settings.get("slots", 1)
    if not (slots >= 1 and 0 < first <= 65536 - slots):
        raise ValueError(f"{place} must have slots from 1 on, and ports from 1 to 65535. Received: {text!r}")
    return [f"{line['host']}:{first + slot}" for slot in range(slots)]

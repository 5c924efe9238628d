"""When a state is due: by the clock, by batches, or by epochs."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from keras_trainkit.core import checks

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|min|h|ep)")


@dataclasses.dataclass(frozen=True)
class Every:
    """How often states are saved; one of the three is not None."""

    seconds: float | None = None
    batches: int | None = None
    epochs: int | None = None


def parse(value: Any) -> Every:
    """What `every` means: a number of batches, or a text such as "10min", "90s", "2h" or "1ep".

    >>> parse("10min"), parse(500), parse("2ep")
    (Every(seconds=600.0, batches=None, epochs=None), Every(seconds=None, batches=500, epochs=None), \
Every(seconds=None, batches=None, epochs=2))
    """
    if not isinstance(value, str):
        return Every(batches=checks.integer("every", value, at_least=1))
    match = _TEXT.fullmatch(value.strip())
    count = float(match[1]) if match else 0.0
    if match is None or count <= 0 or (match[2] == "ep" and count != int(count)):
        raise ValueError(
            "`every` must be a number of batches of at least 1, or a text such as '10min', '90s', '2h' or '1ep' "
            f"(epochs). Received: every={value!r}"
        )
    if match[2] == "ep":
        return Every(epochs=int(count))
    return Every(seconds=count * _UNITS[match[2]])


class Occasions:
    """Says when the next state is due; counts from the last one."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self.start()

    def start(self) -> None:
        """A state has just been taken."""
        self._time = time.monotonic()
        self._batches = self._epochs = 0

    def add_batches(self, count: int) -> None:
        """So many batches were trained on."""
        self._batches += count

    def add_epoch(self) -> None:
        """An epoch has ended."""
        self._epochs += 1

    @property
    def due(self) -> bool:
        """Whether a state is due."""
        every = self.every
        if every.seconds is not None:
            return time.monotonic() - self._time >= every.seconds
        if every.batches is not None:
            return self._batches >= every.batches
        return self._epochs >= (every.epochs or 0)

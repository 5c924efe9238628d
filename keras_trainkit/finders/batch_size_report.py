"""What a search for the batch size found. Needs no Keras."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from keras_trainkit.core import tables

if TYPE_CHECKING:
    from keras_trainkit.finders.noise_scale import NoiseScale

_UNITS = {"": 1, "B": 1} | {f"{p}B": 1000**i for i, p in enumerate("kMGT", 1)}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One size that was tried.

    Attributes:
        size: samples in a batch on one device.
        fits: whether it did.
        peak: the most memory of the process during it, in bytes; None where the device alone knows.
        reason: why it does not fit.
    """

    size: int
    fits: bool
    peak: int | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """The size of a batch that fits, and what makes it the batch that was asked for. Print it to see the trials.

    Attributes:
        largest: the most samples that one device takes at once.
        batch_size: what to pass to `fit`: samples on all replicas together.
        gradient_accumulation_steps: what to pass to the optimizer; 1 where nothing needs to be summed.
        replicas: how many share a batch.
        memory: the limit in bytes; None for the device's own.
        idle: the memory of the process before the first batch, in bytes; None where the device alone knows.
        trials: the sizes that were tried, in the order of trying.
        noise: the noise scale that set the batch of an update; None where memory did.
    """

    largest: int
    batch_size: int
    gradient_accumulation_steps: int
    replicas: int
    memory: int | None
    idle: int | None
    trials: list[Trial]
    noise: NoiseScale | None = None

    @property
    def effective(self) -> int:
        """Samples of an update: of all replicas and of a whole window."""
        return self.batch_size * self.gradient_accumulation_steps

    def __str__(self) -> str:
        rows = [["samples on a device", "memory at most", "fits"]]
        for trial in sorted(self.trials, key=lambda t: t.size):
            peak = "" if trial.peak is None else mebibytes(trial.peak)
            rows.append([str(trial.size), peak, "yes" if trial.fits else f"no: {trial.reason}"])
        limit = "the device's own" if self.memory is None else mebibytes(self.memory)
        before = "" if self.idle is None else f", {mebibytes(self.idle)} before the first batch"
        return "\n".join(
            [
                *tables.aligned(rows),
                *([] if self.noise is None else [str(self.noise)]),
                f"limit: {limit}{before}",
                f"largest on one device: {self.largest}",
                f"batch_size={self.batch_size}, gradient_accumulation_steps={self.gradient_accumulation_steps} "
                f"on {self.replicas} replica{'s' if self.replicas > 1 else ''}: {self.effective} samples an update",
            ]
        )


def mebibytes(count: int) -> str:
    """Bytes as a person reads them.

    >>> mebibytes(3 * 2**20)
    '3 MiB'
    """
    return f"{count / 2**20:,.0f} MiB"


def byte_count(name: str, value: Any) -> int:
    """A number of bytes, or one with a unit, as bytes.

    >>> byte_count("memory", "1.5GiB"), byte_count("memory", "2 GB"), byte_count("memory", 4096)
    (1610612736, 2000000000, 4096)
    """
    message = (
        f'`{name}` must be a number of bytes above 0, or a text such as "4GiB" or "500MB". Received: {name}={value!r}'
    )
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(message)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise ValueError(message)
    return int(float(match[1]) * _UNITS[match[2]])


def near(critical: int, replicas: int, samples: int) -> int:
    """A batch near the critical one that divides evenly: a power of two on each replica, of at most all samples.

    The nearest power in ratio; at least one sample on a replica.

    >>> near(1000, 2, 10**6), near(90, 1, 10**6), near(1000, 1, 300), near(1, 4, 300)
    (1024, 64, 256, 4)
    """
    exponent = max(0, round(math.log2(critical / replicas)))
    most = max(0, (samples // replicas).bit_length() - 1)
    return replicas * 2 ** min(exponent, most)


def divided(effective: int, replicas: int, largest: int) -> tuple[int, int]:
    """Batch size and accumulation steps that make `effective` samples of at most `largest` on each replica.

    The fewest steps that divide it evenly, on all replicas.

    >>> divided(1024, 2, 100)
    (128, 8)
    """
    steps = -(-effective // (replicas * largest))
    while effective % (steps * replicas):
        steps += 1
    return effective // steps, steps

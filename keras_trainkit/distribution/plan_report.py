"""`Plan`: what a training would hold, send and take on so many devices, one row for each number of them."""

from __future__ import annotations

import dataclasses

from keras_trainkit.core import tables
from keras_trainkit.distribution.layout_report import Bytes


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One number of devices. Each device holds and sends as much as the others.

    Attributes:
        devices: how many.
        samples: of one device in one step.
        samples_per_update: of all devices, in all micro-batches of a window.
        activations: bytes of a device, what a step needs beyond variables, slots and gradients.
        memory: bytes of a device, all together, when most is in use.
        all_reduce: bytes that a device gives into all-reduces for one update; 0 on one device.
        all_gather: bytes of rows of sparse gradients that a device gives to all others for one update.
        sent: bytes that a device sends for one update, and receives as many.
        compute_seconds: of one update; None in a plan without a bandwidth.
        exchange_seconds: of one update; None in a plan without a bandwidth.
        single_seconds: in which one device would compute what a device's fair share of this update is.
    """

    devices: int
    samples: int
    samples_per_update: int
    activations: int
    memory: int
    all_reduce: int
    all_gather: int
    sent: int
    compute_seconds: float | None = None
    exchange_seconds: float | None = None
    single_seconds: float | None = None

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Of one update: if all is exchanged while nothing is computed, and if exchange and computation overlap whole.

        The truth lies between the two.
        """
        if self.compute_seconds is None or self.exchange_seconds is None:
            return None
        return self.compute_seconds + self.exchange_seconds, max(self.compute_seconds, self.exchange_seconds)

    @property
    def samples_per_second(self) -> tuple[float, float] | None:
        """Of all devices, without and with overlap."""
        if self.seconds is None:
            return None
        alone, overlapped = self.seconds
        return self.samples_per_update / alone, self.samples_per_update / overlapped

    @property
    def efficiency(self) -> tuple[float, float] | None:
        """Samples a second and device, over those of one device alone, without and with overlap."""
        if self.seconds is None or self.single_seconds is None:
            return None
        alone, overlapped = self.seconds
        return self.single_seconds / alone, self.single_seconds / overlapped


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` counted; `print` shows it.

    Attributes:
        rows: a `PlanRow` for each number of devices.
        held: the `Bytes` of parameters, gradients and slots on each device.
        optimizer: the name of the class whose slots are counted, or None.
        scaling: `"weak"` or `"strong"`.
        micro_batches: how many make an update.
        sparse: paths of the variables whose gradients travel by rows.
        bandwidth: bytes a second that each device sends, or None.
        latency: seconds that each message takes beside that.
    """

    rows: list[PlanRow]
    held: Bytes
    optimizer: str | None
    scaling: str
    micro_batches: int
    sparse: list[str]
    bandwidth: float | None
    latency: float

    def __str__(self) -> str:
        slots = "slots" if self.optimizer is None else f"slots of {self.optimizer}"
        held = [
            ["bytes on each device", ""],
            ["parameters", f"{self.held.parameters:,}"],
            ["gradients", f"{self.held.gradients:,}"],
            [slots, f"{self.held.slots:,}" if self.optimizer else "no optimizer given"],
        ]
        head = ["devices", "samples/device", "activations", "all/device", "all-reduced", "gathered", "sent/update"]
        if self.bandwidth is not None:
            head += ["compute", "exchange", "samples/s", "efficiency"]
        unit = "an update" if self.micro_batches == 1 else f"an update of {self.micro_batches} micro-batches"
        lines = [*tables.aligned(held), "", *tables.aligned([head, *map(self._cells, self.rows)]), ""]
        lines.append(f"{self.scaling.capitalize()} scaling; bytes of a device and {unit}.")
        if self.bandwidth is not None:
            lines.append(
                f"Ring of {self.bandwidth:,.6g} bytes/s and {self.latency:g} s a message. From no overlap of "
                "computation and exchange to a whole one."
            )
        if self.sparse:
            lines.append(f"By rows: {', '.join(self.sparse)}.")
        return "\n".join(lines)

    def _cells(self, row: PlanRow) -> list[str]:
        counts = [row.devices, row.samples, row.activations, row.memory, row.all_reduce, row.all_gather, row.sent]
        cells = [f"{count:,}" for count in counts]
        if row.compute_seconds is not None and row.exchange_seconds is not None:
            rates, shares = row.samples_per_second or (), row.efficiency or ()
            cells += [f"{row.compute_seconds:.3g} s", f"{row.exchange_seconds:.3g} s"]
            cells.append(_range([f"{rate:,.0f}" for rate in rates]))
            cells.append(_range([f"{share:.0%}" for share in shares]))
        return cells


def _range(cells: list[str]) -> str:
    return " to ".join(dict.fromkeys(cells))

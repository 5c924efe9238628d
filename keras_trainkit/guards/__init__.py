"""Guards: what looks at a run before it begins, notices that it goes bad, and says where that began.

Reading a dump needs no TensorFlow; only `preflight` does, and it is loaded at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_trainkit.guards.autopsy import Autopsy, NotADump, autopsy
from keras_trainkit.guards.findings import Finding, PreflightError, PreflightReport
from keras_trainkit.guards.spikes import false_alarm_rate

if TYPE_CHECKING:
    from keras_trainkit.guards.checking import preflight

__all__ = [
    "Autopsy",
    "Finding",
    "NotADump",
    "PreflightError",
    "PreflightReport",
    "autopsy",
    "false_alarm_rate",
    "preflight",
]


def __getattr__(name: str) -> Any:
    if name == "preflight":
        from keras_trainkit.guards import checking

        return checking.preflight
    raise AttributeError(f"module 'keras_trainkit.guards' has no attribute {name!r}")

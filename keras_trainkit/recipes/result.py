"""Result: how a run ended, in plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass
class Result:
    """What a run came to; `result.json` holds it.

    `status` is "completed", "interrupted" or "failed" (`error` says why). `test` holds the metrics of the best model on
    the test set, `best` the epoch (from 1) that it comes from. `seconds` is the whole run without the start of
    the program, `samples_per_second` the training alone.
    """

    status: str
    name: str
    task: str
    run_directory: str
    epochs: int
    epochs_completed: int = 0
    updates: int = 0
    parameters: int = 0
    train_examples: int = 0
    test_examples: int = 0
    best: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    seconds: float = 0.0
    train_seconds: float = 0.0
    samples_per_second: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, ready for JSON."""
        return dataclasses.asdict(self)

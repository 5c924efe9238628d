"""What follows a search from the process that owns it: told of every trial and epoch, whoever trains them."""

from __future__ import annotations

from typing import Any

from keras_tuner.engine.trial import Trial


class Watcher:
    """Told by an oracle, under its lock, in its own process. Nothing that it does may change the search."""

    def search_began(self, tuner: Any) -> None:
        """The search begins, or goes on with what is in `tuner.oracle.trials`."""

    def trial_began(self, trial: Trial) -> None:
        """A trial begins, or begins again."""

    def epoch_ended(self, trial: Trial, metrics: dict[str, float], step: int) -> None:
        """A trial reported the epoch `step`, counted from 0."""

    def trial_ended(self, trial: Trial, again: bool) -> None:
        """A trial ended; `again` says that it will be begun once more."""

    def search_ended(self) -> None:
        """The search ended, by an error too."""


def how_it_ended(trial: Trial, early: str | None) -> str:
    """`"completed"`, `"pruned"` or `"failed"`."""
    if trial.status != "COMPLETED":
        return "failed"
    return "pruned" if early and early.startswith("pruned") else "completed"

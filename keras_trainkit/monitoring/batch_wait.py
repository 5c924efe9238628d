"""How long the device waits for data, measured inside the compiled train function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_trainkit.core import backend


class BatchWait:
    """Adds up the time from the beginning of a train function to the arrival of its batch, on TensorFlow.

    Two readings of the clock and an addition, outside of what XLA compiles. It needs one step per execution, and a
    version of Keras that lets it in (later than 3.10); elsewhere there is nothing to read.

    Args:
        model: a compiled model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.able = backend.times_batches(model) and not model.run_eagerly and int(model.steps_per_execution) == 1
        self._seconds: Any = backend.host_variable() if self.able else None
        self._last = 0.0
        self._attached = False

    def attach(self) -> None:
        """The next train function measures."""
        if self.able and not self._attached:
            backend.around_batches(self.model, self._around)
            self._attached = True

    def detach(self) -> None:
        """What is traced from now on does not measure."""
        if self._attached:
            backend.around_batches(self.model, None)
            self._attached = False

    def take(self) -> float | None:
        """Seconds since the last call; None where it cannot measure."""
        if not self.able:
            return None
        now = backend.number(self._seconds)
        before, self._last = self._last, now
        return now - before

    def _around(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(data: Any) -> Any:
            backend.add_waiting(self._seconds, data)
            return step(data)

        return timed

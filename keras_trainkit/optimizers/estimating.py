"""What optimizers have in common that estimate their own rate."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import TransformOptimizer, backend, checks


class EstimatingOptimizer(TransformOptimizer):
    """An optimizer whose transform keeps an `estimate` slot beside each variable, 0 before the first gradient."""

    d0: float
    growth_rate: float | None

    def estimated_rate(self) -> float:
        """The estimate d after the last update, which multiplies `learning_rate`; `d0` before the first."""
        if not self.built:
            return self.d0
        found = [
            float(ops.convert_to_numpy(slot))
            for index in range(len(backend.built_variables(self)))
            for name, slot in self._slots.named(index)
            if name == "estimate"
        ]
        return max(found, default=0.0) or self.d0

    def statistics(self) -> dict[str, float]:
        """The norms of `TransformOptimizer.statistics`, and `estimated_rate`; empty if `watch` was not called."""
        values = super().statistics()
        return values | {"estimated_rate": self.estimated_rate()} if values else {}


def checked_growth_rate(value: Any) -> float | None:
    """A number at least 1; None and infinity, the authors' word for it, say that nothing limits the growth."""
    if value is None or value == float("inf"):
        return None
    return checks.number("growth_rate", value, at_least=1)

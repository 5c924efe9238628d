"""The norms of an update, computed inside the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.numerics import squared_norm, widened
from keras_trainkit.core.state import VariableDict

NAMES = ("gradient_norm", "clipped_gradient_norm", "update_norm", "weight_norm")


class Norms:
    """What the last watched update measured; nothing is watched before `watch`."""

    def __init__(self) -> None:
        self._every = 0
        self._variables: VariableDict | None = None

    def watch(self, every: int) -> None:
        """Measures every so many updates, from the next trace on."""
        self._every = checks.integer("every", every, at_least=1)

    def build(self, add_variable: Callable[..., Any]) -> None:
        """Makes the variables, if they are wanted and not there."""
        if self._every and self._variables is None:
            self._variables = VariableDict({name: add_variable((), dtype="float32", name=name) for name in NAMES})

    def values(self) -> dict[str, float]:
        """The norms by name, and the ratio of the update's to the weights'; empty if nothing was watched."""
        if self._variables is None:
            return {}
        values = {name: float(ops.convert_to_numpy(v)) for name, v in self._variables.items()}
        weight = values["weight_norm"]
        return values | {"update_to_weight_ratio": values["update_norm"] / weight if weight > 0 else float("nan")}

    def measure(
        self, step: Any, gradients: list[Any], clipped: Callable[[], list[Any]], variables: list[Any]
    ) -> Callable[[], None]:
        """Notes where the variables are, if this update is watched; what it returns measures how far they went."""
        if self._variables is None:
            return lambda: None
        due, norms = ops.equal(step % self._every, 0), self._variables
        before = backend.values_if(due, variables)

        def measure() -> None:
            old = [widened(value) for value in before()]
            moved = [widened(backend.read(v)) - value for v, value in zip(variables, old, strict=True)]
            for name, tensors in zip(NAMES, (gradients, clipped(), moved, old), strict=True):
                backend.write(norms[name], ops.sqrt(squared_norm(tensors)))

        return lambda: backend.when(due, measure, None, list(norms.values()))

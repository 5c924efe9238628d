"""`Guard`: a transform that may call a whole step off, and that remembers numbers for the model as a whole."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.transform import Context, State, Tensor, Transform, Treatment


class Guard(Transform):
    """A judge of each step's gradients, among an optimizer's `before`.

    It judges the gradients summed over the replicas (and averaged over an accumulation window), before clipping and
    before every other transform. Where it refuses them, nothing changes but its own memory: no variable, no slot, no
    moving average, and not `iterations`. Subclasses override `judge`, and `memory` if they remember something.
    """

    def memory(self) -> dict[str, str]:
        """Names of the scalars to remember, with `"int"` or `"float"`; they start at zero and are saved."""
        return {}

    def judge(
        self, gradients: list[Tensor], memory: dict[str, Tensor], context: Context
    ) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """The gradients to go on with, a scalar that says whether the step may be taken, and the new memory."""
        raise NotImplementedError(f"{type(self).__name__} must override `judge`.")

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        return updates, states

    def treatment(self, path: str) -> Treatment:
        return Treatment((), True)  # when the update runs the guard has judged already


class GuardRoom:
    """The guards of one optimizer, with the variables that hold their memories.

    Args:
        links: list of transforms, of which the guards are taken.
        add_variable: makes a scalar variable from a kind (`"int"` or `"float"`) and a name.
    """

    def __init__(self, links: list[Transform], add_variable: Any) -> None:
        self._posts = tuple(
            (link, tuple((name, add_variable(kind, name)) for name, kind in link.memory().items()))
            for link in links
            if isinstance(link, Guard)
        )
        self._visitors: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self._posts) + len(self._visitors)

    def admit(self, visitor: Any) -> Any:
        """Has `visitor(gradients, context)` judge, too, from the next trace on; returns a function that ends it.

        It returns a scalar that says whether the step may be taken, and keeps what it remembers itself.
        """
        self._visitors += (visitor,)

        def end() -> None:
            self._visitors = tuple(other for other in self._visitors if other is not visitor)

        return end

    def variables(self) -> list[Any]:
        """The variables of all memories, in the order of the guards."""
        return [variable for _, memory in self._posts for _, variable in memory]

    def values(self) -> list[dict[str, Any]]:
        """What each guard remembers, as numbers, with its class name as `"guard"`."""
        return [
            {"guard": type(guard).__name__} | {name: ops.convert_to_numpy(v).item() for name, v in memory}
            for guard, memory in self._posts
        ]

    def judge(self, gradients: list[Tensor], context: Context) -> tuple[list[Tensor], Tensor]:
        """The gradients that the guards pass on and whether all of them agree; writes the memories."""
        agreed = ops.convert_to_tensor(True)
        for guard, memory in self._posts:
            old = {name: backend.read(variable) for name, variable in memory}
            gradients, admitted, new = guard.judge(gradients, old, context)
            agreed = ops.logical_and(agreed, admitted)
            for name, variable in memory:
                backend.write(variable, new[name])
        for visitor in self._visitors:
            agreed = ops.logical_and(agreed, visitor(gradients, context))
        return gradients, agreed

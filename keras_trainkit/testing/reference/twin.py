"""`Twin`: a whole NumPy optimizer, with clipping, decay and options around one algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import Array
from keras_trainkit.testing.reference.options import Lookahead, cautious


class Twin:
    """One optimizer on a list of arrays, with the order of the kit: clip, before, decay, algorithm, after.

    Args:
        algorithm: makes the state of one array, such as `Adam`.
        global_clipnorm: the largest joint norm of the gradients, or None.
        weight_decay: the decoupled decay.
        before: list of functions (parameter, gradient) -> gradient.
        cautious_mask: whether `cautious` edits the displacements.
        lookahead: (sync_period, slow_step_size), or None.
        guards: list of functions, gradients -> (gradients, whether the step is taken); they come first of all.
        after: list of functions (step, index of the array, parameter, displacement) -> displacement.
    """

    def __init__(
        self,
        algorithm: Callable[[], Any],
        global_clipnorm: float | None = None,
        weight_decay: float = 0.0,
        before: list[Callable[[Array, Array], Array]] | None = None,
        cautious_mask: bool = False,
        lookahead: tuple[int, float] | None = None,
        guards: list[Callable[[list[Array]], tuple[list[Array], bool]]] | None = None,
        after: list[Callable[[int, int, Array, Array], Array]] | None = None,
    ) -> None:
        self.make, self.clip, self.decay = algorithm, global_clipnorm, weight_decay
        self.before, self.cautious, self.lookahead = before or [], cautious_mask, lookahead
        self.guards, self.after = guards or [], after or []

    def run(self, initial: list[Array], gradients: list[list[Array]], rate: Any) -> list[Array]:
        """The parameters after one step for each list of gradients, at a rate or a function of the updates before."""
        rates = rate if callable(rate) else lambda done: rate
        parameters = [np.array(p) for p in initial]
        states = [self.make() for _ in parameters]
        averages = [Lookahead(p, *self.lookahead) for p in parameters] if self.lookahead else None
        count = 0
        for step in gradients:
            reduced, taken = list(step), True
            for guard in self.guards:
                reduced, admitted = guard(reduced)
                taken = taken and admitted
            if not taken:
                continue
            count += 1
            now = rates(count - 1)
            if self.clip is not None:
                norm = np.sqrt(sum(float((g**2).sum()) for g in reduced))
                reduced = [g * min(1.0, self.clip / norm) for g in reduced]
            for i, (parameter, gradient) in enumerate(zip(parameters, reduced, strict=True)):
                parameter = parameter - now * self.decay * parameter
                edited = gradient
                # The kit's `before` sees the parameter after decay, as the algorithm does.
                for edit in self.before:
                    edited = edit(parameter, edited)
                move = states[i].displacement(parameter, edited, now)
                if self.cautious:
                    move = cautious(move, gradient)
                for edit_move in self.after:
                    move = edit_move(count, i, parameter, move)
                parameters[i] = parameter + move
                if averages:
                    parameters[i] = averages[i](parameters[i])
        return parameters

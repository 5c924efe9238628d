"""Second and third part of a step: computes the new values from reduced gradients, and writes them.

What can be compiled goes to `fusion`; the rest is computed op by op, all variables at once.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

from keras import ops

from keras_trainkit.core import backend, fusion
from keras_trainkit.core.arguments import Plan
from keras_trainkit.core.clipping import ClipByGlobalNorm
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.hyperparameters import Schedules
from keras_trainkit.core.numerics import widened
from keras_trainkit.core.pools import Pool
from keras_trainkit.core.state import Slots, VariableList
from keras_trainkit.core.statistics import Norms
from keras_trainkit.core.transform import Context, State, Treatment
from keras_trainkit.core.weight_mask import masked


@dataclasses.dataclass(frozen=True)
class Clip:
    """An update's clipped gradients: `gradients`, still to be multiplied with the scalar `factor` if there is one."""

    gradients: list[Any]
    factor: Any = None

    def all(self) -> list[Any]:
        """The clipped gradients."""
        return [_scaled(gradient, self.factor) for gradient in self.gradients]


def _scaled(gradient: Any, factor: Any) -> Any:
    return gradient if factor is None else gradient * ops.cast(factor, gradient.dtype)


class UpdateStep:
    """The update of `TransformOptimizer`, which has the state that is named here."""

    iterations: Any
    learning_rate: Any
    weight_decay: Any
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    decays_inside: ClassVar[Any]
    _plan: Plan
    _links: Any
    _slots: Slots
    _pools: list[Pool]
    _averages: VariableList
    _programs: fusion.Programs
    _norms: Norms
    scheduled: Schedules

    def _update(self, gradients: list[Any], variables: list[Any], rows: list[Any]) -> None:
        """Computes and writes; `rows` says for each gradient which rows it holds, None for all."""
        step = backend.read(self.iterations) + 1
        rate = backend.read(self.learning_rate)
        indices = [backend.variable_index(self, v) for v in variables]
        # What is held at zero has no part in norms and moments; pruned tables of embeddings have dense gradients.
        gradients = [masked(v, g) if held is None else g for v, g, held in zip(variables, gradients, rows, strict=True)]
        clip = self._clip(gradients, variables, Context(step, rate, gradients, [variable_path(v) for v in variables]))
        measure = self._norms.measure(step, gradients, clip.all, variables, indices)

        scalars = fusion.Scalars(step, rate, clip.factor, self._slots.read_common(), self.scheduled.values(step - 1))
        compute, move = self._compute(variables, indices)
        common: list[tuple[int, list[Any]]] = []
        by_rows = [i for i, held in enumerate(rows) if held is not None]
        for i in by_rows:
            own = self._slots.variables(indices[i])
            common += fusion.run_on_rows(i, variables[i], own, rows[i], clip.gradients[i], scalars, compute)
        dense = [i for i, held in enumerate(rows) if held is None]
        items, batches = self._items(clip.gradients, variables, indices, dense)
        common += self._programs.run(items, batches, scalars, compute, move)
        done = {item.position for item in [*items, *(item for batch in batches for item in batch.items)]}
        rest = [i for i in dense if i not in done]
        if rest:
            gradients = [_scaled(clip.gradients[i], clip.factor) for i in rest]
            found = self._update_one_by_one(
                gradients, [variables[i] for i in rest], [indices[i] for i in rest], scalars
            )
            common += zip(rest, found, strict=True)
        self._slots.write_common([(indices[i], values) for i, values in common])
        self._average_others({index for i, index in enumerate(indices) if i not in by_rows}, step)
        measure()
        backend.write(self.iterations, step)

    def _clip(self, gradients: list[Any], variables: list[Any], context: Context) -> Clip:
        clipping = self._plan.clipping
        if clipping is None:
            return Clip(gradients)
        if isinstance(clipping, ClipByGlobalNorm):
            return Clip(gradients, clipping.factor(gradients))
        return Clip(clipping.update(gradients, variables, [{} for _ in gradients], context)[0])

    def _items(
        self, gradients: list[Any], variables: list[Any], indices: list[int], positions: list[int]
    ) -> tuple[list[fusion.Item], list[fusion.Batch]]:
        """The variables whose update is compiled: single ones, and those of whole pools."""
        if not backend.compiles_updates():
            return [], []
        items: dict[int, fusion.Item] = {}
        for position in positions:
            variable, index = variables[position], indices[position]
            treatment = self.treatment(variable_path(variable))
            if treatment is None:
                continue
            average = self._averages[index] if self.use_ema else None
            own = [*self._slots.variables(index), *([] if average is None else [average])]
            constraint = getattr(variable, "constraint", None)
            moves = average is None and self._moves(variable)
            options = (self.decays(variable), self.weight_decay, *self._averaging())
            key = (treatment.key, options, constraint, self._slots.layout(index))
            items[index] = fusion.Item(position, variable, gradients[position], own, moves, key)
        return [item for item in items.values() if item.large], fusion.whole_batches(self._pools, items)

    def treatment(self, path: str) -> Treatment | None:
        """How the whole chain treats the variable at `path`; None where its update must be computed op by op."""
        return self._links.treatment(path)

    def _compute(self, variables: list[Any], indices: list[int]) -> tuple[fusion.Compute, fusion.Move]:
        """The pure update of one variable, or of several that are treated alike and joined; whole, and what it adds."""

        def transformed(
            position: int, old: Any, start: Any, gradient: Any, own: list[Any], scalars: fusion.Scalars
        ) -> tuple[Any, list[Any], list[Any]]:
            index, clipped = indices[position], _scaled(gradient, scalars.factor)
            nested = self._slots.nested(index, own, scalars.common, old, scalars.step)
            context = Context(scalars.step, scalars.rate, [clipped], [variable_path(variables[position])])
            links = self.scheduled.live(self._links, scalars.scheduled)
            displacements, states = links.update([clipped], [start], [nested], context)
            return displacements[0], self._slots.flat(index, states[0]), self._slots.flat_common(index, states[0])

        def move(
            position: int, parameter: Any, gradient: Any, own: list[Any], scalars: fusion.Scalars
        ) -> tuple[Any, list[Any], list[Any]]:
            return transformed(position, parameter, parameter, gradient, own, scalars)

        def compute(
            position: int, parameter: Any, gradient: Any, own: list[Any], scalars: fusion.Scalars
        ) -> tuple[list[Any], list[Any]]:
            variable, old = variables[position], widened(parameter)
            start = self._decayed([old], [variable], scalars)[0]
            displacement, slots, common = transformed(position, old, start, gradient, own, scalars)
            new = self._constrained(start + displacement, variable)
            if len(own) == len(slots):
                return [new, *slots], common
            average = self._blended(own[-1], new, scalars.step)
            return [self._overwritten_by_average(new, average, scalars.step), *slots, average], common

        return compute, move

    def _moves(self, variable: Any) -> bool:
        """Whether all that happens to the variable is what the transforms add to it."""
        decayed = self.weight_decay and not self.decays_inside and self.decays(variable)
        return not decayed and getattr(variable, "constraint", None) is None

    def _update_one_by_one(
        self, gradients: list[Any], variables: list[Any], indices: list[int], scalars: fusion.Scalars
    ) -> list[list[Any]]:
        """Returns for each variable the new values of the slots that it shares with others."""
        step, rate = scalars.step, scalars.rate
        old = [widened(backend.read(v)) for v in variables]
        start = self._decayed(old, variables, scalars)
        own = [[backend.read(v) for v in self._slots.variables(index)] for index in indices]
        states = [
            self._slots.nested(index, values, scalars.common, p, step)
            for index, values, p in zip(indices, own, old, strict=True)
        ]
        context = Context(step, rate, gradients, [variable_path(v) for v in variables])
        links = self.scheduled.live(self._links, scalars.scheduled)
        displacements, new_states, pairs = self._displacements(links, gradients, start, states, variables, context)
        for index, nested in zip(indices, new_states, strict=True):
            pairs += zip(self._slots.variables(index), self._slots.flat(index, nested), strict=True)
        writes = []
        for variable, index, p, d in zip(variables, indices, start, displacements, strict=True):
            slot = self._averages[index] if self.use_ema else None
            if slot is None and self._moves(variable) and backend.dtype(p) == backend.dtype(variable):
                writes.append((backend.add_to, variable, d))
                continue
            new = self._constrained(p + d, variable)
            if slot is not None:
                average = self._blended(backend.read(slot), new, step)
                pairs.append((slot, average))
                new = self._overwritten_by_average(new, average, step)
            writes.append((backend.write, variable, new))
        for slot, value in pairs:
            backend.write(slot, value)
        for write, variable, value in writes:
            write(variable, value)
        return [self._slots.flat_common(index, nested) for index, nested in zip(indices, new_states, strict=True)]

    def _displacements(
        self,
        links: Any,
        gradients: list[Any],
        parameters: list[Any],
        states: list[State],
        variables: list[Any],
        context: Context,
    ) -> tuple[list[Any], list[State], list[Any]]:
        """What to add to each parameter, the new states, and (variable, value) pairs for state outside of the slots."""
        displacements, new = links.update(gradients, parameters, states, context)
        return displacements, new, []

    def _decayed(self, parameters: list[Any], variables: list[Any], scalars: fusion.Scalars) -> list[Any]:
        if not self.weight_decay or self.decays_inside:
            return parameters
        amount = self.scheduled.live(self.weight_decay, scalars.scheduled)
        return [
            p - p * (ops.cast(scalars.rate, p.dtype) * amount) if self.decays(v) else p
            for p, v in zip(parameters, variables, strict=True)
        ]

    def decays(self, variable: Any) -> bool:
        path = variable_path(variable)
        return not any(re.search(pattern, path) for pattern in self._plan.decay_exclude)

    @staticmethod
    def _constrained(value: Any, variable: Any) -> Any:
        constraint = getattr(variable, "constraint", None)
        return constraint(value) if constraint else value

    def _averaging(self) -> tuple[Any, ...]:
        return (self.ema_momentum, self.ema_overwrite_frequency) if self.use_ema else ()

    def _blended(self, average: Any, value: Any, step: Any) -> Any:
        momentum = ops.where(step > 1, ops.cast(self.ema_momentum, value.dtype), ops.cast(0, value.dtype))
        return momentum * average + (1 - momentum) * value

    def _overwritten_by_average(self, value: Any, average: Any, step: Any) -> Any:
        if not self.ema_overwrite_frequency:
            return value
        return ops.where(ops.equal(step % self.ema_overwrite_frequency, 0), average, value)

    def _average_others(self, done: set[int], step: Any) -> None:
        """The averages go on for variables without a gradient in this step, and for those that moved by rows."""
        if not self.use_ema:
            return
        for index, (variable, slot) in enumerate(zip(backend.built_variables(self), self._averages, strict=True)):
            if slot is not None and index not in done:
                backend.write(slot, self._blended(backend.read(slot), widened(backend.read(variable)), step))

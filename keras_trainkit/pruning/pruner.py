"""The masks of a model in training: made, moved on from stage to stage, and kept where files find them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import TransformOptimizer, backend, evaluation
from keras_trainkit.core.weight_mask import WeightMask, mask_of, masked
from keras_trainkit.pruning.geometry import Target
from keras_trainkit.pruning.schedule import PruningSchedule
from keras_trainkit.pruning.slots import element_slots, refuses_rows
from keras_trainkit.pruning.structures import Structure

PLACE = "pruning_memory"
"""The attribute of the optimizer where Keras finds the masks when it saves and loads weights."""


class PruningMemory(keras.layers.Layer):
    """The masks, and the update that they belong to; a layer, because Keras saves those wherever they hang."""

    def __init__(self, masks: list[Any]) -> None:
        super().__init__(trainable=False)
        never = backend.First(lambda *_: ops.full((), -1, "int32"))
        self.step = self.add_weight(shape=(), dtype="int32", initializer=never, trainable=False, name="step")
        self.masks = masks
        self.built = True

    def load_own_variables(self, store: Any) -> None:
        """Takes the masks of a file; of one that was written without pruning, or with other variables, none."""
        if len(store.keys()) == 1 + len(self.masks):
            super().load_own_variables(store)


class Pruner:
    """Prunes the variables of a model, inside its compiled step or from outside.

    Make it in the scope of the model's strategy, with the optimizer built.

    Args:
        optimizer: the innermost one.
        targets: what to prune. Masks that are there already stay, and only lose elements.
        structure: what goes together.
        schedule: how much goes and when; its lengths are numbers.
    """

    def __init__(self, optimizer: Any, targets: list[Target], structure: Structure, schedule: PruningSchedule) -> None:
        refuses_rows(optimizer, targets)
        self.optimizer, self.targets, self.structure, self.schedule = optimizer, targets, structure, schedule
        self.masks = [put_on(target.layer, target.variable) for target in targets]
        self._geometries = [target.geometry for target in targets]
        shapes = [tuple(target.variable.shape) for target in targets]
        self._counts = np.array(
            [structure.counts(shapes, self._geometries, sparsity) for sparsity in schedule.sparsities()], "int32"
        )
        held = getattr(optimizer, PLACE, None)
        if held is None or [id(m) for m in held.masks] != [id(m.mask) for m in self.masks]:
            held = PruningMemory([m.mask for m in self.masks])
            setattr(optimizer, PLACE, held)
        self._memory = held
        self._of_the_kit = isinstance(optimizer, TransformOptimizer)

    @property
    def window(self) -> int:
        """Batches to an update."""
        return int(getattr(self.optimizer, "gradient_accumulation_steps", None) or 1)

    def updates(self) -> Any:
        """The updates done, a tensor; with accumulation full windows count, in Keras's own optimizers too."""
        return ops.cast(backend.read(self.optimizer.iterations), "int32")

    def advance_inside(self) -> None:
        """Inside the compiled step, after an update: changes the masks if a stage is reached."""
        now, known = self.updates(), backend.read(self._memory.step)
        stage = self.schedule.stages_done(now)
        due = stage > self.schedule.stages_done(known)
        backend.when(due, lambda: self._advance(stage, now, backend.write), None, [])
        self._mask_averages()

    def advance_outside(self, anyway: bool = False) -> bool:
        """Between steps: has the masks fit the number of updates; `anyway` also if no stage was reached since they did.

        Where the masks are right already this changes nothing; where they were not loaded with the weights, the zeros
        tell. Returns whether there was anything to do.
        """
        now, known = (int(ops.convert_to_numpy(x)) for x in (self.updates(), self._memory.step))
        stage, before = (sum(step <= x for step in self.schedule.stages()) for x in (now, known))
        if now < known:  # an earlier state was loaded, from a file that holds no masks
            for mask in self.masks:
                mask.mask.assign(np.ones(mask.mask.shape, bool))
        elif stage == before and not anyway:
            return False
        swapped = evaluation.held(self.optimizer)
        if swapped:
            evaluation.put_back(self.optimizer)
        if stage:
            self._advance(stage, now, lambda variable, value: variable.assign(value))
        self._memory.step.assign(now)
        if swapped:
            evaluation.put_in(self.optimizer)
        return True

    def hold(self) -> None:
        """From outside: puts zeros wherever elements have gone."""
        for target, mask in zip(self.targets, self.masks, strict=True):
            target.variable.assign(mask.applied(backend.read(target.variable)))

    def until_next(self) -> int:
        """The updates from now to the next stage; 0 if there is none to come."""
        done = int(ops.convert_to_numpy(self.updates()))
        return min((stage - done for stage in self.schedule.stages() if stage > done), default=0)

    def masked_gradients(self, gradients: Any, variables: Any) -> list[Any]:
        """Gradients without what belongs to elements that have gone, for optimizers that do not know of masks."""
        known = {id(target.variable) for target in self.targets}
        return [
            masked(v, g) if id(v) in known and tuple(getattr(g, "shape", ())) == tuple(v.shape) and dense(g) else g
            for g, v in zip(gradients, variables, strict=True)
        ]

    def sparsity(self) -> float:
        """The share of elements that have gone, of all that may go."""
        living = sum(int(ops.convert_to_numpy(m.mask).sum()) for m in self.masks)
        return 1 - living / sum(int(np.prod(m.mask.shape)) for m in self.masks)

    def _advance(self, stage: Any, now: Any, write: Callable[[Any, Any], Any]) -> None:
        counts = ops.take(ops.convert_to_tensor(self._counts), ops.maximum(stage - 1, 0), axis=0)
        values = [backend.read(target.variable) for target in self.targets]
        old = [backend.read(mask.mask) for mask in self.masks]
        new = self.structure.masks(values, old, self._geometries, counts)
        for target, mask, value, living in zip(self.targets, self.masks, values, new, strict=True):
            write(mask.mask, living)
            write(target.variable, ops.where(living, value, ops.zeros_like(value)))
            for slot, first in element_slots(self.optimizer, target.variable):
                held = backend.read(slot)
                write(slot, ops.where(living, held, ops.full_like(held, first)))
        write(self._memory.step, now)

    def _mask_averages(self) -> None:
        """Keras averages the weights before it applies constraints; the kit's optimizers do so after."""
        if self._of_the_kit or not self.optimizer.use_ema:
            return
        for target, mask in zip(self.targets, self.masks, strict=True):
            average = backend.average_of(self.optimizer, target.variable)
            backend.write(average, mask.applied(backend.read(average)))


def dense(gradient: Any) -> bool:
    """Whether a gradient is a plain tensor, and not rows of one."""
    return bool(ops.is_tensor(gradient)) and not hasattr(gradient, "indices")


def put_on(layer: Any, variable: Any) -> WeightMask:
    """The variable's mask: the one that is there, or a new one around its constraint, with all elements alive."""
    mask = mask_of(variable)
    if mask is None:
        mask = WeightMask(np.ones(variable.shape, bool), variable.constraint)
        variable.constraint = mask
    for name in (f"{variable.name}_constraint", f"{variable.name.removesuffix('_kernel')}_constraint"):
        # Where the layer keeps what its configuration says; a layer without such an argument has none to keep.
        if name in vars(layer) and getattr(layer, name) is not mask:
            setattr(layer, name, mask)
            break
    return mask

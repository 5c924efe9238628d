"""First part of a step: gradients as they come from the tape, to gradients that an update can be computed from."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from keras import ops

from keras_trainkit.core import backend, building, slices
from keras_trainkit.core.accumulation import Window
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.core.state import Slots
from keras_trainkit.core.statistics import Norms


class ReduceStep:
    """The reduction of `TransformOptimizer`, which has the state that is named here."""

    built: bool
    build: Any
    treatment: Any
    lazy: ClassVar[bool]
    loss_scale_factor: float | None
    use_ema: bool
    ema_overwrite_frequency: int | None
    _slots: Slots
    _window: Window | None
    _norms: Norms
    iterations: Any

    def reduce(self, grads: Any, trainable_variables: Any = None, samples: Any = None) -> tuple[list[Any], list[Any]]:
        """The first step alone: gradients summed over the replicas, in at least float32, with their variables.

        Variables without a gradient are left out, with a warning. All gradients are dense, but for those that a lazy
        optimizer takes by rows. With accumulation the sum over the replicas waits for the window's end.
        """
        gradients = list(grads)
        if not gradients:
            return [], []
        variables = self._resolve(gradients, trainable_variables)
        missing = [variable_path(v) for g, v in zip(gradients, variables, strict=True) if g is None]
        if len(missing) == len(variables):
            raise ValueError("No gradients provided for any variable.")
        if missing:
            warnings.warn(
                f"Gradients do not exist for variables {missing} when minimizing the loss. If you are using "
                "`model.compile()`, did you forget to provide a `loss` argument?",
                stacklevel=2,
            )
        pairs = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None:
                continue
            if building.overwritten(variable):  # float8 scales arrive as gradients
                variable.assign(gradient)
            else:
                pairs.append((slices.cast(gradient, wide_dtype(gradient.dtype)), variable))
        variables = [v for _, v in pairs]
        gradients = [g for g, _ in pairs]
        pieces: list[Any] = []
        if self._window is None:
            gradients, pieces = slices.reduced(gradients, samples, self._replicas_piece(gradients, samples))
        merged = [
            slices.unique_rows(g)
            if slices.is_sparse(g) and self._takes_rows(v)
            else slices.dense(g, v.shape[0] if len(v.shape) else 1)
            for g, v in zip(gradients, variables, strict=True)
        ]
        widened = [slices.cast(g, wide_dtype(v.dtype)) for g, v in zip(merged, variables, strict=True)]
        if pieces:
            self._norms.end_pieces(backend.read(self.iterations), pieces, widened)
        if self.loss_scale_factor is not None:
            widened = [slices.divided(g, self.loss_scale_factor) for g in widened]
        return widened, variables

    def _replicas_piece(self, gradients: list[Any], samples: Any) -> list[Any]:
        """What this replica's gradient says of the gradients' noise; empty if nobody asked, or it is the only one."""
        if not self._norms.of_pieces or backend.replicas() == 1:
            return []
        return self._norms.piece(backend.read(self.iterations), gradients, 1.0 if samples is None else samples)

    def all_finite(self, gradients: list[Any]) -> Any:
        """Whether what `reduce` returned is finite, on every replica; a scalar."""
        finite = ops.all(ops.stack([ops.all(ops.isfinite(slices.values(g))) for g in gradients]))
        # Reduced gradients are the same everywhere.
        return finite if self._window is None else backend.all_replicas(finite)

    def _takes_rows(self, variable: Any) -> bool:
        """Whether a sparse gradient of the variable moves its own rows alone."""
        if not self.lazy or self._window is not None or not backend.writes_in_place():
            return False
        treatment = self.treatment(variable_path(variable))
        if treatment is None or not treatment.joinable or getattr(variable, "constraint", None):
            return False
        slots = self._slots.variables(backend.variable_index(self, variable))
        same_shape = all(tuple(slot.shape) == tuple(variable.shape) for slot in slots)
        return same_shape and not (self.use_ema and self.ema_overwrite_frequency)

    def _resolve(self, gradients: list[Any], trainable_variables: Any) -> list[Any]:
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "`trainable_variables` must be given as long as the optimizer is not built: call "
                    "`optimizer.build(variables)` first. Received: trainable_variables=None"
                )
            variables = backend.built_variables(self)
        else:
            variables = list(trainable_variables)
            self.build(variables)
            backend.check_known(self, variables)
        if len(gradients) != len(variables):
            raise ValueError(
                f"`grads` must hold one gradient for each variable. Received: {len(gradients)} gradients for "
                f"{len(variables)} variables"
            )
        return variables

"""Any Keras optimizer with the kit's options and its correctness on several replicas."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import Transform, TransformOptimizer, backend, chain
from keras_trainkit.core.state import VariableList
from keras_trainkit.core.transform import Context, State


def wrap(
    optimizer: keras.optimizers.Optimizer,
    before: list[Transform] | None = None,
    after: list[Transform] | None = None,
    **options: Any,
) -> Any:
    """Gives a Keras optimizer transforms of its gradients and of its displacements.

    Clipping, weight decay, the moving average and accumulation, if the optimizer was made with them, are taken over,
    and so are right on any number of replicas. One of the kit's own optimizers is made again with the transforms
    added to its own.

    Args:
        optimizer: of Keras, or a user's subclass that overrides `update_step`; not yet built.
        before: list of transforms of the gradients.
        after: list of transforms of the displacements.
        **options: arguments of `core.TransformOptimizer` that replace the optimizer's.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: for an optimizer that has state already, or that wraps another.

    >>> import keras
    >>> from keras_trainkit import optimizers, transforms
    >>> wrapped = optimizers.wrap(keras.optimizers.Nadam(1e-3, clipnorm=1.0), after=[transforms.Lookahead(6, 0.5)])
    >>> wrapped.clipnorm
    1.0
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"`optimizer` must be a Keras optimizer. Received: optimizer={optimizer!r}")
    if optimizer.built:
        raise ValueError(
            "`optimizer` must not have been used or built yet. Received: a built " + type(optimizer).__name__
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError("`optimizer` must be the one inside the LossScaleOptimizer: wrap it, then scale the loss.")
    if isinstance(optimizer, TransformOptimizer):
        added = {"before": optimizer.before + list(before or []), "after": optimizer.after + list(after or [])}
        config = optimizer.get_config() | {n: keras.saving.serialize_keras_object(v) for n, v in added.items()}
        return type(optimizer).from_config(config | options)
    taken = {name: getattr(optimizer, name) for name in _TAKEN_OVER}
    taken["learning_rate"] = backend.learning_rate_argument(optimizer)
    taken["name"] = f"wrapped_{optimizer.name}"
    return Wrapped(optimizer, before=before, after=after, **(taken | options))


_TAKEN_OVER = (
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


@keras.saving.register_keras_serializable("keras_trainkit")
class Wrapped(TransformOptimizer):
    """A foreign optimizer as the algorithm; made by `wrap`.

    Args:
        inner: the Keras optimizer; a copy of it computes, without its own clipping, decay, average and accumulation.
        learning_rate: the step size, or a schedule.
        **options: the arguments of `core.TransformOptimizer`.
    """

    def __init__(self, inner: Any, learning_rate: Any = 0.001, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self._inner = _Untracked(backend.pure_copy(inner, _NEUTRAL))

    def transform(self) -> Transform:
        return chain()  # the copy computes, between `before` and `after`

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        with backend.eager_scope():
            self._inner.value.build(list(variables))
            self._inner_variables = VariableList(backend.adopt_variables(self, self._inner.value))
        super().build(variables)

    def treatment(self, path: str) -> None:
        """The copy computes all variables at once."""

    def inner_variables(self) -> list[Any]:
        return [*self._inner_variables, *super().inner_variables()]

    def argument(self, name: str) -> Any:
        return backend.serialize_pure_copy(self._inner.value) if name == "inner" else super().argument(name)

    def _displacements(
        self,
        links: Any,
        gradients: list[Any],
        parameters: list[Any],
        states: list[State],
        variables: list[Any],
        context: Context,
    ) -> tuple[list[Any], list[State], list[Any]]:
        first = len(chain(*self.before).links)
        early, late = links.links[:first], links.links[first:]
        new: list[State] = [{} for _ in states]
        updates = _run(early, 0, gradients, parameters, states, new, context)
        slots = list(self._inner_variables)
        values, written = backend.pure_update(
            self._inner.value, slots, updates, variables, parameters, context.learning_rate, context.step - 1
        )
        moved = [ops.cast(value, p.dtype) - p for value, p in zip(values, parameters, strict=True)]
        moved = _run(late, first, moved, parameters, states, new, context)
        return moved, new, list(zip(slots, written, strict=True))


def _run(links: list[Transform], first: int, updates: Any, parameters: Any, states: Any, new: Any, context: Any) -> Any:
    for position, link in enumerate(links, first):
        key = str(position)
        updates, parts = link.update(updates, parameters, [s.get(key, {}) for s in states], context)
        for whole, part in zip(new, parts, strict=True):
            if part:
                whole[key] = part
    return updates


class _Untracked:
    """Keeps Keras from saving the copy's variables a second time: they are saved as the wrapper's."""

    def __init__(self, value: Any) -> None:
        self.value = value


# Clipping and decay stand outside of a Keras optimizer's update step, which is all that the copy runs.
_NEUTRAL = {"use_ema": False, "gradient_accumulation_steps": None}

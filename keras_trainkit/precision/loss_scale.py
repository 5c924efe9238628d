"""Dynamic loss scaling that asks every replica."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import TransformOptimizer, backend, checks, slices
from keras_trainkit.optimizers import wrap


@keras.saving.register_keras_serializable("keras_trainkit")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Scales the loss so that float16 gradients neither vanish nor overflow.

    The gradients are summed over the replicas first and judged afterwards, so an overflow anywhere skips the step
    everywhere: no variable and no slot changes, and the scale is halved once. After `dynamic_growth_steps` good steps
    in a row the scale doubles. It stays within [`minimum_scale`, `maximum_scale`]; Keras's has no bounds and asks the
    first replica only. A skipped batch does not count into an accumulation window.

    Reference: Micikevicius et al., 2017, arXiv:1710.03740.

    Args:
        inner_optimizer: one of the kit's optimizers; another Keras optimizer is taken through `optimizers.wrap`.
        initial_scale: the first scale.
        dynamic_growth_steps: good steps before the scale doubles, at least 1.
        minimum_scale: the smallest scale, above 0.
        maximum_scale: the largest scale.
        name: a name for the variables.

    Raises:
        ValueError: for a scale outside its bounds; when it is built, if it was made under another strategy than its
            inner optimizer.

    Attributes:
        dynamic_scale: the scale now, a float32 scalar variable.
        skipped_steps: how many steps were skipped so far, an integer scalar variable.

    Example:

    >>> from keras_trainkit import optimizers, precision
    >>> optimizer = precision.LossScaleOptimizer(optimizers.Adam(1e-3))
    >>> optimizer.initial_scale
    32768.0
    """

    def __init__(
        self,
        inner_optimizer: Any,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        minimum_scale: float = 1.0,
        maximum_scale: float = 2.0**24,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        minimum_scale = checks.number("minimum_scale", minimum_scale, above=0)
        maximum_scale = checks.number("maximum_scale", maximum_scale, at_least=minimum_scale)
        if not isinstance(inner_optimizer, TransformOptimizer):
            inner_optimizer = wrap(inner_optimizer)
        super().__init__(
            inner_optimizer,
            initial_scale=checks.number("initial_scale", initial_scale, at_least=minimum_scale, at_most=maximum_scale),
            dynamic_growth_steps=checks.integer("dynamic_growth_steps", dynamic_growth_steps, at_least=1),
            name=name,
            **kwargs,
        )
        self.minimum_scale = minimum_scale
        self.maximum_scale = maximum_scale
        # State that is loaded before `build` waits here; in a function, so that Keras does not track the dictionary.
        self._waiting: Any = dict

    def build(self, var_list: Any) -> None:
        if self.built:
            return
        if not backend.made_together(self, self.inner_optimizer):
            raise ValueError(
                f"`{self.name}` and its `inner_optimizer` must be made under the same strategy: make both inside of "
                "`strategy.scope()`."
            )
        with backend.eager_scope():
            super().build(var_list)
            self.skipped_steps = self.add_variable((), dtype="int32", name="skipped_steps")
            self._restore(self._waiting())

    @backend.plain_python
    def apply(self, grads: Any, trainable_variables: Any = None, samples: Any = None, part: str | None = None) -> None:
        """Updates the variables if the gradients of all replicas are finite; else lowers the scale."""
        if not self.built:
            self.build(list(trainable_variables))
        inner = self.inner_optimizer
        gradients, variables = inner.reduce(grads, trainable_variables, samples)
        if not variables:
            return
        scale, good = backend.read(self.dynamic_scale), backend.read(self.step_counter)

        def step() -> None:
            values = [slices.values(g) for g in gradients]
            unscaled = [value / ops.cast(scale, value.dtype) for value in values]
            inner.apply_reduced(
                [slices.with_values(g, u) for g, u in zip(gradients, unscaled, strict=True)], variables, samples, part
            )
            grows = good + 1 >= self.dynamic_growth_steps
            backend.write(self.dynamic_scale, ops.where(grows, ops.minimum(scale * 2, self.maximum_scale), scale))
            backend.write(self.step_counter, ops.where(grows, ops.zeros_like(good), good + 1))

        def skip() -> None:
            backend.write(self.dynamic_scale, ops.maximum(scale / 2, self.minimum_scale))
            backend.write(self.step_counter, ops.zeros_like(good))
            backend.write(self.skipped_steps, backend.read(self.skipped_steps) + 1)

        own = [self.dynamic_scale, self.step_counter, self.skipped_steps]
        with backend.after(gradients[-1]):
            backend.when(inner.all_finite(gradients), step, skip, [*inner.written_variables(variables), *own])
            inner.end_window(part)

    def stateless_apply(self, optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        """`apply` as a function of tensors, for JAX: the new values of the variables and of the optimizer's own."""
        return backend.stateless_apply(self, optimizer_variables, grads, trainable_variables)

    def save_own_variables(self, store: Any) -> None:
        """Writes the scale and its counters; the inner optimizer saves its own state."""
        if self.built:
            for name in _OWN:
                store[name] = ops.convert_to_numpy(getattr(self, name))

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote, or what Keras's LossScaleOptimizer did."""
        names = dict(_KERAS_POSITIONS) if "dynamic_scale" not in store.keys() else {name: name for name in _OWN}  # noqa: SIM118
        values = {name: ops.convert_to_numpy(store[key]) for name, key in names.items() if key in store.keys()}  # noqa: SIM118
        if self.built:
            self._restore(values)
        else:
            self._waiting = lambda: values

    def _restore(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            getattr(self, name).assign(value)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"minimum_scale": self.minimum_scale, "maximum_scale": self.maximum_scale}


_OWN = ("dynamic_scale", "step_counter", "skipped_steps")
_KERAS_POSITIONS = (("step_counter", "2"), ("dynamic_scale", "3"))

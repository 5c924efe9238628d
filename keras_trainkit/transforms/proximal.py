"""Steps that end in a proximal operator: penalties solved exactly, not followed by their slope."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, groups
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import require_pattern, table
from keras_trainkit.core.transform import (
    Context,
    LeafContext,
    State,
    Tensor,
    Transform,
    Treatment,
    register_transform,
)
from keras_trainkit.transforms.decay import excluded


@register_transform
class ProximalAdagradStep(Transform):
    """An Adagrad step, then the proximal operator of the l1 and l2 penalties at each element's own rate (Duchi and
    Singer, 2009); the update is the displacement.
    """

    scope = "element"

    initial_accumulator_value: float = 0.1
    l1: float = 0.0
    l2: float = 0.0

    def validate(self) -> None:
        checks.number("initial_accumulator_value", self.initial_accumulator_value, at_least=0)
        checks.number("l1", self.l1, at_least=0)
        checks.number("l2", self.l2, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"accumulator": self.initial_accumulator_value}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        total = state["accumulator"] + ops.square(update)
        known = total > 0
        rate = ops.where(known, context.learning_rate / ops.sqrt(ops.where(known, total, ops.ones_like(total))), 0.0)
        return elastic_net(parameter - rate * update, rate, self.l1, self.l2) - parameter, {"accumulator": total}


@register_transform
class DecoupledL1(Transform):
    """Shrinks every weight towards zero by learning_rate times strength, and makes it exactly zero when it gets there.

    It is the proximal step of strength sum(abs(w)) after the optimizer's own: w = sign(x) max(abs(x) - rate
    strength, 0), where x is the weight with the displacement added. A weight that the loss does not need is zero, not
    merely small: an l1 regularizer in the loss has it jump around zero by the size of a step for ever. It stands in
    `after` of any optimizer, behind everything that moves the weights (`ScaleByPath`, `Lookahead`; before
    `RoundAtRandom`), and looks at nothing but each weight, so that updates stay compiled. No state.

    What it minimizes depends on the optimizer in front, as with decoupled weight decay:

    - `SGD`: loss + strength sum(abs(w)) exactly (the iteration is ISTA); with the optimizer's `weight_decay` in
      addition loss + strength sum(abs(w)) + weight_decay / 2 sum(w^2), the elastic net. The loss of scikit-learn's
      `Lasso(alpha)` is half of Keras's `"mse"`: strength = 2 alpha.
    - `SGD` with momentum m, whose steps are 1 / (1 - m) times as long as the gradients: loss + (1 - m) strength
      sum(abs(w)). Take 1 / (1 - m) times the strength for the same solution.
    - Adam and its kin divide each element's gradient by its root mean square, but not this: a weight stays where the
      mean of its gradient is more than strength times its root mean square, whatever the scale of the loss. Without
      a gradient it is gone when strength times the sum of the rates is its size. For a penalty that is scaled along
      with the gradient see `optimizers.ProximalAdagrad`. (Yun et al., 2021, arXiv:2006.07484, compare the two.)

    Averages are zero only where all that they average is: with `use_ema` it takes a while, and
    `ema_overwrite_frequency` undoes the zeros; the schedule-free optimizers' evaluation weights have none. With a
    sparse gradient `LazyAdam` shrinks the rows of the batch, other optimizers all rows. At a learning rate of 0 nothing
    shrinks.

    References: Daubechies et al., 2004; Beck and Teboulle, 2009 (ISTA); Duchi and Singer, 2009 (FOBOS).

    Args:
        strength: a number at least 0, or a schedule, which is called with the number of updates done before.
        exclude: list of regular expressions; variables in whose path one is found stay as they are.

    >>> from keras_trainkit import optimizers
    >>> optimizer = optimizers.SGD(0.5, after=[DecoupledL1(0.5, exclude=["bias"])])
    >>> weights = keras.Variable([1.0, -0.5, 0.125])
    >>> optimizer.build([weights])
    >>> optimizer.apply([ops.convert_to_tensor([1.0, 0.0, 0.0])], [weights])
    >>> ops.convert_to_numpy(weights).tolist()  # 1 - 0.5 - 0.25; -0.5 + 0.25
    [0.25, -0.25, 0.0]
    """

    strength: Any
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        _check_strength(self.strength, self.exclude)

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        thresholds = _thresholds(self.strength, parameters, context)
        moved = [
            update if excluded(self.exclude, path) else soft_threshold(parameter + update, edge) - parameter
            for update, parameter, edge, path in zip(updates, parameters, thresholds, context.paths, strict=True)
        ]
        return moved, states

    def treatment(self, path: str) -> Treatment | None:
        # A user's schedule may do what cannot be compiled.
        return None if callable(self.strength) else Treatment((excluded(self.exclude, path),), True)


@register_transform
class DecoupledGroupLasso(Transform):
    """Shortens every group of weights by learning_rate times strength, and makes it zero when it gets there.

    It is the proximal step of the penalty that `regularizers.GroupLasso` adds to the loss: strength sqrt(size of the
    group) times its l2 norm, summed over the groups. Whole units, filters or inputs become exactly zero, and can be cut
    off without changing what the model computes. It stands in `after`, where `DecoupledL1` says, and what is said there
    about momentum, Adam and averages holds here, too. Both together are the sparse group lasso, `DecoupledL1` first.

    Vectors and scalars (biases, scales) pass unchanged. No state.

    Reference: Yuan and Lin, 2006; Simon et al., 2013, "A sparse-group lasso".

    Args:
        strength: a number at least 0, or a schedule, which is called with the number of updates done before.
        axis: an int or a list of ints, the axes whose indices name the groups, as in `regularizers.GroupLasso`: -1 is
            what enters one unit or filter, 0 what leaves one input of a `Dense` kernel. A kernel without such an axis
            is an error when the optimizer is built.
        scale_by_size: whether each norm is multiplied by the root of the group's size.
        exclude: list of regular expressions; variables in whose path one is found stay as they are.

    >>> from keras_trainkit import optimizers
    >>> optimizer = optimizers.SGD(0.5, after=[DecoupledGroupLasso(5.0, scale_by_size=False)])
    >>> weights = keras.Variable([[3.0, 0.3], [4.0, 0.4]])  # columns of length 5 and 0.5
    >>> optimizer.build([weights])
    >>> optimizer.apply([ops.zeros((2, 2))], [weights])
    >>> ops.convert_to_numpy(weights).tolist()  # by 2.5 shorter
    [[1.5, 0.0], [2.0, 0.0]]
    """

    strength: Any
    axis: Any = -1
    scale_by_size: bool = True
    exclude: list = dataclasses.field(default_factory=list)

    def validate(self) -> None:
        _check_strength(self.strength, self.exclude)
        groups.checked_axes(self.axis)
        checks.boolean("scale_by_size", self.scale_by_size)

    def matched(self, variables: list[Any]) -> list[list[Any]]:
        """A row for each variable: its path and how many groups it has, 0 where it stays as it is."""
        rows = []
        for variable in variables:
            path, shape = variable_path(variable), tuple(variable.shape)
            size = groups.group_size(shape, self._axes(shape)) if self._shrinks(path, shape) else 0
            rows.append([path, math.prod(shape) // size if size else 0])
        return rows

    def report(self, variables: list[Any]) -> str:
        """`matched` as a table of text."""
        return table(["variable", "groups"], self.matched(variables))

    def check_variables(self, variables: list[Any]) -> None:
        self.matched(variables)

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        thresholds = _thresholds(self.strength, parameters, context)
        moved = [
            self._shrunk(parameter + update, edge) - parameter if self._shrinks(path, parameter.shape) else update
            for update, parameter, edge, path in zip(updates, parameters, thresholds, context.paths, strict=True)
        ]
        return moved, states

    def treatment(self, path: str) -> Treatment | None:
        return None if callable(self.strength) else Treatment((excluded(self.exclude, path),), False)

    def _shrunk(self, value: Tensor, threshold: Tensor) -> Tensor:
        axes = self._axes(value.shape)
        scale = math.sqrt(groups.group_size(value.shape, axes)) if self.scale_by_size else 1.0
        return groups.shrunk_groups(value, axes, threshold * scale)

    def _shrinks(self, path: str, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and not excluded(self.exclude, path)

    def _axes(self, shape: Sequence[int]) -> list[int]:
        return groups.axes_in(shape, groups.checked_axes(self.axis))


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """The w that minimizes (w - x)^2 / 2 + threshold abs(w): exactly zero where abs(x) <= threshold."""
    return ops.sign(x) * ops.maximum(ops.abs(x) - threshold, 0.0)


def elastic_net(x: Tensor, rate: Tensor, l1: float, l2: float) -> Tensor:
    """The w that minimizes (w - x)^2 / (2 rate) + l1 abs(w) + l2 w^2 / 2: exactly zero where abs(x) <= rate l1."""
    return soft_threshold(x, rate * l1) / (1 + rate * l2)


def _check_strength(strength: Any, exclude: list) -> None:
    if not isinstance(strength, keras.optimizers.schedules.LearningRateSchedule):
        checks.number("strength", strength, at_least=0)
    for pattern in exclude:
        require_pattern("exclude", pattern)


def _thresholds(strength: Any, parameters: list[Tensor], context: Context) -> list[Tensor]:
    """The learning rate times the strength, in the dtype of each parameter."""
    now = strength(context.step - 1) if callable(strength) else strength
    return [
        ops.cast(context.learning_rate, p.dtype) * (ops.cast(now, p.dtype) if callable(strength) else now)
        for p in parameters
    ]

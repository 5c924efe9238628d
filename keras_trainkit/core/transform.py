"""`Transform`: one pure step of an optimizer, from gradients to displacements, with its state declared beside it."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import keras
from keras import ops

Tensor = Any
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one piece of per-variable state looks like before the first update.

    Attributes:
        initial: a number that fills it, or `"copy"` for the variable's value at the time the optimizer is built.
        shape: a list of ints; None for the variable's own shape.
        dtype: None for the variable's own, widened to float32 where that is a half precision (an average that decays
            by 0.999 cannot move in bfloat16).
        common: one scalar for all variables that the transform handles, because it follows from the step and the
            learning rate alone; it moves on with every update of any of them.
    """

    initial: float | str = 0.0
    shape: list[int] | None = None
    dtype: str | None = None
    common: bool = False


@dataclasses.dataclass(frozen=True)
class LeafContext:
    """What `Transform.leaf` may know beside its own variable, in the dtype of the maths."""

    step: Tensor
    learning_rate: Tensor
    gradient: Tensor
    path: str


@dataclasses.dataclass(frozen=True)
class Context:
    """What `Transform.update` may know beside the tensors it is given.

    Attributes:
        step: scalar integer tensor, the number of this update, 1 for the first.
        learning_rate: scalar tensor.
        gradients: the reduced and clipped gradients of this step, one for each parameter.
        paths: the variables' paths, such as `"block/dense/kernel"`.
    """

    step: Tensor
    learning_rate: Tensor
    gradients: list[Tensor]
    paths: list[str]

    def select(self, positions: list[int]) -> Context:
        """The context of the parameters at `positions` alone."""
        return dataclasses.replace(
            self, gradients=[self.gradients[i] for i in positions], paths=[self.paths[i] for i in positions]
        )

    def leaf(self, position: int, dtype: str) -> LeafContext:
        """The context of one parameter, with the numbers cast to `dtype`."""
        return LeafContext(
            ops.cast(self.step, dtype),
            ops.cast(self.learning_rate, dtype),
            self.gradients[position],
            self.paths[position],
        )


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How a transform treats a variable.

    Attributes:
        key: a hashable value; variables of one shape and one key go through the same computation.
        joinable: whether every element's update stands alone.
    """

    key: tuple
    joinable: bool


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pure map from updates and state to updates and state.

    Subclasses are frozen dataclasses made with the `register_transform` decorator: their fields are their
    configuration. They override `slots` to declare state, and either `leaf` (the maths of one variable) or `update`
    (the whole model at once). Updates enter as gradients; `ScaleByLearningRate` turns them into displacements, which
    are added to the parameters. Parameters and state arrive in at least float32.

    A subclass may say how far the update of one element reaches, so that the optimizer can compile it (see
    `core.fusion`): with `scope = "element"` a `leaf` that uses nothing but that element of its arguments, their dtype,
    and numbers of the context; with `scope = "variable"` one that uses the whole variable. A `leaf` that looks at the
    path overrides `treatment`, too. Without a scope the update is computed op by op.
    """

    scope: typing.ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _lists(getattr(self, field.name)))
        self.validate()

    def validate(self) -> None:
        """Raises ValueError or TypeError when a field is out of its range; called at construction."""

    def check_variables(self, variables: list[Any]) -> None:
        """Raises ValueError when the configuration does not suit the model; called when the optimizer is built."""

    def fitted(self, variables: list[Any]) -> Transform:
        """The transform for exactly these variables, where it depends on all of them; called before `slots`."""
        return self

    def slots(self, variable: Any) -> dict[str, Any]:
        """The state of one variable: name to a number, `"copy"` or `Slot`, or to a nested dictionary of these."""
        return {}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        """The new update and the new state of one variable."""
        raise NotImplementedError(f"{type(self).__name__} must override `leaf` or `update`.")

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        """The new updates and states of all variables; by default `leaf` on each."""
        pairs = [
            self.leaf(update, parameter, state, context.leaf(i, parameter.dtype))
            for i, (update, parameter, state) in enumerate(zip(updates, parameters, states, strict=True))
        ]
        return [update for update, _ in pairs], [state for _, state in pairs]

    def treatment(self, path: str) -> Treatment | None:
        """How the variable at `path` is treated; None where its update must not be compiled apart from the others'."""
        if self.scope is None or type(self).update is not Transform.update:
            return None
        return Treatment((), self.scope == "element")

    def rate_group(self, path: str) -> tuple[str, float]:
        """The group of the variable at `path`, "" for none, and by what its learning rate is multiplied."""
        return "", 1.0

    def offers_evaluation(self) -> bool:
        """Whether `exchange` gives weights to evaluate that are not the trained ones."""
        return type(self).exchange is not Transform.exchange

    def exchange(self, parameter: Tensor, state: State, path: str, to_evaluation: bool) -> Tensor:
        """The weights to evaluate, from the trained `parameter` and the state; or the other way round.

        Algorithms that train one sequence of weights and evaluate another override it.
        """
        return parameter

    def get_config(self) -> dict[str, Any]:
        """The fields, as Keras's serialization wants them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transform:
        """The transform that `get_config` described."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


@typing.dataclass_transform(frozen_default=True)
def register_transform(cls: type) -> Any:
    """Makes a `Transform` subclass a frozen dataclass and registers it with Keras."""
    return keras.saving.register_keras_serializable("keras_trainkit")(dataclasses.dataclass(frozen=True)(cls))


def _lists(value: Any) -> Any:
    # Keras saves tuples as lists, so a tuple would come back as another value than it went.
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value

"""bfloat16 state and variables that are rounded up or down at random, so that small changes are not lost."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import checks, randomness
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.transform import Context, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend, debiased_direction


@register_transform
class ScaleByAdam16(Transform):
    """Adam's direction from moments in bfloat16, rounded at random: 4 bytes of state per parameter.

    The maths is that of `ScaleByAdam` in at least float32; the direction comes from the moments before they are
    rounded. `seed` chooses the random numbers, which depend on the step and on the variable's place among the others
    and on nothing else.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    epsilon_hat: bool = True
    seed: int = 0

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.boolean("epsilon_hat", self.epsilon_hat)
        checks.integer("seed", self.seed)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": Slot(dtype="bfloat16"), "velocity": Slot(dtype="bfloat16")}

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        directions, new = [], []
        for i, (update, parameter, state) in enumerate(zip(updates, parameters, states, strict=True)):
            dtype = parameter.dtype
            momentum = blend(self.beta_1, ops.cast(state["momentum"], dtype), update)
            velocity = blend(self.beta_2, ops.cast(state["velocity"], dtype), ops.square(update))
            step = ops.cast(context.step, dtype)
            directions.append(
                debiased_direction(momentum, velocity, self.beta_1, self.beta_2, self.epsilon, step, self.epsilon_hat)
            )
            # One word has bits enough for both moments.
            low, high = halves(randomness.bits(tuple(update.shape), self.seed, context.step, i))
            new.append({"momentum": to_bfloat16(momentum, low), "velocity": to_bfloat16(velocity, high)})
        return directions, new


@register_transform
class RoundAtRandom(Transform):
    """Rounds bfloat16 variables up or down at random after each update, in the proportion of the distances.

    A bfloat16 weight of 1 does not feel displacements below 0.002; rounded at random, it moves by them on average.
    It edits displacements and must be the last of `after`. Variables of another dtype are an error: leave them out
    with `core.masked`. `seed` chooses the random numbers.

    >>> from keras_trainkit import optimizers
    >>> optimizers.AdamW(1e-4, after=[RoundAtRandom()]).after
    [RoundAtRandom(seed=1)]
    """

    seed: int = 1

    def validate(self) -> None:
        checks.integer("seed", self.seed)

    def check_variables(self, variables: list[Any]) -> None:
        wrong = [v for v in variables if keras.backend.standardize_dtype(v.dtype) != "bfloat16"]
        if wrong:
            listed = ", ".join(f"`{variable_path(v)}` ({keras.backend.standardize_dtype(v.dtype)})" for v in wrong)
            raise ValueError(
                f"`RoundAtRandom` rounds bfloat16 variables; `masked` leaves others out. Received: {listed}"
            )

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        moves = []
        for i, (update, parameter) in enumerate(zip(updates, parameters, strict=True)):
            low, _ = halves(randomness.bits(tuple(update.shape), self.seed, context.step, i))
            moves.append(to_bfloat16(parameter + update, low) - parameter)
        return moves, states


def to_bfloat16(values: Tensor, random: Tensor) -> Tensor:
    """`values` rounded to numbers that bfloat16 holds, in their own dtype; right on average.

    Args:
        values: floating tensor.
        random: uint32 tensor of the same shape, uniform below 2**16. Added to the 16 bits that bfloat16 cuts off, it
            carries into the rest as often as those bits are large.
    """
    word = _bitcast(ops.cast(values, "float32"), "uint32") + random
    kept = ops.bitwise_and(word, ops.convert_to_tensor(np.uint32(0xFFFF0000), "uint32"))
    return ops.cast(_bitcast(kept, "float32"), values.dtype)


def halves(words: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper 16 bits of uint32 numbers, as two uint32 tensors."""
    low = ops.bitwise_and(words, ops.convert_to_tensor(np.uint32(0xFFFF), "uint32"))
    return low, ops.right_shift(words, ops.convert_to_tensor(np.uint32(16), "uint32"))


def _bitcast(tensor: Tensor, dtype: str) -> Tensor:
    # `ops.view` does this, but the oldest Keras we support has none.
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.bitcast(tensor, dtype)
    return tensor.view(dtype)

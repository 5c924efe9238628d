"""What layers that draw random numbers share: a generator that is saved, and a rate that may follow a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_trainkit.core import checks

_SEED_STATE = "seed_generator_state"


class Drawing(keras.layers.Layer):
    """Base of layers that draw: the state of the generator goes into the weights file, where Keras leaves it out."""

    def __init__(self, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def save_own_variables(self, store: Any) -> None:
        """Puts the state of the random generator into the weights file, where Keras would leave it out."""
        super().save_own_variables(store)
        store[_SEED_STATE] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        """Takes the state of the random generator back.

        Raises:
            ValueError: where the file has none: it was not written by this layer.
        """
        if _SEED_STATE not in store.keys():  # noqa: SIM118, the stores of Keras are no mappings
            raise ValueError(f"The weights file holds no {_SEED_STATE} for the layer {self.name!r}.")
        super().load_own_variables({key: store[key] for key in store.keys() if key != _SEED_STATE})  # noqa: SIM118
        state = np.asarray(store[_SEED_STATE])
        self.seed_generator.state.assign(state.astype(self.seed_generator.state.dtype))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "seed": self.seed}


class Dropping(Drawing):
    """Base of layers that drop at a rate, which is a number from 0 to 1, a schedule, or follows a callback's.

    A schedule is asked at the number of calls in training so far, which are counted in the variable `step`. It is saved
    as the layer's only own weight, and replicas have a copy each, which agree.
    """

    def __init__(self, *args: Any, rate: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rate = checked_rate("rate", rate)
        self.step: Any = None
        self._followed: Callable[[], Any] | None = None

    def build(self, input_shape: Any) -> None:
        """Makes the count of calls where the rate is a schedule."""
        super().build(input_shape)
        if isinstance(self.rate, LearningRateSchedule) and self.step is None:
            # Without aggregation each replica writes its own copy, as with the states of Keras's seeds.
            self.step = self.add_weight(
                shape=(), initializer="zeros", dtype="int", trainable=False, autocast=False, aggregation="none",
                name="step",
            )  # fmt: skip
        self.built = True

    def follow_rate(self, rate: Callable[[], Any] | None) -> None:
        """Has each call in training ask `rate`, a function of nothing, in place of the layer's own; None ends that."""
        self._followed = rate

    def next_rate(self) -> Any:
        """The rate of a call in training, which it counts: a float, or a scalar tensor (float32) in [0, 1]."""
        scheduled = isinstance(self.rate, LearningRateSchedule)
        if not scheduled and self._followed is None:
            return self.rate
        rate = self.rate(self.step.value) if self._followed is None else self._followed()
        if scheduled:
            self.step.assign(self.step.value + 1)
        return ops.clip(ops.cast(rate, "float32"), 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name, a schedule in its serialized form."""
        scheduled = isinstance(self.rate, LearningRateSchedule)
        rate = keras.optimizers.schedules.serialize(self.rate) if scheduled else self.rate
        return {**super().get_config(), "rate": rate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer from what `get_config` gave."""
        rate = config["rate"]
        read = keras.optimizers.schedules.deserialize
        return super().from_config({**config, "rate": read(rate) if isinstance(rate, dict) else rate})


def checked_rate(name: str, value: Any) -> Any:
    """A number from 0 to 1, or a schedule of such numbers."""
    if isinstance(value, LearningRateSchedule):
        return value
    try:
        return checks.number(name, value, at_least=0, at_most=1)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must be a number from 0 to 1, or a schedule of such numbers. Received: {name}={value!r}"
        ) from error


def never(rate: Any) -> bool:
    """Whether a rate is known to be 0."""
    return isinstance(rate, float) and rate == 0


def drawn_below(shape: Any, probability: Any, seed: Any) -> Any:
    """Booleans of `shape`, each true with `probability`, a float or a scalar tensor.

    The draw is in float32 whatever the dtype of a layer: a uniform bfloat16 has 256 values, and a rate of 0.001 would
    be one of 0.004.
    """
    return keras.random.uniform(shape, dtype="float32", seed=seed) < probability


def kept_and_scaled(inputs: Any, kept: Any, rate: Any) -> Any:
    """`inputs` over `1 - rate` where `kept`, which broadcasts, and 0 elsewhere.

    Chosen and not multiplied, because 0 times an infinity is not 0.
    """
    return ops.where(kept, over_survival(inputs, rate), ops.zeros_like(inputs))


def over_survival(inputs: Any, rate: Any) -> Any:
    """`inputs` over `1 - rate`; as they are for a rate of 1, where nothing survives."""
    if isinstance(rate, float):
        return inputs / (1.0 - rate) if rate < 1 else inputs
    return inputs / ops.cast(ops.where(rate < 1, 1 - rate, ops.ones_like(rate)), inputs.dtype)

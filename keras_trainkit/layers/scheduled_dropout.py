"""Dropout whose rate follows a schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.layers.drawing import Dropping, drawn_below, kept_and_scaled, never
from keras_trainkit.schedules.base import Schedule, rate_dtype
from keras_trainkit.schedules.spans import checked_span


@keras.saving.register_keras_serializable("keras_trainkit")
@dataclasses.dataclass(frozen=True)
class CurriculumRate(Schedule):
    """A dropout rate that rises from 0 towards its end: `rate * (1 - exp(-sharpness * t / steps))`.

    Curriculum dropout: the net begins with all of its units, and the noise grows as it learns. After `steps` calls the
    rate has come as near to `rate` as makes no difference (5e-5 of it); it never falls. Morerio et al. 2017, arXiv
    1703.06229, whose probability to keep is 1 minus this.

    Args:
        rate: the last rate, from 0 to 1.
        steps: calls in training until there; or "10ep", "0.9run" with `callbacks.ResolveSpans`.
        sharpness: how often the distance falls by e within `steps`; 10 in the paper.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> schedule = CurriculumRate(0.5, steps=1000)
    >>> [round(float(schedule(step)), 3) for step in (0, 100, 1000)]
    [0.0, 0.316, 0.5]
    """

    rate: float
    steps: int | str
    sharpness: float = 10.0

    spans: ClassVar = ("steps",)

    def __post_init__(self) -> None:
        self._set("rate", checks.number("rate", self.rate, at_least=0, at_most=1))
        self._set("steps", checked_span("steps", self.steps))
        self._set("sharpness", checks.number("sharpness", self.sharpness, above=0))

    def at(self, step: Any) -> Any:
        done = ops.cast(step, rate_dtype()) / self.steps
        return -self.rate * ops.expm1(-self.sharpness * done)


@keras.saving.register_keras_serializable("keras_trainkit")
class ScheduledDropout(Dropping):
    """Keras's `Dropout` with a rate that follows a schedule, which the layer keeps and counts by itself.

    - Curriculum dropout: `CurriculumRate(0.5, "1run")`, from nothing to the full rate (Morerio et al. 2017, arXiv
      1703.06229).
    - Early dropout, for nets that underfit: `schedules.Linear(0.1, "0.2run", 0.0)`, off after the first part of
      training; late dropout, for those that overfit: `schedules.Sequence([0.0, 0.1], ["0.3run"])` (Liu et al. 2023,
      arXiv 2303.01500; there mostly for stochastic depth).

    Any layer of the kit that drops takes a schedule for its rate in the same way: `StochasticDepth`, `DropBlock1D` to
    `3D`, `DropConnect`. The schedule is asked at the number of calls of the layer in training, which is saved with it:
    it needs no callback, runs on JAX and in loops of your own. That number is the number of batches, or more, where a
    step calls the model more than once (two micro-batches, SAM, a layer used twice). `callbacks.HyperparameterSchedule`
    counts updates instead, and leaves the saved model as it was; it takes precedence while it is at work. Lengths such
    as "0.2run" need `callbacks.ResolveSpans` in `fit`.

    Args:
        rate: a schedule of the probability to drop an element (what it says is cut to [0, 1]), or a number.
        noise_shape: as in Keras's `Dropout`: the shape of the mask, None for an axis of the input's size. `(None, 1,
            None)` drops whole channels of a sequence.
        seed: an int for reproducible draws.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: a floating tensor of any shape.
        training: as in Keras's `Dropout`.

    Returns:
        A tensor of the input's shape in the compute dtype: kept elements over `1 - rate`. A mask passes through.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> import keras, numpy as np
    >>> from keras_trainkit import schedules
    >>> drop = ScheduledDropout(schedules.Linear(0.0, 2, 1.0), seed=1)
    >>> [round(float(np.mean(np.array(drop(np.ones(100_000), training=True)) == 0)), 2) for _ in range(3)]
    [0.0, 0.5, 1.0]
    >>> int(drop.step)
    3
    """

    def __init__(
        self, rate: Any, noise_shape: Sequence[int | None] | None = None, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(rate=rate, seed=seed, **kwargs)
        self.noise_shape = None if noise_shape is None else _noise_shape(noise_shape)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks the rank."""
        if self.noise_shape is not None and len(self.noise_shape) != len(input_shape):
            raise ValueError(
                "`noise_shape` must have an entry for each axis of the input. "
                f"Received: noise_shape={self.noise_shape}, input_shape={tuple(input_shape)}"
            )
        super().build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The inputs, in training with some elements dropped and the others scaled."""
        if not training:
            return inputs
        rate = self.next_rate()
        if never(rate):
            return inputs
        sizes = ops.shape(inputs)
        given = self.noise_shape or [None] * len(sizes)
        shape = tuple(size if own is None else own for own, size in zip(given, sizes, strict=True))
        return kept_and_scaled(inputs, drawn_below(shape, 1.0 - rate, self.seed_generator), rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "noise_shape": self.noise_shape}


def _noise_shape(shape: Any) -> list[int | None]:
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"`noise_shape` must be a list of sizes or None. Received: noise_shape={shape!r}")
    return [None if size is None else checks.integer("noise_shape", size, at_least=1) for size in shape]

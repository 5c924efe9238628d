"""The schedules that a recipe knows by name, and how each spans a run. Needs neither Keras nor TensorFlow."""

from __future__ import annotations

import re
from typing import Any

# The argument that the recipe's `learning_rate` goes to, and the others unless the recipe gives them. A "run" is what
# the warm-up leaves of the run.
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "cosine": ("initial_learning_rate", {"decay_steps": "1run"}),
    "constant": ("learning_rate", {}),
    "linear": ("initial_learning_rate", {"decay_steps": "1run"}),
    "polynomial": ("initial_learning_rate", {"decay_steps": "1run"}),
    "exponential": ("initial_learning_rate", {"decay_rate": 0.01, "decay_steps": "1run"}),
    "step": ("initial_learning_rate", {"step_size": "0.3334run"}),
    "multistep": ("initial_learning_rate", {"milestones": ["0.5run", "0.75run"]}),
    "inversesqrt": ("initial_learning_rate", {"timescale": "0.1run"}),
    "rex": ("initial_learning_rate", {"decay_steps": "1run"}),
    "tanh": ("initial_learning_rate", {"decay_steps": "1run"}),
    "cosinerestarts": ("initial_learning_rate", {"first_period": "0.143run", "period_factor": 2.0}),
    "wsd": ("learning_rate", {"warmup_steps": 0, "decay_steps": "0.2run"}),
    "onecycle": ("max_learning_rate", {"total_steps": "1run"}),
}

_OF_THE_RUN = re.compile(r"([\d.eE+-]+)\s*run")

WITH_OWN_WARMUP = ("onecycle",)
"""These rise by themselves: the recipe's `warmup` does not apply, and a "run" is all of it."""


def plain_name(name: str) -> str:
    """A schedule's name as `SCHEDULES` has it.

    >>> plain_name("One_Cycle")
    'onecycle'
    """
    return name.lower().replace("_", "").replace("-", "")


def build(
    name: str, rate: float, updates: int, warmup: int, updates_per_epoch: float, arguments: dict[str, Any] | None = None
) -> Any:
    """The schedule of that name for a run of so many updates, behind a ramp of `warmup` of them."""
    from keras_trainkit import schedules

    rate_argument, defaults = SCHEDULES[name]
    given = {**defaults, **(arguments or {})}
    warmup = 0 if name in WITH_OWN_WARMUP else warmup
    left = updates - warmup

    def resolved(schedule: Any) -> Any:
        return schedules.resolve(schedule, updates_per_epoch, left / updates_per_epoch)

    if name == "wsd" and "stable_steps" not in given:
        decay = resolved(schedules.Cosine(1.0, given["decay_steps"])).decay_steps
        ramp = resolved(schedules.Warmup(1.0, given["warmup_steps"])).steps
        given["stable_steps"] = max(left - decay - ramp, 0)
    rest = resolved(schedules.get(name, **{rate_argument: rate}, **given))
    # From rate/(warmup + 1) on, so that no update of the ramp is without effect.
    return rest if name in WITH_OWN_WARMUP else schedules.Warmup(rest, warmup, initial=rate / (warmup + 1))


def in_spans(name: str, rate: float, warmup: float, arguments: dict[str, Any] | None = None) -> Any:
    """The same for a run whose length is not known yet: with lengths that `callbacks.ResolveSpans` turns into updates.

    Args:
        name: of the schedule.
        rate: its highest.
        warmup: the ramp's share of the run, from 0 to below 1.
        arguments: further arguments of the schedule; shares of the run are shares of what the ramp leaves.
    """
    from keras_trainkit import schedules

    rate_argument, defaults = SCHEDULES[name]
    given = {**defaults, **(arguments or {})}
    warmup = 0.0 if name in WITH_OWN_WARMUP else warmup
    if name == "wsd" and "stable_steps" not in given:
        decay = _OF_THE_RUN.fullmatch(str(given["decay_steps"]))
        if decay is None or given["warmup_steps"]:
            raise ValueError(
                "the schedule 'wsd' needs its `stable_steps`, unless `decay_steps` is a share of the run and "
                f"`warmup_steps` is 0. Received: {given}"
            )
        given["stable_steps"] = f"{1 - float(decay[1])!r}run"
    scaled = {key: _scaled(value, 1 - warmup) for key, value in given.items()}
    rest = schedules.get(name, **{rate_argument: rate}, **scaled)
    # The first update is not without effect, and does no harm.
    return schedules.Warmup(rest, f"{warmup!r}run", initial=rate / 100) if warmup else rest


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_scaled(each, factor) for each in value]
    span = _OF_THE_RUN.fullmatch(value) if isinstance(value, str) else None
    return value if span is None else f"{float(span[1]) * factor!r}run"

"""Search spaces: each KerasTuner hyperparameter as an Optuna distribution, and finite spaces point by point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from keras_tuner.engine import hyperparameters as types
from optuna import distributions

Values = dict[str, Any]

# A probability of 1 is outside the range [0, 1) that KerasTuner maps to values.
_BELOW_ONE = 1 - 1e-9


def is_active(parameter: types.HyperParameter, values: Values) -> bool:
    """Whether the conditions of a hyperparameter hold for the values of those before it."""
    return all(condition.is_active(values) for condition in parameter.conditions)


def steps(parameter: types.HyperParameter) -> list[Any] | None:
    """The values of a hyperparameter that is suggested by its index, in order; None where it is not.

    By index go choices of numbers, and ranges with a step that is a factor: the values of a `Choice` of 16, 64 and 256
    are then neighbours, not three unrelated words.
    """
    if isinstance(parameter, types.Choice):
        return list(parameter.values) if parameter.ordered else None
    if isinstance(parameter, types.Float | types.Int) and parameter.step is not None:
        if isinstance(parameter, types.Int):
            return None if parameter.sampling == "linear" else [round(value) for value in parameter.values]
        return [float(value) for value in parameter.values]
    return None


def distribution(parameter: types.HyperParameter) -> distributions.BaseDistribution | None:
    """What Optuna draws for a hyperparameter; None for `Fixed`, which is not drawn."""
    if isinstance(parameter, types.Fixed):
        return None
    if isinstance(parameter, types.Boolean):
        return distributions.CategoricalDistribution([False, True])
    listed = steps(parameter)
    if listed is not None:
        return distributions.IntDistribution(0, len(listed) - 1)
    if isinstance(parameter, types.Choice):
        return distributions.CategoricalDistribution(list(parameter.values))
    if parameter.sampling == "reverse_log":
        return distributions.FloatDistribution(0.0, 1.0)
    log = parameter.sampling == "log"
    if isinstance(parameter, types.Int):
        step = 1 if log else parameter.step
        last = parameter.min_value + (parameter.max_value - parameter.min_value) // step * step
        return distributions.IntDistribution(parameter.min_value, last, log=log, step=step)
    return distributions.FloatDistribution(parameter.min_value, parameter.max_value, log=log)


def from_study(parameter: types.HyperParameter, drawn: Any) -> Any:
    """The value of a hyperparameter for what Optuna drew."""
    listed = steps(parameter)
    if listed is not None:
        return listed[int(drawn)]
    if getattr(parameter, "sampling", None) == "reverse_log":
        return parameter.prob_to_value(min(drawn, _BELOW_ONE))
    return drawn


def to_study(parameter: types.HyperParameter, value: Any) -> Any:
    """What Optuna would have drawn for a value of a hyperparameter.

    Raises:
        ValueError: the hyperparameter cannot take that value.
    """
    listed = steps(parameter)
    drawn = value
    if listed is not None:
        drawn = listed.index(value) if value in listed else None
    elif getattr(parameter, "sampling", None) == "reverse_log":
        inside = parameter.min_value <= value <= parameter.max_value
        drawn = min(max(parameter.value_to_prob(value), 0.0), _BELOW_ONE) if inside else None
    drawable = distribution(parameter)
    if drawn is None or drawable is None or not _contains(drawable, drawn):
        raise ValueError(f"`{parameter.name}` must be a value of {parameter!r}. Received: {parameter.name}={value!r}")
    return drawn


def study_name(parameter: types.HyperParameter) -> str:
    """The name in the study, with the conditions: one name may stand for two hyperparameters in two branches."""
    conditions = [f"{c.name}={','.join(map(str, c.values))}" for c in parameter.conditions]
    return "|".join([parameter.name, *conditions])


def describe(parameter: types.HyperParameter) -> dict[str, Any]:
    """A hyperparameter as JSON, to be compared with what an earlier search was made of."""
    config = {key: value for key, value in parameter.get_config().items() if key not in ("conditions", "default")}
    if isinstance(parameter, types.Fixed):
        config["value"] = parameter.value
    return json.loads(json.dumps({"type": type(parameter).__name__} | config, default=str))


def means_the_same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether numbers that Optuna holds for `before` mean the same for `now`: limits may move, an index may not."""
    by_index = (
        before["type"] == "Choice" or before.get("sampling") == "reverse_log" or before.get("step") not in (None, 1)
    )
    limits = () if by_index else ("min_value", "max_value")
    return {k: v for k, v in before.items() if k not in limits} == {k: v for k, v in now.items() if k not in limits}


def suggest(trial: optuna.Trial, space: Sequence[types.HyperParameter], names: dict[int, str]) -> Values:
    """Values for a trial: parents before their children, only the active ones.

    Args:
        trial: a trial that was just asked for.
        space: the hyperparameters, parents first.
        names: the name in the study of each, by its position in `space`.
    """
    values: Values = {}
    for index, parameter in enumerate(space):
        if not is_active(parameter, values):
            continue
        drawable = distribution(parameter)
        if drawable is None:
            values[parameter.name] = parameter.value
        else:
            drawn = _draw(trial, names[index], drawable)
            values[parameter.name] = from_study(parameter, drawn)
    return values


def points(space: Sequence[types.HyperParameter], *, grid: bool = False) -> Iterator[Values] | None:
    """Every point of a finite space, active values only, or None where a range has no step.

    Args:
        space: the hyperparameters, parents first.
        grid: whether such a range is cut into 10 values, evenly under its sampling, as in KerasTuner's grid search.
    """
    axes = [_axis(parameter, grid) for parameter in space]
    if any(axis is None for axis in axes):
        return None
    return _walk(space, axes, 0, {})  # type: ignore[arg-type]  # none is None here


def _walk(space: Sequence[types.HyperParameter], axes: list[list[Any]], index: int, values: Values) -> Iterator[Values]:
    if index == len(space):
        yield dict(values)
        return
    if not is_active(space[index], values):
        yield from _walk(space, axes, index + 1, values)
        return
    for value in axes[index]:
        yield from _walk(space, axes, index + 1, values | {space[index].name: value})


def _axis(parameter: types.HyperParameter, grid: bool) -> list[Any] | None:
    drawable = distribution(parameter)
    if drawable is None:
        return [parameter.value]
    if isinstance(drawable, distributions.CategoricalDistribution):
        return list(drawable.choices)
    if isinstance(parameter, types.Choice) or parameter.step is not None:
        return steps(parameter) or list(range(parameter.min_value, parameter.max_value + 1, parameter.step))
    if drawable.single():
        return [parameter.min_value]
    return sorted({parameter.prob_to_value(0.05 + 0.1 * i) for i in range(10)}) if grid else None


def _draw(trial: optuna.Trial, name: str, drawable: distributions.BaseDistribution) -> Any:
    if isinstance(drawable, distributions.CategoricalDistribution):
        return trial.suggest_categorical(name, drawable.choices)
    if isinstance(drawable, distributions.IntDistribution):
        return trial.suggest_int(name, drawable.low, drawable.high, step=drawable.step, log=drawable.log)
    assert isinstance(drawable, distributions.FloatDistribution)
    return trial.suggest_float(name, drawable.low, drawable.high, log=drawable.log)


def _contains(drawable: distributions.BaseDistribution, drawn: Any) -> bool:
    if isinstance(drawable, distributions.CategoricalDistribution):
        return drawn in drawable.choices
    if isinstance(drawn, bool) or not isinstance(drawn, int | float):
        return False
    assert isinstance(drawable, distributions.IntDistribution | distributions.FloatDistribution)
    if not drawable.low <= drawn <= drawable.high:
        return False
    return (
        drawable.step is None
        or not isinstance(drawable, distributions.IntDistribution)
        or (float(drawn).is_integer() and (drawn - drawable.low) % drawable.step == 0)
    )

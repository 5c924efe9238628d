"""What the state of a model in training consists of, taken at one moment and put back at another."""

from __future__ import annotations

import random
import re
import sys
import warnings
from typing import Any

import keras
import numpy as np

from keras_trainkit._version import __version__
from keras_trainkit.core import backend, evaluation

GROUPS = ("model", "optimizer", "metrics", "seeds")
_MOST = 12  # differences that one message names
_NUMBER = re.compile(r"_\d+(?=[/_.]|$)")


def versions() -> dict[str, str]:
    """Of what the bits of a run depend on."""
    found = {"keras_trainkit": __version__, "Keras": keras.__version__, "backend": keras.backend.backend()}
    found |= {"Python": ".".join(map(str, sys.version_info[:3])), "NumPy": np.__version__}
    for name, module in (("TensorFlow", "tensorflow"), ("JAX", "jax")):
        if keras.backend.backend() == module:
            found[name] = sys.modules[module].__version__
    return found


def variables(model: Any) -> dict[str, list[Any]]:
    """All variables that training changes, by group; seeds of random layers are among the model's."""
    seeds = backend.global_seeds()
    groups = {
        "model": model.variables,
        "optimizer": model.optimizer.variables if model.optimizer is not None else [],
        "metrics": model.metrics_variables,
        "seeds": [] if seeds is None else [seeds.state],
    }
    return {name: list({id(v): v for v in group}.values()) for name, group in groups.items()}


def take(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of model, optimizer, metrics and random numbers: plain values, and arrays that `pack` makes.

    Nothing is copied here that need not be: on TensorFlow a value is held as the tensor that was read, which later
    steps do not change.
    """
    facts: dict[str, Any] = {"variables": {}}
    values: dict[str, Any] = {}
    strategy = getattr(model, "distribute_strategy", None)
    for group, members in variables(model).items():
        described = facts["variables"][group] = []
        for index, variable in enumerate(members):
            name = f"{group}/{index}"
            held = [backend.held(copy) for copy in backend.copies(variable, strategy)]
            values |= {f"{name}/{number}": value for number, value in enumerate(held)}
            described.append(
                {"path": variable.path, "shape": list(variable.shape), "dtype": backend.dtype(variable),
                 "copies": len(held)}
            )  # fmt: skip
    aside = _kept_aside(model)
    if aside is not None:
        facts["aside"] = {"step": aside.step, "indices": sorted(aside.weights)}
        # Put back, they become the variables' own, which JAX gives away with the next step.
        kept = {
            i: v if backend.ON_TENSORFLOW else np.array(keras.ops.convert_to_numpy(v)) for i, v in aside.weights.items()
        }
        values |= {f"aside/{index}": value for index, value in kept.items()}
    facts["random"], words = _random_state()
    return facts, values | words


def pack(facts: dict[str, Any], values: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values as arrays, copies that are equal once."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    for group, members in facts["variables"].items():
        for index, about in enumerate(members):
            names = [f"{group}/{index}/{number}" for number in range(about["copies"])]
            first = arrays[names[0]]
            if len(names) > 1 and all(arrays[name].tobytes() == first.tobytes() for name in names[1:]):
                about["equal"] = True
                for name in names[1:]:
                    del arrays[name]
    return arrays


def differences(facts: dict[str, Any], model: Any) -> list[str]:
    """In what the variables of a model differ from those of a state, in words."""
    present, found = variables(model), []
    for group in ("model", "optimizer"):
        saved, here = facts["variables"][group], [_described(v) for v in present[group]]
        if [_comparable(about) for about in saved] == [_comparable(about) for about in here]:
            continue
        names = {about["path"] for about in here}, {about["path"] for about in saved}
        missing = [about for about in saved if about["path"] not in names[0]]
        extra = [about for about in here if about["path"] not in names[1]]
        by_path = {about["path"]: about for about in saved}
        changed = [
            (by_path[about["path"]], about) for about in here
            if about["path"] in by_path and _comparable(by_path[about["path"]]) != _comparable(about)
        ]  # fmt: skip
        found += [f"the {group} lacks {_in_words(about)}" for about in missing]
        found += [f"the {group} has {_in_words(about)}, which the state lacks" for about in extra]
        found += [f"{_in_words(old)} is {_in_words(new, with_path=False)} here" for old, new in changed]
        if not (missing or extra or changed):
            found.append(f"the variables of the {group} stand in another order")
    return found


def check(facts: dict[str, Any], model: Any, path: Any) -> None:
    """Compares a state with the model that is to go on from it.

    Raises:
        ValueError: with names and shapes, if they do not fit.
    """
    here, saved = versions(), facts["versions"]
    other = [f"{name} {saved.get(name, 'none')}, here {here.get(name, 'none')}" for name in sorted({*here, *saved})
             if saved.get(name) != here.get(name)]  # fmt: skip
    found = differences(facts, model)
    if found:
        more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        version = f" It was saved by other versions: {'; '.join(other)}." if other else ""
        raise ValueError(
            f"The state {path} does not fit this model: {'; '.join(found[:_MOST])}{more}.{version} To begin anew, take "
            "another directory."
        )
    if other:
        warnings.warn(
            f"The state {path} was saved by other versions: {'; '.join(other)}. It fits; the numbers that follow may "
            "differ in their last digits from those of a run that was not interrupted.",
            stacklevel=2,
        )


def put_back(facts: dict[str, Any], arrays: dict[str, Any], model: Any, with_metrics: bool) -> None:
    """Gives model, optimizer, random numbers and, where asked for, metrics the state that was taken."""
    if facts["variables"]["seeds"]:
        backend.global_seeds(make=True)
    strategy = getattr(model, "distribute_strategy", None)
    present = variables(model)
    for group, members in facts["variables"].items():
        if group == "metrics" and not with_metrics:
            continue
        if len(members) != len(present[group]):
            raise ValueError(
                f"The state holds {len(members)} variables of {group}, and here are {len(present[group])}: compile the "
                "model with the metrics that it had."
            )
        for index, (variable, about) in enumerate(zip(present[group], members, strict=True)):
            copies = backend.copies(variable, strategy)
            if len(copies) != about["copies"] and not about.get("equal") and about["copies"] > 1:
                raise ValueError(
                    f"The state was saved on {about['copies']} replicas, which had values of their own of "
                    f"`{about['path']}`. Received: {len(copies)} replicas"
                )
            for number, copy in enumerate(copies):
                one = 0 if about.get("equal") or about["copies"] == 1 else number
                copy.assign(arrays[f"{group}/{index}/{one}"])
    _put_aside(facts, arrays, model)
    _set_random_state(facts["random"], arrays)


def _described(variable: Any) -> dict[str, Any]:
    return {"path": variable.path, "shape": list(variable.shape), "dtype": backend.dtype(variable)}


def _comparable(about: dict[str, Any]) -> tuple[Any, ...]:
    # Keras numbers names by what was made before in the process.
    return _NUMBER.sub("", about["path"]), tuple(about["shape"]), about["dtype"]


def _in_words(about: dict[str, Any], with_path: bool = True) -> str:
    words = f"{about['dtype']} of shape {tuple(about['shape'])}"
    return f"`{about['path']}` ({words})" if with_path else words


def _innermost(model: Any) -> Any:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _kept_aside(model: Any) -> evaluation.Aside | None:
    optimizer = _innermost(model)
    return None if optimizer is None or not evaluation.held(optimizer) else optimizer._aside


def _put_aside(facts: dict[str, Any], arrays: dict[str, Any], model: Any) -> None:
    optimizer, aside = _innermost(model), facts.get("aside")
    if optimizer is None:
        return
    weights = {i: keras.ops.convert_to_tensor(arrays[f"aside/{i}"]) for i in (aside or {"indices": []})["indices"]}
    optimizer._aside = evaluation.Aside(aside["step"], weights) if aside else None


def _random_state() -> tuple[dict[str, Any], dict[str, Any]]:
    """Of Python's and NumPy's own generators."""
    version, words, spare = random.getstate()
    of_numpy = np.random.get_state(legacy=False)
    facts = {
        "python": [version, spare],
        "numpy": [of_numpy["bit_generator"], of_numpy["state"]["pos"], of_numpy["has_gauss"], of_numpy["gauss"]],
    }
    return facts, {"random/python": np.array(words, "uint64"), "random/numpy": of_numpy["state"]["key"].copy()}


def _set_random_state(facts: dict[str, Any], arrays: dict[str, Any]) -> None:
    version, spare = facts["python"]
    random.setstate((version, tuple(arrays["random/python"].tolist()), spare))
    name, position, has_gauss, gauss = facts["numpy"]
    np.random.set_state((name, arrays["random/numpy"], position, has_gauss, gauss))

"""Flat parameters: what goes to the model-building function, the optimizer or the loss, beside an estimator's own."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_trainkit.core import checks

ROUTES = ("model", "optimizer", "loss")
"""Before two underscores: who gets what comes after them."""

META = "meta"
"""The argument in which a function is told about the data; it is no parameter."""


class FlatParameters:
    """`get_params` and `set_params` of an estimator that takes the arguments of its `model` function as its own.

    Every such parameter is an attribute of the same name, as scikit-learn has it: `units`, `optimizer__learning_rate`,
    `model__epochs` (for an argument of the function that is also called like one of the estimator's).
    """

    model: Any

    def _store_flat(self, parameters: dict[str, Any]) -> None:
        """For a constructor: sets the attributes. Raises TypeError for a name that nobody takes."""
        for name, value in parameters.items():
            if problem := self._problem_with(name):
                raise TypeError(f"{type(self).__name__}() {problem}")
            setattr(self, name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The estimator's parameters and the flat ones that were set, by name."""
        parameters = super().get_params(deep=deep)  # type: ignore[misc]
        return parameters | {name: getattr(self, name) for name in self._flat_names()}

    def set_params(self, **parameters: Any) -> Any:
        """Sets parameters, the estimator's own and flat ones; a new `model` first, because it decides on the others.

        Raises:
            ValueError: for a name that neither the estimator nor its `model` takes.
        """
        for name in sorted(parameters, key=lambda name: name != "model"):
            if name not in self._own_names() and (problem := self._problem_with(name)):
                raise ValueError(f"{type(self).__name__} {problem}")
            setattr(self, name, parameters[name])
        return self

    def _own_names(self) -> list[str]:
        return self._get_param_names()  # type: ignore[attr-defined]

    def _flat_names(self) -> list[str]:
        own = set(self._own_names())
        return sorted(
            name for name in vars(self) if name not in own and not name.startswith("_") and not name.endswith("_")
        )

    def _routed(self, route: str) -> dict[str, Any]:
        """The set parameters that go to `route`, by the names that it knows them by."""
        found = {}
        for name in self._flat_names():
            first, _, rest = name.partition("__")
            if rest and first == route:
                found[rest] = getattr(self, name)
            elif route == "model" and not (rest and first in ROUTES):
                found[name] = getattr(self, name)
        return found

    def _problem_with(self, name: str) -> str:
        """What is wrong with a flat parameter's name; empty if nothing is."""
        first, _, rest = name.partition("__")
        routed = bool(rest) and first in ROUTES
        if routed and first != "model":
            return ""
        known, takes_any = arguments_of(self.model)
        wanted = rest if routed else name
        if not routed and (hasattr(type(self), name) or name.startswith("_") or name.endswith("_")):
            return f"needs the argument {name!r} of `model` in the form 'model__{name}'. Received: {name}"
        if wanted in known or (takes_any and wanted != META):
            return ""
        everything = [*self._own_names(), *known, "optimizer__...", "loss__..."]
        hint = checks.did_you_mean(wanted, everything)
        return (
            f"has no parameter {name!r}, and `model` takes no such argument{hint}. "
            f"Valid parameters are: {', '.join(everything)}"
        )


def arguments_of(model: Any) -> tuple[list[str], bool]:
    """The names of a model-building function's arguments, without `meta`, and whether it takes any others.

    Where there is no function yet, nobody knows; `fit` will tell.
    """
    if isinstance(model, keras.Model) or not callable(model):
        return [], not isinstance(model, keras.Model)
    parameters = inspect.signature(model).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != META]
    return named, any(p.kind == p.VAR_KEYWORD for p in parameters)


def wants_meta(model: Any) -> bool:
    """Whether a model-building function has an argument `meta`."""
    return META in inspect.signature(model).parameters

"""Transforms made of transforms: in sequence, by variable, or on some variables only."""

from __future__ import annotations

import math
import re
from typing import Any

from keras_trainkit.core.guard import Guard
from keras_trainkit.core.matching import first_match, require_matches, require_pattern, table
from keras_trainkit.core.transform import Context, State, Tensor, Transform, Treatment, register_transform

_READABLE = 40
"""Characters of a pattern that may stand for its group."""


def chain(*transforms: Transform) -> Chain:
    """Applies transforms one after the other; chains inside chains are flattened.

    >>> from keras_trainkit.transforms import ClipByGlobalNorm, ScaleByAdam
    >>> [type(link).__name__ for link in chain(ClipByGlobalNorm(1.0), chain(ScaleByAdam())).links]
    ['ClipByGlobalNorm', 'ScaleByAdam']
    """
    links: list[Transform] = []
    for item in transforms:
        links.extend(item.links if isinstance(item, Chain) else [item])
    return Chain(links)


def partition(rules: list[Any], default: Transform | None = None) -> Partition:
    """Gives each variable to the first rule whose regular expression is found in the variable's path.

    Args:
        rules: list of `[pattern, transform]` pairs, tried in order.
        default: the transform of variables that no pattern matches; without one such a variable is an error.

    Raises:
        ValueError: when the optimizer is built, if a variable has no rule or a rule has no variable.
    """
    return Partition(rules, default)


def masked(inner: Transform, pattern: str, invert: bool = False) -> Masked:
    """Applies `inner` to the variables whose path contains `pattern` (or, inverted, to the others).

    The remaining updates pass through unchanged.
    """
    return Masked(inner, pattern, invert)


@register_transform
class Chain(Transform):
    """Transforms in sequence; see `chain`."""

    links: list

    def validate(self) -> None:
        for link in self.links:
            _require_transform("links", link)

    def check_variables(self, variables: list[Any]) -> None:
        for link in self.links:
            link.check_variables(variables)

    def fitted(self, variables: list[Any]) -> Chain:
        return Chain([link.fitted(variables) for link in self.links])

    def slots(self, variable: Any) -> dict[str, Any]:
        declared = {str(i): link.slots(variable) for i, link in enumerate(self.links)}
        return {key: slots for key, slots in declared.items() if slots}

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        new: list[State] = [{} for _ in states]
        for i, link in enumerate(self.links):
            key = str(i)
            updates, link_states = link.update(updates, parameters, [s.get(key, {}) for s in states], context)
            for whole, part in zip(new, link_states, strict=True):
                if part:
                    whole[key] = part
        return updates, new

    def treatment(self, path: str) -> Treatment | None:
        parts = [link.treatment(path) for link in self.links]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return Treatment(tuple(part.key for part in known), all(part.joinable for part in known))

    def offers_evaluation(self) -> bool:
        return any(link.offers_evaluation() for link in self.links)

    def rate_group(self, path: str) -> tuple[str, float]:
        found = [link.rate_group(path) for link in self.links]
        return " ".join(label for label, _ in found if label), math.prod(factor for _, factor in found)

    def exchange(self, parameter: Tensor, state: State, path: str, to_evaluation: bool) -> Tensor:
        for i in range(len(self.links)) if to_evaluation else reversed(range(len(self.links))):
            parameter = self.links[i].exchange(parameter, state.get(str(i), {}), path, to_evaluation)
        return parameter


@register_transform
class Partition(Transform):
    """One transform for each group of variables; see `partition`."""

    rules: list
    default: Transform | None = None

    def validate(self) -> None:
        if not self.rules:
            raise ValueError(f"`rules` must hold at least one [pattern, transform] pair. Received: rules={self.rules}")
        for rule in self.rules:
            if not (isinstance(rule, list) and len(rule) == 2):
                raise ValueError(f"`rules` must hold [pattern, transform] pairs. Received: rules={self.rules}")
            require_pattern("rules", rule[0])
            _require_member("rules", rule[1])
        if self.default is not None:
            _require_member("default", self.default)

    def groups(self, paths: list[str]) -> list[list[int]]:
        """The positions of the paths that each rule takes, in the order of the rules; the default's come last."""
        found: list[list[int]] = [[] for _ in range(len(self.rules) + 1)]
        for position, path in enumerate(paths):
            group = first_match(self._patterns(), path)
            found[-1 if group is None else group].append(position)
        return found

    def matched(self, variables: list[Any]) -> list[list[Any]]:
        """A row for each variable: its path, the pattern that takes it (None for the default), and the transform."""
        paths, patterns = [variable_path(v) for v in variables], [*self._patterns(), None]
        taken = {p: i for i, positions in enumerate(self.groups(paths)) for p in positions}
        return [[path, patterns[taken[i]], type(self._members()[taken[i]]).__name__] for i, path in enumerate(paths)]

    def report(self, variables: list[Any]) -> str:
        """`matched` as a table of text."""
        return table(["variable", "rule", "transform"], self.matched(variables))

    def check_variables(self, variables: list[Any]) -> None:
        paths = [variable_path(v) for v in variables]
        *ruled, rest = self.groups(paths)
        require_matches("rules", self._patterns(), paths)
        if rest and self.default is None:
            unmatched = ", ".join(f"`{paths[i]}`" for i in rest)
            raise ValueError(f"`rules` must match every variable, or `default` be given. Unmatched: {unmatched}")
        for positions, member in zip([*ruled, rest], self._members(), strict=True):
            if positions:
                member.check_variables([variables[i] for i in positions])

    def fitted(self, variables: list[Any]) -> Partition:
        groups = self.groups([variable_path(v) for v in variables])
        *ruled, default = [
            member.fitted([variables[i] for i in positions]) if positions else member
            for positions, member in zip(groups, self._members(), strict=True)
        ]
        return Partition([[rule[0], member] for rule, member in zip(self.rules, ruled, strict=True)], default)

    def slots(self, variable: Any) -> dict[str, Any]:
        rule, member = self._member(variable_path(variable))
        slots = member.slots(variable)
        return {rule: slots} if slots else {}

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        updates, states = list(updates), list(states)
        for rule, (positions, member) in enumerate(zip(self.groups(context.paths), self._members(), strict=True)):
            if positions:
                inner = [state.get(str(rule), {}) for state in states]
                _update_some(member, positions, updates, parameters, inner, context)
                for i in positions:
                    states[i] = {str(rule): inner[i]} if inner[i] else {}
        return updates, states

    def treatment(self, path: str) -> Treatment | None:
        rule, member = self._member(path)
        part = member.treatment(path)
        return None if part is None else Treatment((rule, part.key), part.joinable)

    def offers_evaluation(self) -> bool:
        return any(member is not None and member.offers_evaluation() for member in self._members())

    def rate_group(self, path: str) -> tuple[str, float]:
        rule, member = self._member(path)
        pattern = [*self._patterns(), "rest"][int(rule)]
        label, factor = member.rate_group(path)
        return f"{pattern if len(pattern) <= _READABLE else f'rule {rule}'} {label}".strip(), factor

    def exchange(self, parameter: Tensor, state: State, path: str, to_evaluation: bool) -> Tensor:
        rule, member = self._member(path)
        return member.exchange(parameter, state.get(rule, {}), path, to_evaluation)

    def _member(self, path: str) -> tuple[str, Any]:
        """The rule that takes a variable, as the key of its state, and the transform."""
        rule = next(i for i, positions in enumerate(self.groups([path])) if positions)
        return str(rule), self._members()[rule]

    def _patterns(self) -> list[str]:
        return [pattern for pattern, _ in self.rules]

    def _members(self) -> list[Any]:
        return [member for _, member in self.rules] + [self.default]


@register_transform
class Masked(Transform):
    """A transform on some variables only; see `masked`."""

    inner: Transform
    pattern: str
    invert: bool = False

    def validate(self) -> None:
        _require_member("inner", self.inner)
        require_pattern("pattern", self.pattern)

    def applies(self, path: str) -> bool:
        """Whether the variable at `path` is transformed."""
        return bool(re.search(self.pattern, path)) != self.invert

    def check_variables(self, variables: list[Any]) -> None:
        mine = [v for v in variables if self.applies(variable_path(v))]
        if not mine:
            listed = ", ".join(f"`{variable_path(v)}`" for v in variables)
            raise ValueError(
                f"`pattern` leaves no variable to transform. Received: pattern={self.pattern!r} on {listed}"
            )
        self.inner.check_variables(mine)

    def fitted(self, variables: list[Any]) -> Masked:
        mine = [v for v in variables if self.applies(variable_path(v))]
        return Masked(self.inner.fitted(mine), self.pattern, self.invert)

    def slots(self, variable: Any) -> dict[str, Any]:
        return self.inner.slots(variable) if self.applies(variable_path(variable)) else {}

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        updates, states = list(updates), list(states)
        positions = [i for i, path in enumerate(context.paths) if self.applies(path)]
        if positions:
            _update_some(self.inner, positions, updates, parameters, states, context)
        return updates, states

    def treatment(self, path: str) -> Treatment | None:
        return self.inner.treatment(path) if self.applies(path) else Treatment(("untouched",), True)

    def offers_evaluation(self) -> bool:
        return self.inner.offers_evaluation()

    def rate_group(self, path: str) -> tuple[str, float]:
        return self.inner.rate_group(path) if self.applies(path) else ("", 1.0)

    def exchange(self, parameter: Tensor, state: State, path: str, to_evaluation: bool) -> Tensor:
        return self.inner.exchange(parameter, state, path, to_evaluation) if self.applies(path) else parameter


def variable_path(variable: Any) -> str:
    """The path of a Keras variable (`"block/dense/kernel"`), or the name of a TensorFlow one."""
    return getattr(variable, "path", None) or variable.name


def _update_some(
    member: Transform,
    positions: list[int],
    updates: list[Tensor],
    parameters: list[Tensor],
    states: list[State],
    context: Context,
) -> None:
    new_updates, new_states = member.update(
        [updates[i] for i in positions],
        [parameters[i] for i in positions],
        [states[i] for i in positions],
        context.select(positions),
    )
    for i, update, state in zip(positions, new_updates, new_states, strict=True):
        updates[i], states[i] = update, state


def _require_transform(name: str, value: Any) -> None:
    if not isinstance(value, Transform):
        raise TypeError(f"`{name}` must hold transforms of keras_trainkit. Received: {name}={value!r}")


def _require_member(name: str, value: Any) -> None:
    _require_transform(name, value)
    links = value.links if isinstance(value, Chain) else [value]
    if any(isinstance(link, Guard) for link in links):
        raise TypeError(
            f"`{name}` must not hold a guard: it judges the step of the whole model, so put it into the optimizer's "
            f"`before`. Received: {name}={value!r}"
        )

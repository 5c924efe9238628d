"""Learning rates that differ from variable to variable, by the variable's path."""

from __future__ import annotations

import re
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import first_match, require_matches, require_pattern, table
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, Treatment, register_transform


@register_transform
class ScaleByPath(Transform):
    """Multiplies the displacement of each variable by the factor of the first rule that its path matches.

    In `after` this is a learning rate of its own for groups of variables, as torch's parameter groups have it, wherever
    the displacement is proportional to the rate. Links before it are scaled, later ones are not: put it before
    `Lookahead`, and `DecoupledDecay(..., follow_learning_rate=True)` before it where the decay is to be scaled too (as
    with torch's groups). The optimizer's own `weight_decay` is not scaled. A factor of 0 freezes.

    Args:
        rules: list of `[pattern, factor]` pairs, tried in order; the pattern is a regular expression looked for in
            the path, the factor at least 0. A rule that takes no variable is an error when the optimizer is built.
        default: the factor of all other variables.

    >>> from keras_trainkit import optimizers
    >>> optimizer = optimizers.AdamW(1e-3, after=[ScaleByPath([["embedding", 0.1], ["head", 10.0]])])
    """

    rules: list
    default: float = 1.0

    def validate(self) -> None:
        if not self.rules or not all(isinstance(rule, list) and len(rule) == 2 for rule in self.rules):
            raise ValueError(f"`rules` must hold [pattern, factor] pairs, at least one. Received: rules={self.rules}")
        for pattern, factor in self.rules:
            require_pattern("rules", pattern)
            checks.number("rules", factor, at_least=0)
        checks.number("default", self.default, at_least=0)

    def matched(self, variables: list[Any]) -> list[list[Any]]:
        """A row of path, pattern and factor for each variable; the pattern is None where none matches."""
        return [[path, *self._rule(path)] for path in map(variable_path, variables)]

    def report(self, variables: list[Any]) -> str:
        """`matched` as a table of text."""
        return table(["variable", "rule", "factor"], self.matched(variables))

    def check_variables(self, variables: list[Any]) -> None:
        require_matches("rules", [pattern for pattern, _ in self.rules], [variable_path(v) for v in variables])

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        factor = self._rule(context.path)[1]
        return (update if factor == 1 else update * factor), state

    def treatment(self, path: str) -> Treatment:
        return Treatment((self._rule(path)[1],), True)

    def rate_group(self, path: str) -> tuple[str, float]:
        factor = self._rule(path)[1]
        return ("" if factor == 1 else f"x{factor:g}"), factor

    def _rule(self, path: str) -> list[Any]:
        found = first_match([pattern for pattern, _ in self.rules], path)
        return [None, self.default] if found is None else self.rules[found]


@register_transform
class ScaleByVariable(Transform):
    """Multiplies the displacement of each variable by a factor of its own, such as those that `initializers.mup` found.

    It stands in `after`, where `ScaleByPath` says. If some variable has a path that the list does not know, as in a
    model of which Keras has numbered the layers anew, variables are told apart by their order, and the shapes must be
    those of the list.

    Args:
        factors: list of `[path, shape, factor]`, one for each trainable variable in their order; shapes are lists of
            integers, factors at least 0.

    >>> from keras_trainkit import optimizers
    >>> factors = [["dense/kernel", [64, 8], 0.25], ["dense/bias", [8], 1.0]]
    >>> optimizer = optimizers.AdamW(1e-3, after=[ScaleByVariable(factors)])
    """

    factors: list

    def validate(self) -> None:
        for row in self.factors:
            if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], list)):
                raise ValueError(f"`factors` must hold rows of [path, shape, factor]. Received: {row!r}")
            checks.number("factors", row[2], at_least=0)
        if not self.factors:
            raise ValueError("`factors` must hold at least one row. Received: factors=[]")
        known = {row[0]: row[2] for row in self.factors}
        for path, _, factor in self.factors:
            if known[path] != factor:
                raise ValueError(
                    f"`factors` must not differ for variables of one path. Received: {factor} and {known[path]} for "
                    f"`{path}`"
                )

    def matched(self, variables: list[Any]) -> list[list[Any]]:
        """A row of path and factor for each variable."""
        paths = [variable_path(v) for v in variables]
        shapes = [list(v.shape) for v in variables]
        known = {(path, tuple(shape)): float(factor) for path, shape, factor in self.factors}
        keys = [(path, tuple(shape)) for path, shape in zip(paths, shapes, strict=True)]
        unknown = [f"`{path}` {list(shape)}" for path, shape in keys if (path, shape) not in known]
        if not unknown:
            return [[path, known[path, shape]] for path, shape in keys]
        if shapes != [shape for _, shape, _ in self.factors]:
            raise ValueError(f"`factors` must hold all variables of the model. Not found: {', '.join(unknown)}")
        return [[path, float(row[2])] for path, row in zip(paths, self.factors, strict=True)]

    def report(self, variables: list[Any]) -> str:
        """`matched` as a table of text."""
        return table(["variable", "factor"], self.matched(variables))

    def check_variables(self, variables: list[Any]) -> None:
        self.matched(variables)

    def fitted(self, variables: list[Any]) -> Transform:
        # One pattern for all variables of a factor: Python keeps only so many compiled ones.
        groups: dict[float, list[str]] = {}
        for path, factor in self.matched(variables):
            groups.setdefault(factor, []).append(re.escape(path))
        return ScaleByPath([[f"^(?:{'|'.join(paths)})$", factor] for factor, paths in groups.items()])

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        raise NotImplementedError("ScaleByVariable works through `fitted`, because paths may have changed.")


@register_transform
class LayerwiseDecay(Transform):
    """Learning rates that shrink from the top layer down: the factor is decay^(layers above).

    The usual way to fine-tune a pretrained transformer (ELECTRA, Clark et al., 2020, arXiv:2003.10555; BEiT, Bao et
    al., 2021, arXiv:2106.08254; timm's `layer_decay`). It stands in `after`, where `ScaleByPath` says.

    Args:
        decay: above 0 and at most 1; ELECTRA 0.8 (base) and 0.9 (large), BEiT 0.65 to 0.75.
        layers: list of regular expressions from the bottom layer to the top one, looked for in the variables' paths;
            the first that is found counts. One with a group that captures a number, such as `r"block_(\\d+)/"`, stands
            for as many layers as there are numbers, in their order. Every variable must match one (`""` as the last
            takes the rest), every pattern a variable; both are checked when the optimizer is built.

    >>> from keras_trainkit import optimizers
    >>> optimizer = optimizers.AdamW(1e-3, after=[LayerwiseDecay(0.75, ["embed", r"block_(\\d+)/", "head|norm"])])
    """

    decay: float
    layers: list

    def validate(self) -> None:
        checks.number("decay", self.decay, above=0, at_most=1)
        if not self.layers:
            raise ValueError(f"`layers` must hold at least one pattern. Received: layers={self.layers}")
        for pattern in self.layers:
            require_pattern("layers", pattern)
            if re.compile(pattern).groups > 1:
                raise ValueError(
                    f"`layers` must hold patterns with at most one group; `(?:...)` makes none. Received: {pattern!r}"
                )

    def matched(self, variables: list[Any]) -> list[list[Any]]:
        """A row of path, pattern, layer (counted from the bottom, 0) and factor for each variable."""
        places = [self._place(variable_path(v)) for v in variables]
        numbers = [
            [n for found in places if found and found[0] == i for n in [found[1]]] for i in range(len(self.layers))
        ]
        starts, total = [], 0
        for taken in numbers:
            starts.append(total)
            total += max(taken) - min(taken) + 1 if taken else 0
        rows: list[list[Any]] = []
        for variable, found in zip(variables, places, strict=True):
            if found is None:
                rows.append([variable_path(variable), None, None, None])
                continue
            layer = starts[found[0]] + found[1] - min(numbers[found[0]])
            factor = float(self.decay ** (total - 1 - layer))
            rows.append([variable_path(variable), self.layers[found[0]], layer, factor])
        return rows

    def report(self, variables: list[Any]) -> str:
        """`matched` as a table of text."""
        return table(["variable", "rule", "layer", "factor"], self.matched(variables))

    def check_variables(self, variables: list[Any]) -> None:
        require_matches("layers", self.layers, [variable_path(v) for v in variables])
        rest = [row[0] for row in self.matched(variables) if row[1] is None]
        if rest:
            listed = ", ".join(f"`{path}`" for path in rest)
            raise ValueError(f'`layers` must match every variable; "" as the last takes the rest. Unmatched: {listed}')

    def fitted(self, variables: list[Any]) -> Transform:
        return ScaleByPath([[f"^{re.escape(path)}$", factor] for path, _, _, factor in self.matched(variables)])

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        raise NotImplementedError("LayerwiseDecay works through `fitted`, because the factors depend on all variables.")

    def _place(self, path: str) -> tuple[int, int] | None:
        """The position of the first pattern found, and the number that its group captures (0 without a group)."""
        position = first_match(self.layers, path)
        if position is None:
            return None
        groups = re.search(self.layers[position], path).groups()  # type: ignore[union-attr]
        if not groups:
            return position, 0
        if groups[0] is None or not groups[0].isdecimal():
            raise ValueError(
                f"`layers` must hold groups that capture a number. Received: pattern={self.layers[position]!r}, which "
                f"captures {groups[0]!r} in `{path}`"
            )
        return position, int(groups[0])

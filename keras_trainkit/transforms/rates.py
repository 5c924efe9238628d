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

    def _rule(self, path: str) -> list[Any]:
        found = first_match([pattern for pattern, _ in self.rules], path)
        return [None, self.default] if found is None else self.rules[found]


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

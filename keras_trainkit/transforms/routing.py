"""Which variables are hidden matrices: the rule by which Muon shares them with AdamW."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.transforms.orthogonal import check_layouts, layout_of, matrix_shape

MATRIX = "matrix"

EMBEDDING = r"(?i)embed[^/]*(/[^/]*)?$"
HEAD = r"(?i)(^|/)([^/]*_)?(head|logits|predictions|classifier)(_\d+)?/[^/]*$"
VECTOR = r"(?i)(^|[/_])(bias|gamma|beta|scale)(_\d+)?$"
DEPTHWISE = r"(?i)depthwise"


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """Tells hidden matrices from embeddings, heads and vectors, by path and shape.

    Attributes:
        exclude_layers: list of regular expressions; each must be found in some variable's path.
        exclude_embeddings: whether embeddings are left out.
        head: `"auto"`, None, or a regular expression.
        layouts: list of `[pattern, letters]` pairs, as `Orthogonalize` takes them; each must take some variable.
    """

    exclude_layers: list[str]
    exclude_embeddings: bool
    head: str | None
    layouts: list[list[str]]

    def __post_init__(self) -> None:
        if not isinstance(self.exclude_layers, (list, tuple)):
            raise TypeError(f"`exclude_layers` must be a list. Received: exclude_layers={self.exclude_layers!r}")
        for pattern in self.exclude_layers:
            _require_pattern("exclude_layers", pattern)
        checks.boolean("exclude_embeddings", self.exclude_embeddings)
        if self.head is not None:
            _require_pattern("head", self.head)
        check_layouts(self.layouts)

    def routes(self, variables: list[Any]) -> dict[str, str]:
        """For each path `"matrix"`, or why the variable is none.

        Variables that share a path share the route: if one of them is no matrix, none is.

        Raises:
            ValueError: if a pattern that the user gave takes no variable.
        """
        shapes = [(variable_path(v), [int(size) for size in v.shape]) for v in variables]
        self._check_matched(shapes)
        found: dict[str, str] = {}
        for path, shape in shapes:
            reason = self._reason(path, shape)
            found[path] = reason if found.get(path, MATRIX) == MATRIX else found[path]
        matrices = [path for path, reason in found.items() if reason == MATRIX]
        if self.head == "auto" and "a head" not in found.values() and len(matrices) > 1:
            found[matrices[-1]] = "the last matrix"
        return found

    def _reason(self, path: str, shape: list[int]) -> str:
        for pattern in self.exclude_layers:
            if re.search(pattern, path):
                return f"matches {pattern!r}"
        if len(shape) < 2 or re.search(VECTOR, path):
            return "a vector"
        if re.search(DEPTHWISE, path):
            return "depthwise"
        if min(matrix_shape(shape, layout_of(path, shape, self.layouts))) == 1:
            return "a vector"
        if self.exclude_embeddings and re.search(EMBEDDING, path):
            return "an embedding"
        if self.head is not None and re.search(HEAD if self.head == "auto" else self.head, path):
            return "a head"
        return MATRIX

    def _check_matched(self, shapes: list[tuple[str, list[int]]]) -> None:
        listed = ", ".join(f"`{path}` {tuple(shape)}" for path, shape in shapes)
        patterns = [("exclude_layers", pattern) for pattern in self.exclude_layers]
        patterns += [("head", self.head)] if self.head not in (None, "auto") else []
        for name, pattern in patterns:
            if not any(re.search(str(pattern), path) for path, _ in shapes):
                raise ValueError(f"`{name}` must match a variable. Received: {pattern!r}, with the variables {listed}")
        for pattern, letters in self.layouts:
            if not any(re.search(pattern, path) and len(letters) == len(shape) for path, shape in shapes):
                raise ValueError(
                    f"`layouts` must match a variable by path and number of axes. Received: {[pattern, letters]}, with "
                    f"the variables {listed}"
                )


def _require_pattern(name: str, value: Any) -> None:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"`{name}` must be a regular expression ({error}). Received: {name}={value!r}") from error

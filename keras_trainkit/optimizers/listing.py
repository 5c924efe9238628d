"""The list of optimizers as it shows itself."""

from __future__ import annotations

import dataclasses
import html

from keras_trainkit.core.tables import OPTIMIZER_COLUMNS, aligned, optimizer_row
from keras_trainkit.optimizers.metadata import Info


class Listing(list):
    """A list of optimizers' names that shows itself as a table of what is known about them.

    >>> Listing({"adam": Info(2014, "arXiv:1412.6980", 8)})
    optimizer  year  paper            state bytes/parameter  sparse gradients
    adam       2014  arXiv:1412.6980  8                      dense
    """

    def __init__(self, known: dict[str, Info]) -> None:
        super().__init__(known)
        self.known = dict(known)

    def __repr__(self) -> str:
        return "\n".join(aligned([OPTIMIZER_COLUMNS, *self._rows()])) if self else "[]"

    def _repr_html_(self) -> str:
        def line(cells: list[str], kind: str) -> str:
            return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

        return f"<table>{line(OPTIMIZER_COLUMNS, 'th')}{''.join(line(row, 'td') for row in self._rows())}</table>"

    def _rows(self) -> list[list[str]]:
        return [optimizer_row(name, **dataclasses.asdict(self.known[name])) for name in self]

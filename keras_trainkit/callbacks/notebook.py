"""One place on the page of a notebook that is shown again and again. Needs IPython only where there is a notebook."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can show HTML; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class Place:
    """An output of the cell at hand; what is shown takes the place of what was there."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str, text: str) -> None:
        """Shows HTML where the notebook can, plain text where it is turned into one."""
        content = {"text/html": html, "text/plain": text}
        if self._handle is None:
            from IPython.display import display

            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

"""What a check of a run before it begins has found, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

SEVERITIES = ("error", "warning", "note")
_COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: `"error"` if training cannot go right, `"warning"` if it probably does not, or `"note"`.
        name: what kind of thing it is, such as `"labels-out-of-range"`.
        line: what was seen, and what to do about it.
    """

    severity: str
    name: str
    line: str


class PreflightError(ValueError):
    """Raised for findings that are errors; the message holds all of them."""


@dataclasses.dataclass(frozen=True)
class PreflightReport:
    """What `guards.preflight` has found, the worst first.

    Attributes:
        findings: list of `Finding`.

    >>> report = PreflightReport.of([Finding("note", "seeds", "no seed is set"), Finding("error", "data", "NaN in x")])
    >>> report.names(), report.ok
    (['data', 'seeds'], False)
    """

    findings: list[Finding]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> PreflightReport:
        """The report of some findings."""
        return cls(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def names(self, severity: str | None = None) -> list[str]:
        """The names of the findings, or of those of one severity."""
        return [f.name for f in self.findings if severity in (None, f.severity)]

    def check(self) -> None:
        """Raises PreflightError if there are errors."""
        if not self.ok:
            lines = [f"{f.name}: {f.line}" for f in self.findings if f.severity == "error"]
            raise PreflightError("; ".join(lines))

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        if not self.findings:
            return Text("Preflight: nothing found.")
        table = Table(title="Preflight", box=box.SIMPLE, title_justify="left")
        for heading in ("severity", "finding", "what to do"):
            table.add_column(heading, overflow="fold")
        for finding in self.findings:
            table.add_row(Text(finding.severity, _COLORS[finding.severity]), Text(finding.name), Text(finding.line))
        return table

    def show(self) -> None:
        """Prints the table."""
        from rich.console import Console

        Console().print(self)

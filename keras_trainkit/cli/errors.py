"""Exit codes, and the error that becomes one line on standard error."""

from __future__ import annotations

COMPLETED, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class BadInput(Exception):
    """Something that the user gave cannot be used; the message is one line that says what and why."""

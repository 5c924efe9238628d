"""Reporting: what a run did, read from its directory, as plain values and as one HTML file."""

from keras_trainkit.reporting.page import report
from keras_trainkit.reporting.reading import Run, read_run

__all__ = ["Run", "read_run", "report"]

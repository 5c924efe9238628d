"""Reporting: what a run did, read from its directory, as plain values, as pictures and as HTML files."""

from keras_trainkit.reporting.comparing import Comparison, Metric, compare
from keras_trainkit.reporting.page import report
from keras_trainkit.reporting.plotting import plot
from keras_trainkit.reporting.reading import Run, read_run
from keras_trainkit.reporting.search_page import report_search
from keras_trainkit.reporting.search_reading import SearchResults, read_search

__all__ = [
    "Comparison",
    "Metric",
    "Run",
    "SearchResults",
    "compare",
    "plot",
    "read_run",
    "read_search",
    "report",
    "report_search",
]

"""Weights that are taken out of a model: what `callbacks.MagnitudePruning` is made of, its report and its end."""

from keras_trainkit.core.weight_mask import WeightMask
from keras_trainkit.pruning.report import Row, Summary, strip, summary
from keras_trainkit.pruning.schedule import PruningSchedule

__all__ = ["PruningSchedule", "Row", "Summary", "WeightMask", "strip", "summary"]

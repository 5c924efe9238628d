"""Averages of weights over training: what `callbacks.WeightAveraging` keeps, and when it takes the weights in."""

from keras_trainkit.averaging.rules import EMA, LAWA, SWA, Average

__all__ = ["EMA", "LAWA", "SWA", "Average"]

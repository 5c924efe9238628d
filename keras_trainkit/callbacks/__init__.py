"""Callbacks: one job each."""

from keras_trainkit.callbacks.accumulation_schedule import AccumulationSchedule
from keras_trainkit.callbacks.evaluation_weights import EvaluationWeights
from keras_trainkit.callbacks.flush_accumulation import FlushAccumulation
from keras_trainkit.callbacks.monitor import TrainingMonitor
from keras_trainkit.callbacks.progress import Progress

__all__ = ["AccumulationSchedule", "EvaluationWeights", "FlushAccumulation", "Progress", "TrainingMonitor"]

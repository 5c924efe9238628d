"""Callbacks: one job each."""

from keras_trainkit.callbacks.accumulation_schedule import AccumulationSchedule
from keras_trainkit.callbacks.cooldown import StartCooldown
from keras_trainkit.callbacks.evaluation_weights import EvaluationWeights
from keras_trainkit.callbacks.flush_accumulation import FlushAccumulation
from keras_trainkit.callbacks.hyperparameters import HyperparameterSchedule
from keras_trainkit.callbacks.monitor import TrainingMonitor
from keras_trainkit.callbacks.plateau import ReduceOnPlateau
from keras_trainkit.callbacks.progress import Progress
from keras_trainkit.callbacks.resolve_spans import ResolveSpans

__all__ = [
    "AccumulationSchedule",
    "EvaluationWeights",
    "FlushAccumulation",
    "HyperparameterSchedule",
    "Progress",
    "ReduceOnPlateau",
    "ResolveSpans",
    "StartCooldown",
    "TrainingMonitor",
]

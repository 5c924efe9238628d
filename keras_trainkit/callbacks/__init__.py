"""Callbacks: one job each."""

from keras_trainkit.callbacks.accumulation_schedule import AccumulationSchedule
from keras_trainkit.callbacks.cooldown import StartCooldown
from keras_trainkit.callbacks.evaluation_weights import EvaluationWeights
from keras_trainkit.callbacks.flush_accumulation import FlushAccumulation
from keras_trainkit.callbacks.gradual_unfreezing import GradualUnfreezing
from keras_trainkit.callbacks.hyperparameters import HyperparameterSchedule
from keras_trainkit.callbacks.learning_rate_finder import LearningRateFinder
from keras_trainkit.callbacks.live_plot import LivePlot
from keras_trainkit.callbacks.magnitude_pruning import MagnitudePruning
from keras_trainkit.callbacks.monitor import TrainingMonitor
from keras_trainkit.callbacks.nonfinite_guard import NonFiniteError, NonFiniteGuard
from keras_trainkit.callbacks.plateau import ReduceOnPlateau
from keras_trainkit.callbacks.preflight_check import PreflightCheck
from keras_trainkit.callbacks.progress import Progress
from keras_trainkit.callbacks.resolve_spans import ResolveSpans
from keras_trainkit.callbacks.resumable_training import ResumableTraining
from keras_trainkit.callbacks.spike_guard import SpikeGuard
from keras_trainkit.callbacks.threshold import Threshold, ThresholdCrossed
from keras_trainkit.callbacks.time_budget import TimeBudget
from keras_trainkit.callbacks.weight_averaging import WeightAveraging
from keras_trainkit.monitoring.sinks import Sink
from keras_trainkit.monitoring.trackers import MLflowSink, WandbSink

__all__ = [
    "AccumulationSchedule",
    "EvaluationWeights",
    "FlushAccumulation",
    "GradualUnfreezing",
    "HyperparameterSchedule",
    "LearningRateFinder",
    "LivePlot",
    "MLflowSink",
    "MagnitudePruning",
    "NonFiniteError",
    "NonFiniteGuard",
    "PreflightCheck",
    "Progress",
    "ReduceOnPlateau",
    "ResolveSpans",
    "ResumableTraining",
    "Sink",
    "SpikeGuard",
    "StartCooldown",
    "Threshold",
    "ThresholdCrossed",
    "TimeBudget",
    "TrainingMonitor",
    "WandbSink",
    "WeightAveraging",
]

"""The parts optimizers are made of, and the options that work on every optimizer (`before=`, `after=`)."""

from keras_trainkit.transforms.averaging import Lookahead
from keras_trainkit.transforms.centering import Centralize
from keras_trainkit.transforms.clipping import AdaptiveClip, ClipByGlobalNorm, ClipByNorm, ClipByValue
from keras_trainkit.transforms.guards import Cautious
from keras_trainkit.transforms.moments import (
    Momentum,
    ScaleByAdadelta,
    ScaleByAdagrad,
    ScaleByAdam,
    ScaleByLearningRate,
    ScaleByLion,
    ScaleByRAdam,
    ScaleByRms,
)

__all__ = [
    "AdaptiveClip",
    "Cautious",
    "Centralize",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Lookahead",
    "Momentum",
    "ScaleByAdadelta",
    "ScaleByAdagrad",
    "ScaleByAdam",
    "ScaleByLearningRate",
    "ScaleByLion",
    "ScaleByRAdam",
    "ScaleByRms",
]

"""The parts optimizers are made of, and the options that work on every optimizer (`before=`, `after=`)."""

from keras_trainkit.transforms.averaging import DualAverage, Lookahead
from keras_trainkit.transforms.blockwise import ScaleByBlockAdam
from keras_trainkit.transforms.centering import Centralize
from keras_trainkit.transforms.clipping import AdaptiveClip, ClipByGlobalNorm, ClipByNorm, ClipByValue
from keras_trainkit.transforms.decay import AddDecay, CorrectedDecay, DecoupledDecay, ProximalDecay
from keras_trainkit.transforms.differences import ReduceVariance, ScaleByAdan, ScaleByAdEMAMix
from keras_trainkit.transforms.factored import (
    AverageDisplacement,
    ClipUpdateRms,
    ScaleByFactoredRms,
    ScaleByParameterRms,
    ScaleByRelativeRate,
)
from keras_trainkit.transforms.guards import Cautious, SkipNonfinite, SkipSpikes, ZClip
from keras_trainkit.transforms.kron import ScaleByKron
from keras_trainkit.transforms.late import CountOwnUpdates
from keras_trainkit.transforms.lowrank import ScaleByLowRankAdam
from keras_trainkit.transforms.moments import (
    Momentum,
    Scale,
    ScaleByAdadelta,
    ScaleByAdagrad,
    ScaleByAdam,
    ScaleByLaProp,
    ScaleByLearningRate,
    ScaleByLion,
    ScaleByRAdam,
    ScaleByRms,
)
from keras_trainkit.transforms.noise import GradientNoise
from keras_trainkit.transforms.orthogonal import AverageGradient, Orthogonalize
from keras_trainkit.transforms.projection import FrankWolfeStep
from keras_trainkit.transforms.proximal import DecoupledGroupLasso, DecoupledL1, ProximalAdagradStep
from keras_trainkit.transforms.ratefree import BetCoins, ScaleByDAdaptAdam, ScaleByProdigy
from keras_trainkit.transforms.rates import LayerwiseDecay, ScaleByPath, ScaleByVariable
from keras_trainkit.transforms.rounding import RoundAtRandom, ScaleByAdam16
from keras_trainkit.transforms.schedule_free import ScaleBySquares, ScheduleFree, ScheduleFreeRectified
from keras_trainkit.transforms.shampoo import ScaleByShampoo
from keras_trainkit.transforms.soap import ScaleBySoap
from keras_trainkit.transforms.trust import ScaleByLarsRatio, ScaleByTrustRatio
from keras_trainkit.transforms.variance import (
    ScaleByAdamax,
    ScaleByAdopt,
    ScaleByBelief,
    ScaleByNAdam,
    ScaleByNovoGrad,
    ScaleByYogi,
)

__all__ = [
    "AdaptiveClip",
    "AddDecay",
    "AverageDisplacement",
    "AverageGradient",
    "BetCoins",
    "Cautious",
    "Centralize",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "ClipUpdateRms",
    "CorrectedDecay",
    "CountOwnUpdates",
    "DecoupledDecay",
    "DecoupledGroupLasso",
    "DecoupledL1",
    "DualAverage",
    "FrankWolfeStep",
    "GradientNoise",
    "LayerwiseDecay",
    "Lookahead",
    "Momentum",
    "Orthogonalize",
    "ProximalAdagradStep",
    "ProximalDecay",
    "ReduceVariance",
    "RoundAtRandom",
    "Scale",
    "ScaleByAdEMAMix",
    "ScaleByAdadelta",
    "ScaleByAdagrad",
    "ScaleByAdam",
    "ScaleByAdam16",
    "ScaleByAdamax",
    "ScaleByAdan",
    "ScaleByAdopt",
    "ScaleByBelief",
    "ScaleByBlockAdam",
    "ScaleByDAdaptAdam",
    "ScaleByFactoredRms",
    "ScaleByKron",
    "ScaleByLaProp",
    "ScaleByLarsRatio",
    "ScaleByLearningRate",
    "ScaleByLion",
    "ScaleByLowRankAdam",
    "ScaleByNAdam",
    "ScaleByNovoGrad",
    "ScaleByParameterRms",
    "ScaleByPath",
    "ScaleByProdigy",
    "ScaleByRAdam",
    "ScaleByRelativeRate",
    "ScaleByRms",
    "ScaleByShampoo",
    "ScaleBySoap",
    "ScaleBySquares",
    "ScaleByTrustRatio",
    "ScaleByVariable",
    "ScaleByYogi",
    "ScheduleFree",
    "ScheduleFreeRectified",
    "SkipNonfinite",
    "SkipSpikes",
    "ZClip",
]

"""Layers that Keras lacks."""

from keras_trainkit.layers.batch_statistics import refresh_batch_statistics
from keras_trainkit.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from keras_trainkit.layers.drop_connect import DropConnect
from keras_trainkit.layers.evonorm import EvoNormS0
from keras_trainkit.layers.filter_response_normalization import TLU, FilterResponseNormalization
from keras_trainkit.layers.ghost_batch_normalization import GhostBatchNormalization
from keras_trainkit.layers.instance_normalization import InstanceNormalization
from keras_trainkit.layers.kernel_wrapper import fold_kernels
from keras_trainkit.layers.layer_scale import LayerScale
from keras_trainkit.layers.patch_dropout import PatchDropout
from keras_trainkit.layers.rezero import ReZero
from keras_trainkit.layers.scalar_affine import ScalarAffine
from keras_trainkit.layers.scheduled_dropout import CurriculumRate, ScheduledDropout
from keras_trainkit.layers.stochastic_depth import DropPath, StochasticDepth, depth_rates
from keras_trainkit.layers.weight_normalization import WeightNormalization, initialize_weight_normalization
from keras_trainkit.layers.weight_standardization import WeightStandardization

__all__ = [
    "CurriculumRate",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "EvoNormS0",
    "FilterResponseNormalization",
    "GhostBatchNormalization",
    "InstanceNormalization",
    "LayerScale",
    "PatchDropout",
    "ReZero",
    "ScalarAffine",
    "ScheduledDropout",
    "StochasticDepth",
    "TLU",
    "WeightNormalization",
    "WeightStandardization",
    "depth_rates",
    "fold_kernels",
    "initialize_weight_normalization",
    "refresh_batch_statistics",
]

"""One row for each layer, and for each kind of use that goes other ways; test_layer_contract.py runs them all."""

import keras
from keras.layers import Conv1D, Conv2D, Conv3D, Dense, DepthwiseConv2D, EinsumDense

from keras_trainkit import layers, schedules
from keras_trainkit.layers import DropBlock1D, DropBlock2D, DropBlock3D, DropConnect
from keras_trainkit.testing.layer_contracts import LayerCase

# A schedule that has not ended when a test does.
RISING = schedules.Linear(0.2, 100, 0.9)
FIRST = "channels_first"
# TensorFlow has no convolutions with the channels first on processors.
CONV_FORMAT = FIRST if keras.backend.backend() == "jax" else "channels_last"


def draws(name, make, *shape, **more):
    return LayerCase(name, make, shape, random=True, **more)


def drops(layer, rate=0.3, mode="sample"):
    return lambda: DropConnect(layer(), rate, mode, seed=1)


TOKENS = {"masks": "own", "open_shape": True}
WITHOUT = {"masks": None}
FIXED = {"masks": None, "any_size": False}

CASES = [
    draws("StochasticDepth", lambda: layers.StochasticDepth(0.5, seed=1), 4, 3),
    draws("StochasticDepth-batch", lambda: layers.StochasticDepth(0.5, "batch", seed=5), 3),
    draws("StochasticDepth-schedule", lambda: layers.StochasticDepth(RISING, seed=1), 4, 3),
    draws("ScheduledDropout", lambda: layers.ScheduledDropout(RISING, (None, 1, None), seed=1), 4, 3),
    draws("ScheduledDropout-number", lambda: layers.ScheduledDropout(0.3, seed=1), 6),
    draws("DropBlock1D", lambda: DropBlock1D(0.4, 3, seed=1), 12, 3),
    draws("DropBlock2D-schedule", lambda: DropBlock2D(RISING, 3, seed=1), 6, 7, 2),
    draws("DropBlock2D-first", lambda: DropBlock2D(0.4, [2, 9], True, FIRST, seed=1), 2, 6, 7),
    draws("DropBlock3D", lambda: DropBlock3D(0.4, 2, seed=1), 4, 3, 5, 2),
    draws("DropConnect-Dense", drops(lambda: Dense(3, "tanh")), 5, 4),
    draws("DropConnect-Einsum", drops(lambda: EinsumDense("...ab,abc->...c", 3, bias_axes="c")), 2, 4, **FIXED),
    draws("DropConnect-Conv1D", drops(lambda: Conv1D(4, 3, padding="causal", groups=2), RISING), 7, 2, **WITHOUT),
    draws("DropConnect-Conv2D", drops(lambda: Conv2D(3, (3, 2), (2, 1), "same", CONV_FORMAT)), 2, 6, 2, **FIXED),
    draws("DropConnect-Conv3D", drops(lambda: Conv3D(3, 2), 0.3, "batch"), 4, 3, 5, 2, **WITHOUT),
    draws("DropConnect-Depthwise", drops(lambda: DepthwiseConv2D(3), RISING, "batch"), 6, 7, 2, **WITHOUT),
    draws("PatchDropout", lambda: layers.PatchDropout(0.5, 1, seed=1), 9, 3, **TOKENS),
    draws("PatchDropout-disorder", lambda: layers.PatchDropout(0.25, ordered=False, seed=1), 8, 2, 2, **TOKENS),
    LayerCase("LayerScale", lambda: layers.LayerScale(0.1), (4, 3)),
    LayerCase("LayerScale-axes", lambda: layers.LayerScale(-0.5, [1, 3], "l2", "non_neg"), (2, 4, 3), any_size=False),
    LayerCase("GhostBatchNormalization", lambda: layers.GhostBatchNormalization(3), (4, 3), trains_otherwise=True),
    LayerCase("InstanceNormalization", lambda: layers.InstanceNormalization(), (4, 3)),
    LayerCase("FilterResponseNormalization", lambda: layers.FilterResponseNormalization(learned_epsilon=True), (4, 3)),
    LayerCase("TLU", lambda: layers.TLU(), (4, 3)),
    LayerCase("EvoNormS0", lambda: layers.EvoNormS0(2), (4, 4)),
    LayerCase("ReZero", lambda: layers.ReZero(0.5), (4, 3)),
    LayerCase("ScalarAffine", lambda: layers.ScalarAffine(), (4, 3)),
    LayerCase("WeightNormalization", lambda: layers.WeightNormalization(keras.layers.Dense(5)), (4, 3)),
    LayerCase(
        "WeightStandardization",
        lambda: layers.WeightStandardization(keras.layers.Conv1DTranspose(5, 2), scaled=True),
        (6, 3),
        masks=None,
    ),
]

"""Small models to prune, and what holds of them."""

import dataclasses
import functools

import keras
import numpy as np
import pruning_twin as twin

from keras_trainkit import optimizers, pruning
from keras_trainkit.callbacks import MagnitudePruning

RNG = np.random.default_rng(21)
X = RNG.normal(size=(64, 8)).astype("float32")
Y = RNG.normal(size=(64, 3)).astype("float32")
BATCHES = 8


def model_of(optimizer, **options):
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "tanh", name="one"),
            keras.layers.Dense(8, "tanh", name="two"),
            keras.layers.Dense(3, name="head"),
        ]
    )
    model.compile(optimizer, "mse", **options)
    return model


def pruned(**options):
    return MagnitudePruning(**({"final_sparsity": 0.75, "begin_step": 3, "end_step": 25, "frequency": 4} | options))


def fit(model, *more, epochs=4, **options):
    options = {"batch_size": 64 // BATCHES, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=list(more), **options)


@dataclasses.dataclass(frozen=True)
class End:
    """What a run ended with."""

    weights: list
    masks: list

    def get_weights(self):
        return self.weights


@functools.cache
def whole_run(of_keras):
    """The end of one plain run with Adam's defaults, the kit's AdamW or Keras's Adam, which several tests look at."""
    model = model_of(keras.optimizers.Adam(1e-2) if of_keras else optimizers.AdamW(1e-2))
    fit(model, pruned())
    return End(model.get_weights(), masks(model))


def masks(model):
    if isinstance(model, End):
        return model.masks
    found = [v.constraint.mask for v in model.trainable_variables if isinstance(v.constraint, pruning.WeightMask)]
    return [keras.ops.convert_to_numpy(mask) for mask in found]


def kernels(model):
    return [keras.ops.convert_to_numpy(model.get_layer(name).kernel) for name in ("one", "two")]


def assert_held(model, share=0.75):
    for mask, kernel in zip(masks(model), kernels(model), strict=True):
        assert (~mask).sum() == twin.count(share, mask.size)
        assert not kernel[~mask].any()
        assert kernel[mask].all()


def assert_same(first, second, exact=True):
    for a, b in zip(masks(first), masks(second), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b) if exact else np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)

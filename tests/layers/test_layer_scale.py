"""LayerScale: products by channel, in at least float32."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import LayerScale

RNG = np.random.default_rng(25)


@pytest.mark.parametrize(
    ("axis", "shape", "factors"),
    [(-1, (2, 3, 4), (1, 1, 4)), (1, (2, 3, 4, 5), (1, 3, 1, 1)), ([3, 1], (2, 3, 4, 5), (1, 3, 1, 5))],
)
def test_each_channel_has_its_factor(axis, shape, factors):
    x = RNG.normal(size=shape).astype("float32")
    layer = LayerScale(0.5, axis)
    np.testing.assert_array_equal(np.array(layer(x)), x / 2)
    (initial,) = layer.get_weights()
    values = RNG.normal(size=initial.shape).astype("float32")
    layer.set_weights([values])
    np.testing.assert_allclose(np.array(layer(x)), x * values.reshape(factors), rtol=1e-6)


def test_small_factors_are_exact_in_half_precision():
    x = np.full((1, 1), 1000.0, "float32")
    layer = LayerScale(1.3e-6, dtype="mixed_float16")
    # In float16 the factor itself would be 1.31e-6: subnormal, with four bits.
    assert float(layer(x)[0, 0]) == pytest.approx(1.3e-3, rel=5e-4)
    assert layer.gamma.dtype == "float32"


def test_regularizer_and_constraint_are_kept():
    layer = LayerScale(2.0, regularizer=keras.regularizers.L2(0.5), constraint="non_neg")
    layer.build((None, 3))
    assert float(layer.losses[0]) == pytest.approx(0.5 * 12)
    assert isinstance(layer.gamma.constraint, keras.constraints.NonNeg)
    again = LayerScale.from_config(layer.get_config())
    assert again.regularizer.l2 == 0.5 and isinstance(again.constraint, keras.constraints.NonNeg)


def test_a_branch_grows_from_nothing():
    x = RNG.normal(size=(64, 6)).astype("float32")
    inputs = keras.Input((6,))
    branch = LayerScale(1e-5)(keras.layers.Dense(6, "tanh")(inputs))
    model = keras.Model(inputs, inputs + branch)
    np.testing.assert_allclose(np.array(model(x)), x, atol=1e-4)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    losses = model.fit(x, x + np.tanh(x), batch_size=16, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert float(ops.max(ops.abs(model.layers[2].gamma))) > 0.1


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: LayerScale("small"), TypeError, "Received: initial_value='small'"),
        (lambda: LayerScale(axis=1.5), TypeError, "Received: axis=1.5"),
        (lambda: LayerScale(axis=0)(np.ones((2, 3))), ValueError, "behind the batch's"),
        (lambda: LayerScale(axis=2)(np.ones((2, 3))), ValueError, "`axis` must name different axes"),
        (lambda: LayerScale(axis=[1, -1])(np.ones((2, 3))), ValueError, "`axis` must name different axes"),
        (lambda: LayerScale()(keras.Input((None,))), ValueError, "of known size"),
    ],
)
def test_bad_arguments_fail(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)

"""The report, and what is left when the masks are off: a plain model, in a small file."""

import gzip
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers, pruning
from keras_trainkit.callbacks import MagnitudePruning

RNG = np.random.default_rng(22)
X, Y = RNG.normal(size=(32, 64)).astype("float32"), RNG.normal(size=(32, 2)).astype("float32")


def fitted(optimizer):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu", name="one"), keras.layers.Dense(2)])
    model.compile(optimizer, "mse")
    model.fit(X, Y, verbose=0, callbacks=[MagnitudePruning(0.9, begin_step=0, end_step=0)])
    return model


def test_summary_counts():
    model = fitted(optimizers.Adam())
    found = pruning.summary(model)
    rows = {row.path.split("/", 1)[1]: row for row in found.rows}
    first = rows["one/kernel"]
    assert (first.shape, first.elements, first.zeros, first.masked) == ((64, 256), 16384, 14746, True)
    assert first.sparsity == 14746 / 16384
    assert not rows["one/bias"].masked
    elements = sum(row.elements for row in found.rows)
    assert found.sparsity == sum(row.zeros for row in found.rows) / elements
    assert "64x256" in str(found) and str(found).splitlines()[-1].startswith("all")


def test_strip_leaves_a_model_without_masks():
    model = fitted(optimizers.Adam())
    before = model.get_weights()
    prediction = model.predict(X, verbose=0)
    assert pruning.strip(model) is model
    np.testing.assert_array_equal(model.predict(X, verbose=0), prediction)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(v.constraint is None for v in model.trainable_variables)
    assert model.get_layer("one").get_config()["kernel_constraint"] is None
    assert "keras_trainkit" not in str(model.get_config())
    assert not any(row.masked for row in pruning.summary(model).rows)
    model.fit(X, Y, verbose=0)
    assert pruning.summary(model).rows[0].zeros < 14746 // 2  # they fill up again


def test_strip_works_on_weights_that_were_replaced():
    model = fitted(optimizers.Adam())
    model.get_layer("one").kernel.assign(np.ones((64, 256), "float32"))
    assert pruning.summary(pruning.strip(model)).rows[0].zeros == 14746


LOADER = """
import sys, keras
assert "keras_trainkit" not in sys.modules
model = keras.models.load_model(sys.argv[1], compile=sys.argv[2] == "compile")
assert "keras_trainkit" not in sys.modules
print("zeros", int((model.layers[0].kernel.numpy() == 0).sum()) if hasattr(model.layers[0].kernel, "numpy") else 14746)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "how"), [(keras.optimizers.Adam, "compile"), (optimizers.Adam, "not")], ids=["Keras", "the kit"]
)
def test_a_process_without_the_kit_loads_it(make, how, tmp_path):
    path = tmp_path / "plain.keras"
    pruning.strip(fitted(make(1e-3))).save(path)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(path), how], capture_output=True, text=True, timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "zeros 14746" in done.stdout


def test_zeros_are_small_when_compressed(tmp_path):
    def weights(model):
        model.save_weights(tmp_path / "model.weights.h5")
        return len(gzip.compress((tmp_path / "model.weights.h5").read_bytes()))

    dense = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256), keras.layers.Dense(2)])
    sparse = pruning.strip(fitted(optimizers.SGD()))
    # A tenth of the values at 4 bytes, and where they are: at most 1.2 bits for each of ten.
    assert weights(sparse) < 0.25 * weights(dense)


def test_the_mask_costs_a_bit_an_element_in_the_file(tmp_path):
    model = fitted(optimizers.SGD())
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert archive.getinfo("config.json").file_size < 16384 / 8 * 4 / 3 + 6000


@pytest.mark.parametrize("shape", [(3, 5), (4, 4, 2, 7), (1,), (8,)])
def test_a_mask_survives_its_configuration(shape):
    mask = RNG.random(shape) > 0.5
    made = pruning.WeightMask(mask, keras.constraints.MaxNorm(2.0))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(again.mask), mask)
    assert again.constraint.max_value == 2.0
    values = RNG.normal(size=shape).astype("float32")
    expected = np.where(mask, keras.ops.convert_to_numpy(keras.constraints.MaxNorm(2.0)(values * mask)), 0)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(again(values)), expected, rtol=1e-6)


def test_what_is_not_finite_is_zero_where_it_has_gone():
    mask = pruning.WeightMask(np.array([True, False]))
    assert keras.ops.convert_to_numpy(mask(np.array([1.0, np.nan], "float32"))).tolist() == [1.0, 0.0]

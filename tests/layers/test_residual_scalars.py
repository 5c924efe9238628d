"""ReZero and ScalarAffine: the maths, dtypes, masks, saving, and training on either backend."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit.layers import ReZero, ScalarAffine

RNG = np.random.default_rng(0)


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def test_a_branch_counts_by_the_number():
    shortcut, branch = (RNG.normal(size=(4, 3)).astype("float32") for _ in range(2))
    layer = ReZero(0.25)
    np.testing.assert_allclose(numpy(layer(branch)), 0.25 * branch, rtol=1e-6)
    np.testing.assert_allclose(numpy(layer([shortcut, branch])), shortcut + 0.25 * branch, rtol=1e-6)
    np.testing.assert_array_equal(numpy(ReZero()([shortcut, branch])), shortcut)
    assert layer.scale.path.endswith("scale") and layer.count_params() == 1


def test_scale_and_bias():
    x = RNG.normal(size=(4, 3)).astype("float32")
    layer = ScalarAffine()
    np.testing.assert_array_equal(numpy(layer(x)), x)
    layer.scale.assign(2.0)
    layer.bias.assign(-1.0)
    np.testing.assert_allclose(numpy(layer(x)), 2 * x - 1, rtol=1e-6)
    for options in ({"use_scale": False}, {"use_bias": False}):
        one = ScalarAffine(**options)
        one(x)
        assert one.count_params() == 1


def test_a_hundred_blocks_begin_as_the_identity_with_all_their_gradient():
    x = inputs = keras.Input((8,))
    for _ in range(100):
        x = ReZero()([x, keras.layers.Dense(8, "relu", kernel_initializer=keras.initializers.RandomNormal(0, 9))(x)])
    model = keras.Model(inputs, x)
    data = RNG.normal(size=(5, 8)).astype("float32")
    np.testing.assert_array_equal(numpy(model(data)), data)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_learns_through_them_and_is_saved(compiled, tmp_path):
    x = inputs = keras.Input((4,))
    for _ in range(2):
        branch = keras.layers.Dense(4)(ScalarAffine(use_scale=False)(x))
        x = ReZero()([x, ScalarAffine()(keras.layers.Activation("relu")(branch))])
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=compiled)
    data = RNG.normal(size=(128, 4)).astype("float32")
    target = np.abs(data).sum(axis=1, keepdims=True)
    losses = model.fit(data, target, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    scalars = [layer for layer in model.layers if isinstance(layer, ReZero)]
    assert all(abs(float(layer.scale)) > 1e-3 for layer in scalars)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(data)), numpy(model(data)))


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize("kind", [lambda dtype: ReZero(0.5, dtype=dtype), lambda dtype: ScalarAffine(dtype=dtype)])
def test_the_output_has_the_compute_dtype(kind, policy, dtype):
    layer = kind(policy)
    out = layer(np.ones((3, 2), "float32"))
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    assert keras.backend.standardize_dtype(layer.scale.dtype) == ("float32" if "mixed" in policy else dtype)


@pytest.mark.parametrize("kind", ["branch", "both", "affine"])
def test_a_mask_passes_through(kind):
    ids = keras.Input((4,), dtype="int32")
    vectors = keras.layers.Embedding(5, 3, mask_zero=True)(ids)
    out = ScalarAffine()(vectors) if kind == "affine" else ReZero(1.0)(vectors if kind == "branch" else [vectors] * 2)
    model = keras.Model(ids, [vectors, keras.layers.GlobalAveragePooling1D()(out)])
    x = np.array([[1, 2, 0, 0], [3, 4, 1, 0]], "int32")
    plain, pooled = (numpy(out) for out in model(x))
    expected = np.stack([plain[0, :2].mean(0), plain[1, :3].mean(0)]) * (2 if kind == "both" else 1)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)
    masks = [ops.convert_to_tensor([True, False]), ops.convert_to_tensor([False, False])]
    assert numpy(ReZero().compute_mask([0, 0], masks)).tolist() == [1, 0]
    assert ReZero().compute_mask([0, 0], [masks[0], None]) is None


@pytest.mark.parametrize("shapes", [[(4, 3), (4, 2)], [(4, 3), (4, 3, 1)], [(4, 3)] * 3])
def test_inputs_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"takes a branch, or \[shortcut, branch\]"):
        ReZero()([np.ones(shape, "float32") for shape in shapes])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ReZero("0"), TypeError, "Received: initial_value='0'"),
        (lambda: ScalarAffine(use_scale=1), TypeError, "Received: use_scale=1"),
        (lambda: ScalarAffine(False, False), ValueError, "`use_scale` or `use_bias`"),
    ],
)
def test_bad_arguments_fail_at_construction(make, error, words):
    with pytest.raises(error, match=words):
        make()

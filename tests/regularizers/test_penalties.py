"""Every penalty on weights: its value and slope against a slow twin, at zero, in half precision, saved, compiled."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from slopes import by_differences, compiled, gradient

from keras_trainkit.regularizers import SRIP, ElasticNet, GroupLasso, Hoyer, SoftOrthogonal, SpectralNorm

RNG = np.random.default_rng(51)


# ---------------------------------------------------------------------------------------- slow twins, in float64


def columns(w, axis=-1):
    """The vectors that an axis, or two neighbouring ones, name: a list of flat arrays."""
    axes = [axis] if isinstance(axis, int) else axis
    moved = np.moveaxis(np.asarray(w, "float64"), axes, list(range(len(axes))))
    return list(moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1))


def matrix(w, axis=-1):
    return np.stack(columns(w, axis), axis=1)


def elastic_net(w, ratio):
    return sum(ratio * abs(x) + (1 - ratio) / 2 * x**2 for x in w.ravel())


def soft_orthogonal(w, axis=-1, double=False):
    m = matrix(w, axis)
    total = np.linalg.norm(m.T @ m - np.eye(m.shape[1])) ** 2
    return total + (np.linalg.norm(m @ m.T - np.eye(m.shape[0])) ** 2 if double else 0.0)


def srip(w):
    m = matrix(w)
    m = m if m.shape[0] >= m.shape[1] else m.T
    return np.linalg.norm(m.T @ m - np.eye(m.shape[1]), 2)


def spectral(w, axis=-1):
    return np.linalg.norm(matrix(w, axis), 2) ** 2 / 2


def hoyer(w, axis=None, square=True):
    sizes = np.abs(w).ravel() if axis is None else np.array([np.linalg.norm(c) for c in columns(w, axis)])
    ratio = sizes.sum() / np.linalg.norm(sizes)
    return ratio**2 if square else ratio


CASES = {
    "elastic net": (ElasticNet(0.3, 0.8), lambda w: 0.3 * elastic_net(w, 0.8)),
    "lasso": (ElasticNet(0.3, 1), lambda w: 0.3 * np.abs(w).sum()),
    "soft orthogonal": (SoftOrthogonal(0.3), lambda w: 0.3 * soft_orthogonal(w)),
    "soft orthogonal rows": (SoftOrthogonal(0.3, axis=0), lambda w: 0.3 * soft_orthogonal(w, 0)),
    "double": (SoftOrthogonal(0.3, double=True), lambda w: 0.3 * soft_orthogonal(w, double=True)),
    "srip": (SRIP(0.3, iterations=100), lambda w: 0.3 * srip(w)),
    "spectral": (SpectralNorm(0.3, iterations=40), lambda w: 0.3 * spectral(w)),
    "spectral rows": (SpectralNorm(0.3, axis=0, iterations=40), lambda w: 0.3 * spectral(w, 0)),
    "hoyer": (Hoyer(0.3), lambda w: 0.3 * hoyer(w)),
    "hoyer ratio": (Hoyer(0.3, square=False), lambda w: 0.3 * hoyer(w, square=False)),
    "hoyer groups": (Hoyer(0.3, axis=[-2, -1]), lambda w: 0.3 * hoyer(w, [-2, -1])),
    "hoyer filters": (Hoyer(0.3, axis=-1), lambda w: 0.3 * hoyer(w, -1)),
    "group lasso": (GroupLasso(0.3), lambda w: 0.3 * sum(np.linalg.norm(c) * np.sqrt(c.size) for c in columns(w))),
}
SHAPES = {"tall": (7, 4), "wide": (3, 8), "convolution": (2, 2, 3, 5), "few inputs": (1, 3, 1, 8)}
# With as many iterations as by default: what is asked of these does not need convergence.
QUICK = {
    name: type(r).from_config({**r.get_config(), "iterations": 10}) if hasattr(r, "iterations") else r
    for name, (r, _) in CASES.items()
}
every_case = pytest.mark.parametrize("name", CASES)


@every_case
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_slope_are_the_twins(name, shape):
    regularizer, twin = CASES[name]
    weights = RNG.normal(size=shape).astype("float32")
    assert float(regularizer(ops.convert_to_tensor(weights))) == pytest.approx(twin(weights), rel=3e-5)
    slope = by_differences(twin, weights)
    np.testing.assert_allclose(gradient(regularizer, weights), slope, atol=2e-3 * np.abs(slope).max())


@every_case
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-30, 1e-18, 1e-8, 1e8])
def test_the_slope_is_finite_at_zero_and_near_it_and_far_away(name, value):
    weights = np.full((6, 4), value, "float32")
    found = gradient(QUICK[name], weights)
    assert np.all(np.isfinite(found)) and np.isfinite(float(QUICK[name](ops.convert_to_tensor(weights))))
    if value == 0:
        np.testing.assert_array_equal(found, 0)


@every_case
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(name, dtype):
    weights = ops.cast(ops.convert_to_tensor(RNG.normal(size=(300, 20)).astype("float32")), dtype)
    exact = ops.convert_to_numpy(ops.cast(weights, "float32"))
    found = CASES[name][0](weights)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert float(found) == pytest.approx(CASES[name][1](exact), rel=1e-3)
    assert np.all(np.isfinite(gradient(QUICK[name], weights)))


def test_kerass_own_overflows_in_half_precision():
    weights = ops.full((300, 300), 1.0, dtype="float16")
    assert np.isinf(float(keras.regularizers.L1L2(l1=1.0)(weights)))
    assert float(ElasticNet(1.0, 1.0)(weights)) == 90_000


@every_case
def test_compiled_by_xla_it_is_the_same(name):
    regularizer = QUICK[name]
    weights = RNG.normal(size=(5, 3)).astype("float32")
    plain = float(regularizer(ops.convert_to_tensor(weights)))
    assert float(compiled(regularizer)(ops.convert_to_tensor(weights))) == pytest.approx(plain, rel=1e-5)


@every_case
def test_configuration_survives_json(name):
    regularizer = CASES[name][0]
    config = json.loads(json.dumps(keras.regularizers.serialize(regularizer)))
    again = keras.regularizers.get(config)
    assert type(again) is type(regularizer) and again.get_config() == regularizer.get_config()


def test_a_model_with_all_of_them_trains_and_is_saved(tmp_path):
    inputs = keras.Input((6, 6, 2))
    x = inputs
    for i, regularizer in enumerate(QUICK.values()):
        x = keras.layers.Conv2D(3, 3, padding="same", kernel_regularizer=regularizer, name=f"c{i}")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    images = RNG.normal(size=(8, 6, 6, 2)).astype("float32")
    model.fit(images, np.ones((8, 3)), epochs=2, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [float(loss) for loss in again.losses] == [float(loss) for loss in model.losses]
    assert len(model.losses) == len(CASES) and min(map(float, model.losses)) > 0


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_under_every_policy(policy):
    layers = [keras.layers.Dense(4, kernel_regularizer=r, dtype=policy) for r in QUICK.values()]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    history = model.fit(np.ones((4, 4)), np.ones((4, 4)), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])


# -------------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_elastic_net_says_what_it_is_in_kerass_convention(ratio):
    ours = ElasticNet(0.7, ratio)
    weights = ops.convert_to_tensor(RNG.normal(size=(4, 5)).astype("float32"))
    assert float(ours(weights)) == pytest.approx(float(keras.regularizers.L1L2(ours.l1, ours.l2)(weights)), rel=1e-5)


def test_elastic_net_solves_scikit_learns():
    from sklearn.linear_model import ElasticNet as Theirs

    x = RNG.normal(size=(60, 5)).astype("float32")
    y = (x @ [2.0, -1.0, 0.5, 1.5, -2.0] + 3).astype("float32")
    theirs = Theirs(alpha=0.3, l1_ratio=0.4, tol=1e-10).fit(x, y)
    assert (theirs.coef_ != 0).all()  # where nothing is at the kink, a gradient method arrives
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, kernel_regularizer=ElasticNet(0.6, 0.4))])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.tile(x, (50, 1)), np.tile(y, 50), batch_size=60, epochs=3, shuffle=False, verbose=0)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(kernel[:, 0], theirs.coef_, atol=1e-4)
    assert bias[0] == pytest.approx(theirs.intercept_, abs=1e-4)


def test_hoyer_counts_what_is_not_zero_and_knows_no_scale():
    for count in (1, 3, 12):
        weights = np.zeros(12, "float32")
        weights[RNG.permutation(12)[:count]] = RNG.choice([-0.7, 0.7], count)
        for scale in (1e-14, 1.0, 1e25):  # of which float32 has no square
            assert float(Hoyer(1.0)(ops.convert_to_tensor(scale * weights))) == pytest.approx(count, rel=1e-5)
    weights = RNG.normal(size=(5, 4)).astype("float32")
    assert 1 <= float(Hoyer(1.0)(ops.convert_to_tensor(weights))) <= 20
    assert abs(float((gradient(Hoyer(1.0), weights) * weights).sum())) < 1e-4  # no slope along the weights themselves


def test_hoyer_pulls_small_weights_to_zero_and_leaves_large_ones():
    weights = np.array([0.1, -0.2, 1.0, -2.0], "float32")
    slope = gradient(Hoyer(1.0), weights) * np.sign(weights)
    # Below sum(w^2) / sum(abs(w)) = 5.05 / 3.3 = 1.53 down, above it up.
    assert (slope[:3] > 0).all() and slope[3] < 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ElasticNet(-1), ValueError, "`factor` must be a number at least 0. Received: factor=-1"),
        (lambda: ElasticNet(0.1, 1.5), ValueError, "`l1_ratio` must be a number at least 0 and at most 1"),
        (lambda: SoftOrthogonal("big"), TypeError, "`factor` must be a number"),
        (lambda: SoftOrthogonal(axis=[]), ValueError, "`axis` must be an integer or a list"),
        (lambda: SoftOrthogonal(double=1), TypeError, "`double` must be True or False"),
        (lambda: SRIP(iterations=0), ValueError, "`iterations` must be an integer at least 1"),
        (lambda: SRIP(seed=-1), ValueError, "`seed` must be an integer at least 0"),
        (lambda: SpectralNorm(axis=0.5), TypeError, "`axis` must be an integer"),
        (lambda: SpectralNorm(iterations=2.5), TypeError, "`iterations` must be an integer"),
        (lambda: Hoyer(axis="rows"), TypeError, "`axis` must be an integer"),
        (lambda: Hoyer(square=None), TypeError, "`square` must be True or False"),
    ],
)
def test_bad_arguments_fail_at_construction(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize("regularizer", [SoftOrthogonal(), SRIP(), SpectralNorm(), SRIP(axis=[0, 1])])
def test_what_is_no_matrix_is_an_error(regularizer):
    shape = (3,) if regularizer.axis == [-1] else (3, 4)
    with pytest.raises(ValueError, match=f"{type(regularizer).__name__} needs weights with at least two axes"):
        regularizer(ops.ones(shape))


def test_an_axis_that_the_weights_lack_is_named():
    for regularizer in (SoftOrthogonal(axis=2), SRIP(axis=-3), SpectralNorm(axis=[0, 5]), Hoyer(axis=2)):
        with pytest.raises(ValueError, match=r"`axis` must exist in the weights, of shape \(2, 3\)"):
            regularizer(ops.ones((2, 3)))

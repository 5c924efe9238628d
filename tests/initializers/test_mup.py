"""MuP: values and rates as the tables of the paper say, whatever the layer, the initializer and the optimizer."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers

from keras_trainkit import optimizers, transforms
from keras_trainkit.initializers import ScaledResidual, mup

RNG = np.random.default_rng(11)
# JAX computes in float32 unless told otherwise before it starts.
EXACT = {"rtol": 1e-7, "atol": 1e-9} if keras.backend.backend() == "tensorflow" else {"rtol": 1e-2, "atol": 2e-3}


def net(width, name="net", **options):
    hidden = [layers.Dense(width, "tanh", name=n, **options) for n in ("first", "second")]
    return keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(3, name="last", **options)], name=name)


def batch(samples=16):
    x = RNG.normal(size=(samples, 6))
    return x, np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2], x[:, 3]], axis=1)


def rows(model, base, **options):
    return {row.path.split("/", 1)[1]: row for row in mup(model, base, **options).rows}


# -- the tables


def test_values_and_rates_are_those_of_table_3():
    # Yang et al., table 3: variances 1, 1/n and 1/n^2 (finite dimensions are constants), rates n, 1, 1/n for SGD and
    # 1, 1/n, 1/n for Adam, each over the same at the base width.
    base, wide = 8, 40
    r = wide / base
    found = rows(net(wide, kernel_initializer="lecun_normal"), net(base, kernel_initializer="lecun_normal"))
    expected = {  # role, value now over the value of "lecun_normal" (1/sqrt(fan_in)), Adam, SGD
        "first/kernel": ("input", 1, 1, r),
        "first/bias": ("input", 1, 1, r),
        "second/kernel": ("hidden", 1, 1 / r, 1),
        "second/bias": ("input", 1, 1, r),
        "last/kernel": ("output", 1 / math.sqrt(r), 1 / r, 1 / r),
        "last/bias": ("fixed", 1, 1, 1),
    }
    for path, (role, *numbers) in expected.items():
        row = found[path]
        assert row.role == role, path
        np.testing.assert_allclose([row.initial, row.adam, row.sgd], numbers, err_msg=path)


@pytest.mark.parametrize(
    "initializer",
    ["glorot_uniform", "he_normal", "lecun_uniform", "orthogonal", "random_normal", "random_uniform"],
)
def test_the_spread_is_that_of_the_base_times_the_table(initializer):
    base, wide = 40, 320
    model = net(wide, kernel_initializer=initializer)
    mup(model, net(base, kernel_initializer=initializer))
    draw = {n: np.std(np.array(keras.initializers.get(initializer)(s))) for n, s in
            {"first": (6, base), "second": (base, base), "last": (base, 3)}.items()}  # fmt: skip
    r = wide / base
    for name, power in {"first": 0, "second": 0.5, "last": 1}.items():
        values = np.array(model.get_layer(name).kernel)
        expected = draw[name] / r**power
        # Each standard deviation of n numbers is off by at most sqrt((kurtosis - 1) / 4n) = 1 / sqrt(2n).
        error = 5 * math.sqrt(1 / (2 * values.size) + 1 / (2 * (values.size / r ** {0.5: 2}.get(power, 1))))
        assert np.std(values) == pytest.approx(expected, rel=error), name


def test_at_the_base_width_nothing_changes():
    keras.utils.set_random_seed(1)
    model = net(16)
    before = model.get_weights()
    parametrized = mup(model, net(16, "other"))
    assert {(r.role, r.initial, r.adam, r.sgd) for r in parametrized.rows} == {("fixed", 1, 1, 1)}
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_narrower_models_and_two_widths_of_their_own():
    def build(a, b):
        return keras.Sequential(
            [keras.Input((6,)), layers.Dense(a, name="x"), layers.Dense(b, name="y"), layers.Dense(3, name="z")],
            name="n",
        )

    found = rows(build(4, 48), build(8, 12))
    assert (found["y/kernel"].adam, found["y/kernel"].sgd) == (2, 8)  # in 1/2, out 4
    assert (found["z/kernel"].adam, found["x/kernel"].sgd) == (0.25, 0.5)


# -- the same function of the data as the form with multipliers


def trained(model, optimizer, x, y, steps=8):
    model.compile(optimizer, "mse")
    outputs = []
    for _ in range(steps):
        model.train_on_batch(x, y)
        outputs.append(np.array(model(x)))
    return np.array(outputs)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_it_learns_what_the_form_with_an_output_multiplier_learns(kind):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    r, width = 8.0, 64
    x, y = batch()
    ours = net(width)
    parametrized = mup(ours, net(8))
    # Table 8: the readout divides by the growth of the width; its values do not shrink, and its rates are n^2 larger
    # for SGD, n times for Adam.
    inputs = keras.Input((6,))
    h = layers.Dense(width, "tanh", name="second")(layers.Dense(width, "tanh", name="first")(inputs))
    theirs = keras.Model(inputs, layers.Dense(3, name="last")(layers.Rescaling(1 / r)(h)))
    theirs.set_weights([w * (r if w.shape == (width, 3) else 1) for w in ours.get_weights()])
    make = {
        "sgd": lambda **o: optimizers.SGD(0.02, momentum=0.9, **o),
        "adam": lambda **o: optimizers.Adam(1e-2, epsilon=1e-30, **o),
    }[kind]
    growing = {"sgd": [["kernel|bias", r]], "adam": []}[kind]
    factors = {
        "sgd": [["last/kernel", r], ["last/bias", 1.0], ["second/kernel", 1.0], *growing],
        "adam": [["last", 1.0], ["second/kernel", 1 / r], ["bias", 1.0], ["first", 1.0]],
    }[kind]
    expected = trained(theirs, make(after=[transforms.ScaleByPath(factors)]), x, y)
    found = trained(ours, parametrized.optimizer(make()), x, y)
    assert np.abs(expected[-1] - expected[0]).max() > 0.1
    np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_attention_learns_what_one_over_the_head_size_learns(kind):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    r, width, heads = 4.0, 32, 2
    share = 1 / math.sqrt(r)  # 1/d is 1/sqrt(d) times this, but for a constant of the base model

    def build(width, before_query=1.0):
        inputs = keras.Input((5, 6))
        h = layers.Dense(width, name="in")(inputs)
        attention = layers.MultiHeadAttention(heads, width // heads, use_bias=False, name="attention")
        h = attention(layers.Rescaling(before_query)(h), h)
        return keras.Model(inputs, layers.Dense(3, name="out")(h))

    x, y = RNG.normal(size=(4, 5, 6)), RNG.normal(size=(4, 5, 3))
    ours, theirs = build(width), build(width, before_query=share)
    parametrized = mup(ours, build(8))
    names = [v.path for v in ours.trainable_variables]
    theirs.set_weights([w / (share if "query" in n else 1) for w, n in zip(ours.get_weights(), names, strict=True)])
    make = {"sgd": lambda **o: optimizers.SGD(0.05, **o), "adam": lambda **o: optimizers.Adam(3e-3, epsilon=1e-30, **o)}
    hidden = {"sgd": 1.0, "adam": 1 / r}[kind]
    rest = [[f"^{n}$", f] for n, f in parametrized.factors(kind).items() if "query" not in n]
    expected = trained(theirs, make[kind](after=[transforms.ScaleByPath([["query", hidden], *rest])]), x, y)
    found = trained(ours, parametrized.optimizer(make[kind]()), x, y)
    assert np.abs(expected[-1] - expected[0]).max() > 0.05
    np.testing.assert_allclose(found, expected, **EXACT)


# -- which axes are which


def transposed(width):
    parts = [layers.Conv2DTranspose(width, 3, name="up"), layers.Conv2DTranspose(2 * width, 3, name="more")]
    return keras.Sequential([keras.Input((4, 4, 2)), *parts, layers.Conv2DTranspose(2, 3, name="out")], name="n")


def separable(width):
    parts = [layers.Conv1D(width, 3, name="conv"), layers.SeparableConv1D(width, 3, name="separable")]
    return keras.Sequential([keras.Input((9, 2)), *parts, layers.DepthwiseConv1D(3, name="depthwise")], name="n")


def recurrent(width):
    parts = [
        layers.Embedding(11, width, name="embed"),
        layers.GRU(width, name="gru"),
        layers.LayerNormalization(name="norm"),
    ]
    return keras.Sequential([keras.Input((7,), dtype="int32"), *parts, layers.Dense(2, name="out")], name="n")


def heads(width):
    inputs = keras.Input((5, 6))
    h = layers.EinsumDense("abx,xy->aby", (5, width), name="in")(inputs)
    grown = layers.MultiHeadAttention(width // 4, 4, name="attention")(h, h)
    return keras.Model(inputs, layers.EinsumDense("abc,cd->abd", (5, 3), name="out")(grown))


def grouped(width):
    inputs = keras.Input((5, 8))
    h = layers.Dense(width, name="in")(inputs)
    return keras.Model(inputs, layers.GroupQueryAttention(width // 2, 4, 2, name="attention")(h, h))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (transposed, {"up/kernel": (1, 4), "more/kernel": (4, 4), "more/bias": (1, 4), "out/kernel": (4, 1)}),
        (
            separable,
            {
                "conv/kernel": (1, 4),
                "separable/depthwise_kernel": (1, 4),
                "separable/pointwise_kernel": (4, 4),
                "depthwise/kernel": (1, 4),
            },
        ),
        (
            recurrent,
            {
                "embed/embeddings": (1, 4),
                "gru/gru_cell/kernel": (4, 4),
                "gru/gru_cell/recurrent_kernel": (4, 4),
                "gru/gru_cell/bias": (1, 4),
                "norm/gamma": (1, 4),
                "out/kernel": (4, 1),
            },
        ),
        (
            heads,
            {
                "in/kernel": (1, 4),
                "attention/query/kernel": (4, 4),
                "attention/query/bias": (1, 4),
                "attention/attention_output/kernel": (4, 4),
                "out/kernel": (4, 1),
            },
        ),
        (grouped, {"attention/query/kernel": (4, 4), "attention/key/kernel": (4, 4)}),
    ],
)
def test_axes_of_layers(build, expected):
    found = {row.path: row for row in mup(build(32), build(8)).rows}
    for path, grew in expected.items():
        row = next(row for name, row in found.items() if name.endswith(path))
        assert (row.grew_in, row.grew_out) == grew, path


def test_heads_of_one_size_need_nothing_and_larger_ones_do():
    assert {row.adam for row in mup(heads(32), heads(8)).rows if row.query} == {0.25, 1.0}
    query = next(row for row in mup(grouped(32), grouped(8)).rows if row.path.endswith("query/kernel"))
    assert (query.adam, query.sgd) == (0.25 / 2, 0.25)


def test_roles_may_be_given():
    found = rows(net(32), net(8), roles={"second/kernel": "input", "last/kernel": "fixed"})
    assert (found["second/kernel"].role, found["second/kernel"].sgd) == ("input", 16)
    assert (found["last/kernel"].adam, found["last/kernel"].initial) == (1, pytest.approx(math.sqrt(35 / 11)))


# -- initializers


def test_initializers_of_others_are_measured():
    make = lambda: ScaledResidual(4, "he_normal", seed=2)  # noqa: E731
    model = net(256, kernel_initializer=make())
    found = rows(model, net(32, kernel_initializer=make()))
    # The two sizes have errors of 1 / sqrt(2n), n = 32 * 3 at least.
    assert found["last/kernel"].initial == pytest.approx(1 / math.sqrt(8), rel=5 / math.sqrt(2 * 96))
    with pytest.raises(ValueError, match="`base` must be a model where values are not as"):
        mup(net(256, kernel_initializer=make()), [tuple(v.shape) for v in net(32).trainable_variables])


def test_shapes_will_do_for_a_base_model():
    shapes = [tuple(v.shape) for v in net(8).trainable_variables]
    first, second = net(32), net(32)
    assert [r.initial for r in mup(first, shapes).rows] == [r.initial for r in mup(second, net(8)).rows]


def test_zeros_stay_zeros_and_other_constants_are_refused():
    model = net(32, kernel_initializer="zeros")
    mup(model, net(8, kernel_initializer="zeros"))
    assert all(not w.any() for w in model.get_weights())
    for wrong in (keras.initializers.Constant(0.1), keras.initializers.RandomNormal(0.2, 0.1)):
        with pytest.raises(ValueError, match="must have initializers around 0"):
            mup(net(32, kernel_initializer=wrong), net(8, kernel_initializer=wrong))


# -- models of all kinds, saved, in half precision, on replicas


@keras.saving.register_keras_serializable("test_mup")
class Subclassed(keras.Model):
    """Its layers have the names that Keras numbers through."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.parts = [layers.Dense(width, "tanh"), layers.Dense(width, "tanh"), layers.Dense(3)]

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs

    def get_config(self):
        return {"width": self.width, "name": self.name}


def subclassed(width):
    model = Subclassed(width)
    model(np.zeros((1, 6), "float32"))
    return model


@pytest.mark.parametrize("build", [net, subclassed], ids=["sequential", "subclassed"])
def test_factors_survive_saving(build, tmp_path):
    x, y = batch()
    model = build(32)
    parametrized = mup(model, build(8))
    model.compile(parametrized.optimizer(optimizers.Adam(1e-2)), "mse")
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.after == model.optimizer.after
    for one in (model, loaded):
        one.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    again = type(model.optimizer).from_config(json.loads(json.dumps(model.optimizer.get_config())))
    assert again.after == model.optimizer.after


def test_frozen_layers_are_left_alone():
    model, base = net(32), net(8)
    for one in (model, base):
        one.get_layer("second").trainable = False
    before = np.array(model.get_layer("second").kernel)
    parametrized = mup(model, base)
    assert len(parametrized.rows) == 4
    np.testing.assert_array_equal(before, np.array(model.get_layer("second").kernel))


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "bfloat16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    x, y = batch()
    model = net(64)
    before = np.array(model.get_layer("last").kernel).astype("float64")
    parametrized = mup(model, net(8))
    after = np.array(model.get_layer("last").kernel).astype("float64")
    row = next(r for r in parametrized.rows if r.path == "net/last/kernel")
    np.testing.assert_allclose(
        after, before * row.initial, rtol=1e-6 if policy == "mixed_float16" else 2**-8, atol=1e-7
    )
    assert keras.backend.standardize_dtype(model.get_layer("last").kernel.dtype) == model.dtype_policy.variable_dtype
    if policy == "mixed_float16":
        model.compile(parametrized.optimizer(optimizers.Adam(1e-2)), "mse")
        losses = model.fit(x, y, epochs=12, verbose=0).history["loss"]
        assert losses[-1] < 0.8 * losses[0]


@pytest.mark.tensorflow
def test_two_replicas_learn_what_one_does(two_replicas):
    x, y = batch(32)

    def train():
        keras.utils.set_random_seed(3)
        model = net(32)
        model.compile(mup(model, net(8)).optimizer(optimizers.SGD(0.1, momentum=0.9)), "mse")
        model.fit(x.astype("float32"), y.astype("float32"), epochs=3, verbose=0, shuffle=False)
        return model.get_weights()

    alone = train()
    with two_replicas.scope():
        together = train()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


# -- errors


def deep(width):
    return keras.Sequential([keras.Input((6,)), layers.Dense(width), layers.Dense(3)])


def emptied(model):
    model.set_weights([0 * w for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: mup(net(16), deep(8)), ValueError, "4 trainable variables and 6"),
        (lambda: mup(net(16), [(6, 8)] * 6), ValueError, "variable 1 is `bias` \\(6, 8\\) in the base"),
        (lambda: mup(net(16), "base"), TypeError, "`base` must be a built model or a list of shapes"),
        (lambda: mup("model", net(8)), TypeError, "`model` must be a Keras model"),
        (lambda: mup(keras.Sequential([layers.Dense(3)]), net(8)), ValueError, "`model` must be built"),
        (lambda: mup(net(16), net(8), roles={"kernel": "inputs"}), ValueError, "Did you mean 'input'"),
        (lambda: mup(net(16), net(8), roles={"kernels": "input"}), ValueError, "takes no variable"),
        (lambda: mup(net(16), net(8)).factors("lion"), ValueError, "`rule` must be one of 'adam', 'sgd'"),
        (lambda: mup(emptied(net(16)), net(8)), ValueError, "`base` and `model` must begin alike"),
    ],
)  # fmt: skip
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_model_is_rescaled_once():
    model = net(16)
    first = mup(model, net(8))
    with pytest.raises(ValueError, match="`model` must be fresh"):
        mup(model, net(8))
    again = mup(model, net(8), rescale=False)
    assert again.factors("adam") == first.factors("adam") and {row.initial for row in again.rows} == {1.0}


@pytest.mark.skipif(not hasattr(keras.layers, "ReversibleEmbedding"), reason="this Keras has no such layer")
def test_tied_embeddings_need_a_role():
    class Language(keras.Model):
        def __init__(self, width, growth, tied):
            super().__init__()
            self.embed = layers.ReversibleEmbedding(11, width, tie_weights=tied)
            self.smaller = layers.Rescaling(1 / growth)

        def call(self, inputs):
            return self.embed(self.smaller(self.embed(inputs)), reverse=True)

    def build(width, tied=True):
        model = Language(width, width / 8, tied)
        model(np.zeros((1, 4), "int32"))
        return model

    with pytest.raises(ValueError, match="is both an input and an output"):
        mup(build(32), build(8))
    (row,) = mup(build(32), build(8), roles={"embeddings": "input"}).rows
    assert (row.role, row.initial, row.adam, row.sgd) == ("input", 1, 1, 4)
    assert [r.role for r in mup(build(32, False), build(8, False)).rows] == ["input", "output"]

"""Unit variance at every layer, measured from outside; what else stays; which layers, data and errors."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_trainkit.initializers import lsuv

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 5.0, size=(512, 10, 10, 3)).astype("float32")
FRESH = RNG.normal(3.0, 5.0, size=(512, 10, 10, 3)).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def zoo():
    """Every kind of linear layer, activations apart, so that each output can be read."""
    inputs = keras.Input((10, 10, 3))
    x = layers.Conv2D(8, 3, name="plain")(inputs)
    x = layers.BatchNormalization()(layers.Activation("relu")(x))
    x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped")(x)
    x = layers.Activation("tanh")(x)
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    x = layers.SeparableConv2D(12, 3, depth_multiplier=2, name="separable")(layers.Activation("relu")(x))
    x = layers.Conv2DTranspose(6, 3, strides=2, name="transposed")(layers.Activation("relu")(x))
    x = layers.Dropout(0.5, seed=1)(x)
    x = layers.Reshape((169, 6))(x)[:, :20]
    x = layers.Conv1D(8, 2, name="one")(x)
    x = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", name="einsum")(layers.Activation("gelu")(x))
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(5, name="last")(layers.Activation("relu")(x)))


NAMES = ["plain", "grouped", "depthwise", "separable", "transposed", "one", "einsum", "attention", "last"]


def outputs(model, x):
    found = keras.Model(model.input, [model.get_layer(name).output for name in NAMES])(x)
    return dict(zip(NAMES, [numpy(out).astype("float64") for out in found], strict=True))


@pytest.fixture(scope="module")
def done():
    keras.utils.set_random_seed(0)
    model = zoo()
    return model, lsuv(model, X, batch_size=512, tolerance=0.01, seed=1)


def test_every_layer_has_unit_variance(done):
    model, _ = done
    for name, values in outputs(model, X).items():
        assert np.var(values) == pytest.approx(1, abs=0.0101), name


def test_fresh_data_have_it_up_to_the_error_of_a_sample(done):
    model, _ = done
    first, fresh = outputs(model, X), outputs(model, FRESH)
    for name, values in fresh.items():
        # The variance is a mean over samples of squares about the mean; two samples of 512 differ by their errors.
        errors = []
        for each in (first[name], values):
            squares = np.square(each - each.mean()).reshape(len(each), -1).mean(axis=1)
            errors.append(squares.std() / np.sqrt(len(each)))
        assert abs(np.var(values) - 1) < 0.01 + 5 * np.hypot(*errors), name


def test_the_table_tells_it(done):
    _, result = done
    text = str(result)
    assert text.startswith("lsuv: 13 variables") and repr(result) == text
    rows = {row.path: row for row in result.variables}
    paths = list(rows)
    assert [path.split("/")[-2] for path in paths[-6:]] == [
        "einsum",
        "query",
        "key",
        "value",
        "attention_output",
        "last",
    ]
    measured = [row for row in rows.values() if row.variance is not None]
    assert len(measured) == 12 and all(abs(row.variance - 1) <= 0.01 for row in measured)
    assert rows["separable/depthwise_kernel"].variance is None
    # Columns of norm 1, once divided by the root of the variance they gave.
    columns = numpy(done[0].get_layer("plain").kernel).reshape(27, 8)
    np.testing.assert_allclose(np.square(columns).sum(axis=0), 1 / rows["plain/kernel"].variance_before, rtol=1e-5)
    assert all(row.iterations in (0, 1) for row in measured)
    assert result.notes == []


def test_kernels_are_orthonormal_but_for_the_scale(done):
    model, _ = done

    def gram(matrix):
        product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        return product / product[0, 0]

    matrices = {
        "plain": [numpy(model.get_layer("plain").kernel).reshape(27, 8)],
        "grouped": np.split(numpy(model.get_layer("grouped").kernel).reshape(36, 8), 2, axis=1),
        "pointwise": [numpy(model.get_layer("separable").pointwise_kernel)[0, 0]],
        "transposed": [numpy(model.get_layer("transposed").kernel).transpose(0, 1, 3, 2).reshape(-1, 6)],
        "query": [numpy(model.get_layer("attention").query_dense.kernel).reshape(8, 8)],
        "output": [numpy(model.get_layer("attention").output_dense.kernel).reshape(8, 8)],
        "depthwise": [numpy(model.get_layer("separable").depthwise_kernel)[:, :, i].reshape(9, 2) for i in range(8)],
    }
    for name, each in matrices.items():
        for matrix in each:
            found = gram(matrix)
            np.testing.assert_allclose(found, np.eye(len(found)), atol=1e-5, err_msg=name)


def test_activations_inside_of_layers_are_looked_behind():
    def model(apart):
        x = inputs = keras.Input((6,))
        for name in "abc":
            kind = None if apart else layers.LeakyReLU(0.1) if name == "b" else "relu"
            x = layers.Dense(16, kind, name=name)(x)
            if apart:
                x = layers.LeakyReLU(0.1)(x) if name == "b" else layers.Activation("relu")(x)
        return keras.Model(inputs, x)

    data = RNG.normal(size=(200, 6)).astype("float32")
    pair = model(True), model(False)
    results = [lsuv(one, data, seed=4) for one in pair]
    for name in "abc":
        np.testing.assert_allclose(
            numpy(pair[0].get_layer(name).kernel), numpy(pair[1].get_layer(name).kernel), rtol=1e-6
        )
    assert results[0].variables == results[1].variables
    assert isinstance(pair[1].get_layer("b").activation, layers.LeakyReLU)
    np.testing.assert_allclose(numpy(pair[0](data)), numpy(pair[1](data)), rtol=1e-6)


class Backwards(keras.Model):
    """Its layers are made in the other order than they are used, and one is used twice."""

    def __init__(self):
        super().__init__()
        self.last = layers.Dense(4, name="last")
        self.twice = layers.Dense(8, name="twice")
        self.never = layers.Dense(8, name="never")
        self.first = layers.Dense(8, "tanh", name="first")

    def build(self, shape):
        self.first.build(shape)
        for layer in (self.twice, self.never, self.last):
            layer.build((None, 8))
        self.built = True

    def call(self, x, training=False):
        x = self.first(x)
        x = self.twice(x)
        return self.last(ops.relu(self.twice(ops.relu(x))))


def test_a_subclassed_model_in_the_order_of_execution():
    model = Backwards()
    data = RNG.normal(size=(300, 6)).astype("float32")
    result = lsuv(model, data, batch_size=300, seed=2)
    assert [row.path.split("/")[-2] for row in result.variables] == ["first", "twice", "last"]
    hidden = numpy(model.first(data))
    once = numpy(model.twice(hidden))
    assert np.var(once) == pytest.approx(1, abs=0.01)
    assert np.var(numpy(model(data))) == pytest.approx(1, abs=0.01)
    assert "never/kernel" in result.notes[0]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_deep_plain_net_keeps_its_signal_where_keras_defaults_lose_it(activation):
    stack = [layers.Dense(32, activation) for _ in range(40)]
    model = keras.Sequential([keras.Input((8,)), *stack, layers.Dense(3)])
    data = RNG.normal(size=(256, 8)).astype("float32")
    assert np.var(numpy(model(data))) < 0.1
    lsuv(model, data, seed=1)
    assert np.var(numpy(model(data))) == pytest.approx(1, abs=0.01)


def test_everything_else_stays():
    class Draws(layers.Layer):
        """Draws in inference, too, as a badly behaved layer may."""

        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(3)

        def call(self, x):
            return x + 0.01 * keras.random.normal(ops.shape(x), seed=self.seed)

    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5, seed=2), Draws()]
    )
    model.add(layers.Dense(2, bias_initializer="ones"))
    model.add(layers.Dense(2, trainable=False, name="frozen"))
    model.compile(keras.optimizers.Adam(), "mse")
    x = RNG.normal(size=(64, 6)).astype("float32")
    model.fit(x, np.zeros((64, 2)), verbose=0)
    kept = [v for v in [*model.variables, *model.optimizer.variables] if "kernel" not in v.path or "frozen" in v.path]
    kept += [v for v in model.optimizer.variables if "kernel" in v.path]
    before = [numpy(v) for v in kept]
    result = lsuv(model, x, seed=1)
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(numpy(variable), value, err_msg=variable.path)
    assert len(result.variables) == 2
    for layer in model.layers:
        assert "call" not in vars(layer)
    assert model.layers[0].activation is keras.activations.linear


def test_exclude_and_present_kernels():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="a"), layers.Dense(4, name="head")])
    before = numpy(model.get_layer("a").kernel), numpy(model.get_layer("head").kernel)
    x = RNG.normal(size=(64, 6)).astype("float32")
    result = lsuv(model, x, orthonormal=False, exclude=["head"])
    np.testing.assert_array_equal(numpy(model.get_layer("head").kernel), before[1])
    ratio = numpy(model.get_layer("a").kernel) / before[0]
    np.testing.assert_allclose(ratio, 1 / np.std((x @ before[0]).astype("float64")), rtol=1e-4)
    assert [row.rule for row in result.variables] == ["scaled"]
    with pytest.raises(ValueError, match="that no variable's path has. Received: 'haed'"):
        lsuv(model, x, exclude=["haed"])
    with pytest.raises(TypeError, match="`exclude` must be a list"):
        lsuv(model, x, exclude="head")


def test_seeds_repeat():
    def kernels(seed):
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(8)])
        lsuv(model, X[:, 0, 0], seed=seed)
        return numpy(model.layers[0].kernel)

    first = kernels(1)
    np.testing.assert_array_equal(first, kernels(1))
    assert not np.array_equal(first, kernels(2))
    np.testing.assert_array_equal(kernels(None), kernels(None))  # as in Keras, from `set_random_seed`


def test_an_output_that_does_not_vary_is_an_error_and_changes_nothing():
    x = inputs = keras.Input((6,))
    x = layers.Dense(8, name="first")(x)
    x = layers.Dense(8, name="middle")(0.0 * x)
    model = keras.Model(inputs, x)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"'middle' \(middle/kernel\) has the variance 0.0"):
        lsuv(model, RNG.normal(size=(64, 6)))
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    with pytest.raises(ValueError, match="variance nan"):
        lsuv(model, np.full((64, 6), np.nan))
    with pytest.raises(ValueError, match="at least one batch"):
        lsuv(model, iter([]))


def test_biases_that_vary_too_much_are_told():
    wild = keras.initializers.RandomNormal(stddev=5.0, seed=1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, bias_initializer=wild)])
    with pytest.warns(UserWarning, match="after 4 iterations the variance is not within 0.01 of 1"):
        result = lsuv(model, RNG.normal(size=(64, 6)), max_iterations=4)
    assert result.variables[0].iterations == 4
    mild = keras.initializers.RandomNormal(stddev=0.5, seed=1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, bias_initializer=mild)])
    result = lsuv(model, 9 * RNG.normal(size=(64, 6)))
    assert result.variables[0].iterations > 1 and abs(result.variables[0].variance - 1) <= 0.01


def test_masked_positions_do_not_count():
    x = RNG.normal(2.0, 1.0, size=(64, 5, 3)).astype("float32")
    x[:, 3:] = 0.0
    model = keras.Sequential([keras.Input((5, 3)), layers.Masking(0.0), layers.Dense(4)])
    lsuv(model, x)
    assert np.var(numpy(model(x))[:, :3]) == pytest.approx(1, abs=0.01)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[32 * index : 32 * index + 32], np.zeros((32, 5))


@pytest.mark.parametrize("kind", ["dataset", "sequence", "generator", "dictionary", "list"])
def test_kinds_of_data(kind):
    inputs = keras.Input((10, 10, 3), name="x")
    core = layers.Dense(4)(layers.Conv2D(4, 3)(inputs))
    wrapped = {"x": inputs} if kind == "dictionary" else [inputs] if kind == "list" else inputs
    model, same = keras.Model(wrapped, core), keras.Model(inputs, core)
    if kind == "dataset":
        tensorflow = pytest.importorskip("tensorflow")
        data = tensorflow.data.Dataset.from_tensor_slices((X, np.zeros((512, 5)))).batch(32)
    elif kind == "generator":
        data = ((X[i : i + 32], np.zeros((32, 5))) for i in range(0, 512, 32))
    else:
        data = {"sequence": Sequence(), "dictionary": {"x": X}, "list": [X]}[kind]
    found = lsuv(model, data, batch_size=32, seed=1)
    assert found.variables == lsuv(same, X, batch_size=32, seed=1).variables


def test_layers_that_are_no_linear_maps_are_named():
    model = keras.Sequential([keras.Input((5,)), layers.Embedding(9, 4, name="words"), layers.LSTM(6, name="memory")])
    model.add(layers.Dense(3))
    result = lsuv(model, RNG.integers(0, 9, size=(64, 5)))
    assert len(result.variables) == 1
    assert result.notes[0].startswith("Left as they are: ")
    assert "words/embeddings" in result.notes[0] and "memory" in result.notes[0]


@pytest.mark.tensorflow
def test_what_runs_in_a_traced_loop_is_left():
    model = keras.Sequential([keras.Input((5, 4)), layers.TimeDistributed(layers.Dense(3)), layers.Dense(2)])
    inner = model.layers[0].layer
    before = numpy(inner.kernel)
    result = lsuv(model, RNG.normal(size=(64, 5, 4)).astype("float32"))
    if len(result.variables) == 1:
        np.testing.assert_array_equal(numpy(inner.kernel), before)
        assert inner.kernel.path in result.notes[0]
    assert np.var(numpy(model(RNG.normal(size=(2000, 5, 4)).astype("float32")))) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_in_low_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((8,)), *[layers.Dense(16, "relu") for _ in range(4)]])
    result = lsuv(model, RNG.normal(size=(256, 8)).astype("float32"), tolerance=0.05)
    assert all(abs(row.variance - 1) <= 0.05 for row in result.variables)


@pytest.mark.tensorflow
def test_on_two_replicas(two_replicas):
    x = RNG.normal(size=(64, 6)).astype("float32")
    with two_replicas.scope():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3)])
    lsuv(model, x)
    for copy in two_replicas.experimental_local_results(model.layers[1].kernel.value):
        assert np.var(numpy(model.layers[0](x)) @ copy.numpy()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"tolerance": 0}, "Received: tolerance=0"),
        ({"max_iterations": 0}, "Received: max_iterations=0"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        lsuv(keras.Sequential([keras.Input((6,)), layers.Dense(8)]), X[:, 0, 0], **arguments)

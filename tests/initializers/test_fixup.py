"""The papers' rules by the numbers, what they are for, and which layers are found."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_trainkit.initializers import fixup, t_fixup
from keras_trainkit.layers import ScalarAffine

RNG = np.random.default_rng(0)
WIDTH = 32


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def residual(depth, kernels=2, width=WIDTH):
    """A residual perceptron without normalization; its blocks are called block_0, block_1 ... and have no biases."""
    inputs = keras.Input((8,))
    x = layers.Dense(width, name="stem")(inputs)
    for block in range(depth):
        branch = x
        for i in range(kernels):
            branch = layers.Activation("relu")(branch) if i else branch
            branch = layers.Dense(width, use_bias=False, name=f"block_{block}_{i}")(branch)
        x = layers.Add()([x, branch])
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def he(model):
    for seed, layer in enumerate(model.layers):
        if isinstance(layer, layers.Dense):
            layer.kernel.assign(keras.initializers.HeNormal(seed)(layer.kernel.shape))


def batch():
    return RNG.normal(size=(64, 8)).astype("float32"), RNG.normal(size=(64, 3)).astype("float32")


# -- Fixup


@pytest.mark.parametrize(("depth", "kernels"), [(4, 1), (16, 2), (9, 3)])
def test_deviations_are_those_of_the_paper(depth, kernels):
    model = residual(depth, kernels, width=64)
    result = fixup(model, r"block_\d+", seed=1)
    found = {row.path: row for row in result.variables}
    assert found["head/kernel"].stddev == 0
    # He: sqrt(2 / 8) of the 512 values of the stem; 5 standard errors of 1 / sqrt(2 * 512) each.
    assert found["stem/kernel"].stddev == pytest.approx(0.5, rel=5 / np.sqrt(1024))
    for block in range(depth):
        for i in range(kernels):
            expected = np.sqrt(2 / 64) * depth ** (-1 / (2 * kernels - 2)) if i < kernels - 1 else 0
            assert found[f"block_{block}_{i}/kernel"].stddev == pytest.approx(expected, rel=5 / np.sqrt(2 * 4096))
    assert str(result).count("zero") == depth + 1 and "third rule is left out" in result.notes[0]


def same_ends(model, names=("stem", "head")):
    """Gives the layers around the blocks the same weights in models of all depths."""
    random = np.random.default_rng(7)
    for name in names:
        (weights,) = [w for w in model.get_layer(name).weights if len(w.shape) == 2]
        weights.assign(random.normal(0, float(np.std(numpy(weights))), weights.shape))


def moved(model, rate=1e-4, trained="block"):
    """How far one step of gradient descent moves the outputs, over its learning rate, the branches alone trained."""
    for layer in model.layers:
        layer.trainable = trained in layer.name
    x, y = batch()
    before = numpy(model(x)).astype("float64")
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    model.train_on_batch(x, y)
    return np.linalg.norm(numpy(model(x)) - before) / rate


@pytest.mark.parametrize("kernels", [2, 3])
def test_a_step_moves_the_output_as_far_at_any_depth(kernels):
    """Theorem of the paper's section 3: each branch moves it by 1/L. Only with the exponent that belongs to m."""
    distances = {}
    for depth in (4, 32):
        model = residual(depth, kernels)
        fixup(model, r"block_\d+", head=None, seed=1)
        same_ends(model)
        distances[depth] = moved(model)
    # A wrong exponent would be off by 8 or its root at least. The rest is the luck of the draw.
    assert 0.6 < distances[32] / distances[4] < 1.6


def test_plain_he_blows_up_where_fixup_does_not():
    x, _ = batch()
    plain, fixed = residual(30), residual(30)
    he(plain)
    # The variance of the stream about doubles in each block.
    assert np.var(numpy(plain(x))) > 1e6
    fixup(fixed, r"block_\d+", seed=1)
    assert np.abs(numpy(fixed(x))).max() == 0


@pytest.mark.parametrize("fixed", [True, False])
def test_a_deep_net_learns_without_normalization(fixed):
    model = residual(24, width=16)
    if fixed:
        fixup(model, r"block_\d+", seed=1)
    else:
        he(model)
    x, _ = batch()
    y = np.tanh(x[:, :3])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    first = float(model.train_on_batch(x, y))
    for _ in range(24):
        model.reset_metrics()  # older versions of Keras return the mean of all batches so far
        last = float(model.train_on_batch(x, y))
    assert last < 0.2 * first if fixed else not last < 1


def test_lists_of_layers_names_and_patterns_are_the_same():
    def weights(make):
        model = residual(3)
        fixup(model, make(model), seed=4)
        return model.get_weights()

    first = weights(lambda model: r"block_\d+")
    others = [
        lambda model: r"block_(\d+)_\d",
        lambda model: [[f"block_{b}_0", f"block_{b}_1"] for b in range(3)],
        lambda model: [[model.get_layer(f"block_{b}_0"), model.get_layer(f"block_{b}_1")] for b in range(3)],
    ]
    for make in others:
        for one, other in zip(first, weights(make), strict=True):
            np.testing.assert_array_equal(one, other)


class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.SeparableConv2D(6, 3, padding="same", activation="relu", name="first")
        self.second = layers.Conv2D(6, 3, padding="same", name="second")
        self.out = ScalarAffine(use_bias=False)

    def build(self, shape):
        for layer in (self.first, self.second, self.out):
            layer.build(shape)
        self.built = True

    def call(self, x):
        return x + self.out(self.second(self.first(x)))


@pytest.mark.parametrize("by", ["layers", "pattern"])
def test_composite_blocks_and_fans_of_all_kinds(by):
    blocks = [Block(name=f"block_{i}") for i in range(4)]
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(6, 3), layers.DepthwiseConv2D(3), *blocks])
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(2))
    blocks[0].out.scale.assign(7.0)
    blocks[0].second.bias.assign(np.ones(6))
    result = fixup(model, [[block] for block in blocks] if by == "layers" else r"block_\d+", seed=1)
    rules = [(row.path.split("block_2/")[1], row.rule) for row in result.variables if "block_2" in row.path]
    # Three kernels: 4^(-1 / (2 * 3 - 2)).
    assert rules == [
        ("first/depthwise_kernel", "branch 3 of 4: normal * 0.7071"),
        ("first/pointwise_kernel", "branch 3 of 4: normal * 0.7071"),
        ("second/kernel", "branch 3 of 4: zero"),
        ("scalar_affine_2/scale", "the identity"),
    ]
    assert result.notes == [] and float(blocks[0].out.scale) == 1 and not numpy(blocks[0].second.bias).any()
    # 9 numbers enter one output of a depthwise convolution; Keras's he_normal counts 54. 54 draws.
    assert np.std(numpy(model.layers[1].kernel)) == pytest.approx(np.sqrt(2 / 9), rel=5 / np.sqrt(108))


def test_frozen_layers_and_embeddings_stay():
    model = keras.Sequential([keras.Input((4,)), layers.Embedding(5, 3), layers.Dense(3, name="a"), layers.Dense(3)])
    model.add(layers.BatchNormalization())
    model.layers[0].embeddings.assign(np.ones((5, 3)))
    model.get_layer("a").trainable = False
    before = numpy(model.get_layer("a").kernel)
    result = fixup(model, [[model.layers[2]]])
    assert len(result.variables) == 1
    assert "Made for models without normalization" in result.notes[0] and "embeddings" in result.notes[-1]
    np.testing.assert_array_equal(numpy(model.get_layer("a").kernel), before)
    np.testing.assert_array_equal(numpy(model.layers[0].embeddings), 1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"branches": r"blok_\d+"}, ValueError, "must be found in the path of a kernel: stem/kernel"),
        ({"branches": "("}, ValueError, "must be a regular expression"),
        ({"branches": []}, TypeError, "list of lists of layers"),
        ({"branches": ["block_0_0"]}, TypeError, "must hold lists of layers. Received: 'block_0_0'"),
        ({"branches": [["nowhere"]]}, ValueError, "Received: 'nowhere'"),
        ({"branches": [["add"]]}, ValueError, "branch 0 without"),
        ({"branches": [["block_0_0"], ["block_0_0"]]}, ValueError, "block_0_0/kernel twice"),
        ({"branches": "block", "head": "tail"}, ValueError, "Received: head='tail'"),
        ({"branches": "block", "gain": 0}, ValueError, "Received: gain=0"),
    ],
)
def test_errors_come_before_any_change(arguments, error, words):
    model = residual(2)
    before = model.get_weights()
    with pytest.raises(error, match=words):
        fixup(model, **arguments)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


# -- T-Fixup


def transformer(blocks, decoder_blocks=0, size=16, words=12, biases=True):
    def block(x, name, memory=None):
        x = x + layers.MultiHeadAttention(2, 8, use_bias=biases, name=f"{name}_self")(x, x)
        if memory is not None:
            x = x + layers.MultiHeadAttention(2, 8, use_bias=biases, name=f"{name}_cross")(x, memory)
        up = layers.Dense(24, "relu", use_bias=biases, name=f"{name}_up")(x)
        return x + layers.Dense(size, use_bias=biases, name=f"{name}_down")(up)

    inputs = [keras.Input((5,), dtype="int32")]
    x = layers.Embedding(words, size, name="words")(inputs[0])
    for i in range(blocks):
        x = block(x, f"encoder_{i}")
    if decoder_blocks:
        memory = x
        inputs.append(keras.Input((5,), dtype="int32"))
        x = layers.Embedding(words, size, name="decoder_words")(inputs[1])
        for i in range(decoder_blocks):
            x = block(x, f"decoder_{i}", memory)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def test_an_encoder_by_the_papers_rules():
    model = transformer(5, size=64)
    result = t_fixup(model, seed=1)
    found = {row.path: row for row in result.variables}
    scale = 0.67 * 5**-0.25

    def near(path, expected, count):
        assert found[path].stddev == pytest.approx(expected, rel=5 / np.sqrt(2 * count))

    for i in range(5):
        attention, xavier = f"encoder_{i}_self", np.sqrt(2 / (64 + 16))
        for part, factor in (("query", 1), ("key", 1), ("value", scale), ("attention_output", scale)):
            near(f"{attention}/{part}/kernel", factor * xavier, 1024)
        near(f"encoder_{i}_up/kernel", scale * np.sqrt(2 / 88), 64 * 24)
        near(f"encoder_{i}_down/kernel", scale * np.sqrt(2 / 88), 64 * 24)
    near("head/kernel", np.sqrt(2 / 67), 192)
    near("words/embeddings", 45**-0.25 / 8, 12 * 64)
    assert len(found) == 5 * 6 + 2 and result.notes == []
    # Uniform values end at sqrt(3) standard deviations.
    assert np.abs(numpy(model.get_layer("head").kernel)).max() < np.sqrt(6 / 67)


def test_a_decoder_with_cross_attention():
    model = transformer(2, decoder_blocks=3)
    found = {row.path: row.rule for row in t_fixup(model, decoder="decoder", seed=1).variables}
    encoder, decoder = f"Xavier * {0.67 * 2**-0.25:.4g}", f"Xavier * {27**-0.25:.4g}"
    assert found["encoder_1_self/value/kernel"] == found["encoder_1_up/kernel"] == encoder
    for name in ("decoder_2_self/value", "decoder_0_cross/attention_output", "decoder_1_down"):
        assert found[f"{name}/kernel"] == decoder
    assert found["words/embeddings"] == f"normal * {18**-0.25:.4g}"
    assert found["decoder_words/embeddings"] == f"normal * {27**-0.25:.4g}"
    assert found["decoder_0_cross/query/kernel"] == found["head/kernel"] == "Xavier"


@pytest.mark.parametrize("scaled", [True, False])
def test_a_step_moves_a_transformer_as_far_at_any_depth(scaled):
    distances = {}
    for blocks in (1, 8):
        model = transformer(blocks, biases=False)
        t_fixup(model, seed=1)
        same_ends(model, ["words", "head"])
        if not scaled:
            for layer in model.layers:
                if layer.name.startswith("encoder"):
                    for variable in layer.trainable_variables:
                        if "query" not in variable.path and "key" not in variable.path:
                            variable.assign(variable / (0.67 * blocks**-0.25))
            model.get_layer("words").embeddings.assign(RNG.normal(0, 0.25, size=(12, 16)))  # 1 / sqrt(16)
        for layer in model.layers:
            layer.trainable = layer.name.startswith("encoder")
        ids, y = RNG.integers(0, 12, size=(32, 5)), RNG.normal(size=(32, 5, 3)).astype("float32")
        before = numpy(model(ids)).astype("float64")
        model.compile(keras.optimizers.SGD(1e-4), "mse", run_eagerly=True)
        model.train_on_batch(ids, y)
        distances[blocks] = np.linalg.norm(numpy(model(ids)) - before)
    ratio = distances[8] / distances[1]
    assert 0.2 < ratio < 3 if scaled else ratio > 100


def test_patterns_of_t_fixup():
    model = transformer(2)
    found = {row.path: row.rule for row in t_fixup(model, feed_forward="_up", head=None, seed=1).variables}
    assert (
        found["encoder_0_up/kernel"] != "Xavier" and found["encoder_0_down/kernel"] == found["head/kernel"] == "Xavier"
    )
    found = {row.path: row.rule for row in t_fixup(model, head=None, seed=1).variables}
    assert found["head/kernel"] == found["encoder_0_down/kernel"] != "Xavier"
    found = {row.path: row.rule for row in t_fixup(model, head="_down", seed=1).variables}
    assert found["encoder_0_down/kernel"] == "Xavier" != found["head/kernel"]
    normalized = keras.Model(model.input, layers.LayerNormalization(name="norm")(model.output))
    assert "there is norm" in t_fixup(normalized).notes[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decoder": "decodr"}, "found in 0 of"),
        ({"decoder": "encoder_0"}, "found in 1 of"),
        ({"feed_forward": "mlp"}, "Received: feed_forward='mlp'"),
        ({"head": "tail"}, "Received: head='tail'"),
        ({"head": "("}, "must be a regular expression"),
    ],
)
def test_errors_of_t_fixup_come_before_any_change(arguments, words):
    model = transformer(1)
    before = model.get_weights()
    with pytest.raises(ValueError, match=words):
        t_fixup(model, **arguments)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_each_asks_for_the_other():
    with pytest.raises(ValueError, match="must have MultiHeadAttention"):
        t_fixup(residual(1))
    with pytest.raises(ValueError, match="`t_fixup` is for that"):
        fixup(transformer(1), [["encoder_0_self"]])

"""The coordinate check: what it measures is what a plain loop measures, and MuP passes where nothing else does."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from keras_trainkit import optimizers
from keras_trainkit.initializers import CoordinateCheck, coordinate_check, mup, plot_coordinate_checks

RNG = np.random.default_rng(5)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(width):
    hidden = [layers.Dense(width, "relu", kernel_initializer="he_normal", name=f"hidden_{i}") for i in range(3)]
    return keras.Sequential([keras.Input((16,)), *hidden, layers.Dense(5, kernel_initializer="zeros", name="output")])


def numbers():
    return RNG.normal(size=(64, 16)).astype("float32"), RNG.integers(0, 5, size=64)


def convolutional(width):
    options = {"padding": "same", "kernel_initializer": "he_normal"}
    parts = [
        *[layers.Conv2D(width, 3, name="conv_0", **options), layers.ReLU()],
        layers.DepthwiseConv2D(3, name="depthwise", padding="same"),
        *[layers.Conv2D(2 * width, 3, strides=2, use_bias=False, name="conv_1", **options)],
        *[layers.BatchNormalization(name="norm"), layers.ReLU(), layers.GlobalAveragePooling2D()],
    ]
    return keras.Sequential(
        [keras.Input((6, 6, 3)), *parts, layers.Dense(5, kernel_initializer="zeros", name="output")]
    )


def images():
    return RNG.normal(size=(32, 6, 6, 3)).astype("float32"), RNG.integers(0, 5, size=32)


def transformer(width):
    """A block whose heads grow."""
    inputs = keras.Input((8,), dtype="int32")
    h = layers.Embedding(20, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0))(inputs)
    n = layers.LayerNormalization()(h)
    attention = layers.MultiHeadAttention(2, width // 2, name="attention")
    h = layers.Add()([h, attention(n, n)])
    n = layers.LayerNormalization()(h)
    h = layers.Add()([h, layers.Dense(width, name="down")(layers.Dense(2 * width, "gelu", name="up")(n))])
    outputs = layers.Dense(20, kernel_initializer="zeros", name="output")(layers.LayerNormalization()(h))
    return keras.Model(inputs, outputs)


def words():
    return RNG.integers(0, 20, size=(16, 8)), RNG.integers(0, 20, size=(16, 8))


# -- what is measured


def test_it_measures_what_a_plain_loop_measures():
    x, y = numbers()

    def by_hand(width, seed):
        random.seed(seed)
        model = mlp(width)
        optimizer = mup(model, mlp(8)).optimizer(optimizers.Adam(0.01))
        model.compile(optimizer, LOSS)
        inner = keras.Model(model.inputs, [layer.output for layer in model.layers])
        outputs, losses = [inner(x)], []
        for _ in range(3):
            model.reset_metrics()  # older versions of Keras return the mean of all batches so far
            losses.append(float(model.train_on_batch(x, y)))
            outputs.append(inner(x))
        values = [[np.asarray(keras.ops.convert_to_numpy(o), "float64") for o in step] for step in outputs]
        sizes = [[np.abs(v).mean() for v in step] for step in values]
        changes = [[np.abs(v - w).mean() for v, w in zip(step, values[0], strict=True)] for step in values]
        return np.array(sizes), np.array(changes), losses

    check = coordinate_check(mlp, [32, 16], optimizers.Adam(0.01), (x, y), LOSS, base=8, steps=3, seeds=2)
    assert check.widths == [16, 32] and check.sizes.shape == check.changes.shape == (4, 2, 4)
    assert [name.rpartition("/")[2] for name in check.layers] == ["hidden_0", "hidden_1", "hidden_2", "output"]
    assert check.fixed == [False, False, False, True]
    for i, width in enumerate(check.widths):
        runs = [by_hand(width, seed) for seed in range(2)]
        np.testing.assert_allclose(check.sizes[:, i], np.mean([r[0] for r in runs], axis=0).T, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(check.changes[:, i], np.mean([r[1] for r in runs], axis=0).T, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(check.losses[i], [r[2] for r in runs], rtol=1e-4)


def test_nothing_is_left_behind():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    models = []

    def build(width):
        models.append(mlp(width))
        return models[-1]

    coordinate_check(build, [8, 16], optimizers.SGD(0.1), numbers(), LOSS, steps=1, seeds=1)
    assert random.random() == expected
    assert all("call" not in vars(layer) for model in models for layer in [model, *model.layers])
    assert layers.Dense(1).name == "dense"


def test_a_function_may_bring_its_own_parametrization():
    data = numbers()

    def own(model):
        return mup(model, mlp(8)).optimizer(optimizers.SGD(0.1))

    first = coordinate_check(mlp, [8, 16], own, data, LOSS, steps=2, seeds=2)
    second = coordinate_check(mlp, [8, 16], optimizers.SGD(0.1), data, LOSS, base=8, steps=2, seeds=2)
    np.testing.assert_allclose(first.changes, second.changes, rtol=1e-5, atol=1e-8)


def made(changes, sizes=None, fixed=None, tolerance=0.25):
    changes = np.array(changes, float)[:, :, None]
    sizes = np.ones_like(changes) if sizes is None else np.array(sizes, float)[:, :, None]
    names = [f"layer {i}" for i in range(len(changes))]
    return CoordinateCheck(names, [8, 16, 32], sizes, changes, np.zeros((3, 1, 1)), fixed or [False] * 9, tolerance)


def test_slopes_and_verdicts():
    nan = float("nan")
    changes = [[1, 2, 4], [1, 1.1, 1.2], [4, 2, 1], [0, 0, 0], [1, nan, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    sizes = [[1, 1, 1]] * 5 + [[1, 2, 4], [4, 2, 1], [4, 2, 1]]
    check = made(changes, sizes, [False] * 7 + [True])
    np.testing.assert_allclose(check.slopes()[:3], [1, np.log2(1.2) / 2, -1], atol=1e-12)
    assert np.isnan(check.slopes()[3:5]).all() and check.slopes("sizes")[5] == pytest.approx(1)
    expected = ["grows", "steady", "shrinks", "does not move", "not finite", "grows", "shrinks", "steady"]
    assert check.verdicts() == expected and not check.steady
    assert str(check).splitlines()[1].split() == ["layer", "0", "1", "4", "+1.00", "+0.00", "grows"]
    assert made([[1, 1.1, 1.2]]).steady and not made([[1, 1.1, 1.2]], tolerance=0.1).steady


def test_pictures(tmp_path):
    first, second = made([[1, 2, 4], [0, 1, 2]]), made([[1, 1, 1], [1, 1, 1]])
    figure = plot_coordinate_checks({"standard": first, "MuP": second}, tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 5_000
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["standard", "MuP", "", ""]
    line, broken = figure.axes[2].get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[8, 1], [16, 2], [32, 4]])
    assert len(broken.get_xydata()) == 2  # zero has no place on a logarithmic axis
    assert len(first.plot().axes) == 2
    with pytest.raises(TypeError, match="must be a dictionary from titles to coordinate checks"):
        plot_coordinate_checks([first])


# -- MuP passes, the standard parametrization does not


def checked(build, widths, data, optimizer, base, **options):
    return coordinate_check(build, widths, optimizer, data, LOSS, base=base, **options)


@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.005), optimizers.SGD(0.1)], ids=["adam", "sgd"])
def test_small_networks(optimizer):
    data, widths = numbers(), [32, 128, 512]
    standard = checked(mlp, widths, data, optimizer, None, seeds=1, steps=3)
    ours = checked(mlp, widths, data, optimizer, 32, seeds=2, steps=3)
    assert standard.verdicts()[1:] == ["grows"] * 3, str(standard)
    assert ours.steady, str(ours)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.003), optimizers.SGD(0.1)], ids=["adam", "sgd"])
def test_from_64_to_1024(optimizer):
    data, widths = numbers(), [64, 128, 256, 512, 1024]
    standard = checked(mlp, widths, data, optimizer, None, seeds=1)
    ours = checked(mlp, widths, data, optimizer, 64)
    assert standard.slopes()[-1] > 0.4 and standard.verdicts()[-1] == "grows", str(standard)
    assert ours.steady, str(ours)
    assert np.abs(ours.slopes("sizes")[:-1]).max() < 0.1, str(ours)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.003), optimizers.SGD(0.1)], ids=["adam", "sgd"])
def test_convolutions(optimizer):
    data, widths = images(), [8, 32, 128]
    ours = checked(convolutional, widths, data, optimizer, 8, seeds=2)
    assert ours.steady, str(ours)
    if isinstance(optimizer, optimizers.Adam):
        assert not checked(convolutional, widths, data, optimizer, None, seeds=1).steady


@pytest.mark.slow
def test_attention_whose_heads_grow():
    data, widths = words(), [128, 256, 512]
    query = 2  # of the layers, in the order of their calls
    ours = checked(transformer, widths, data, optimizers.Adam(0.003), 128, seeds=1)
    assert ours.layers[query].endswith("query") and ours.steady, str(ours)
    standard = checked(transformer, widths, data, optimizers.Adam(0.003), None, seeds=1)
    assert standard.slopes()[query] > 0.75, str(standard)


# -- errors


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"widths": [8]}, ValueError, "at least two different widths"),
        ({"widths": [8, 0]}, ValueError, "`widths` must be an integer at least 1"),
        ({"optimizer": "adam"}, TypeError, "`optimizer` must be an optimizer, or a function"),
        ({"optimizer": lambda model: None}, TypeError, "`optimizer` must be an optimizer, or a function"),
        ({"build": lambda width: None}, TypeError, "`build` must return a built Keras model"),
        ({"data": 3}, TypeError, "`data` must be a pair"),
        ({"steps": 0}, ValueError, "Received: steps=0"),
        ({"tolerance": 0}, ValueError, "Received: tolerance=0"),
        ({"rule": "adam"}, ValueError, "`roles` and `rule` go with `base`"),
    ],
)
def test_bad_arguments(changed, error, words):
    given = {"build": mlp, "widths": [8, 16], "optimizer": optimizers.SGD(0.1), "data": numbers(), "loss": LOSS}
    with pytest.raises(error, match=words):
        coordinate_check(**(given | changed))


def test_models_of_other_layers_are_refused():
    def build(width):
        return keras.Sequential([keras.Input((16,)), *(layers.Dense(5) for _ in range(width // 8))])

    with pytest.raises(ValueError, match="`build` must make models of the same layers"):
        coordinate_check(build, [8, 16], optimizers.SGD(0.1), numbers(), LOSS, steps=1, seeds=1)

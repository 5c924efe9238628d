"""`r_drop`: values and gradients by hand, one trace in the seeds alone, and every way to train."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision, training
from keras_trainkit.testing.contracts import assert_close
from keras_trainkit.testing.problems import WIDEST
from keras_trainkit.training.agreement import Divergence

RNG = np.random.default_rng(62)
X, LABELS = RNG.normal(size=(12, 6)), RNG.integers(0, 3, size=12)
KERNEL = RNG.normal(size=(6, 3))
WEIGHTS = RNG.integers(0, 3, size=12).astype("float64")
CLOSE = 1e-7 if WIDEST == "float64" else 2e-5
tensorflow = pytest.mark.tensorflow


@keras.saving.register_keras_serializable("tests")
class Alternating(keras.layers.Layer):
    """Dropout that can be foretold: its passes keep the even features, then the odd ones, and so on."""

    def __init__(self, **options):
        super().__init__(**options)
        self.generator = keras.random.SeedGenerator(0)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        turn = self.generator.next(ordered=True)[1] % 2  # 0 in the first pass, 1 in the second
        kept = ops.cast(ops.equal(ops.arange(inputs.shape[-1]) % 2, ops.cast(turn, "int32")), inputs.dtype)
        return 2 * inputs * kept


# ------------------------------------------------------------------------------------------------------ NumPy twins


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def kl(p, q):
    return (p * np.log(p / q)).sum(axis=-1)


def divergence(kind, first, second):
    """The mean of the two divergences, for each sample, of two outputs in logits."""
    if kind == "categorical":
        p, q = softmax(first), softmax(second)
        return (kl(p, q) + kl(q, p)) / 2
    p, q = (np.stack([sigmoid(z), 1 - sigmoid(z)], axis=-1) for z in (first, second))
    return ((kl(p, q) + kl(q, p)) / 2).mean(axis=-1)


def losses(kind, logits):
    if kind == "categorical":
        return -np.log(softmax(logits)[np.arange(len(X)), LABELS])
    target = np.eye(3)[LABELS]
    p = sigmoid(logits)
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(axis=-1)


def objective(kernel, kind, strength, weights=1.0):
    even = np.arange(6) % 2 == 0
    first, second = (2 * X * even) @ kernel, (2 * X * ~even) @ kernel
    plain = (losses(kind, first) + losses(kind, second)) / 2
    return (weights * (plain + strength * divergence(kind, first, second))).mean()


def slope(function, w, size=1e-6):
    gradient = np.zeros_like(w)
    for place in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[place] = size
        gradient[place] = (function(w + step) - function(w - step)) / (2 * size)
    return gradient


CASES = {
    "sparse logits": ("categorical", None, lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "one-hot logits": ("categorical", None, lambda: keras.losses.CategoricalCrossentropy(from_logits=True)),
    "binary logits": ("binary", None, lambda: keras.losses.BinaryCrossentropy(from_logits=True)),
    "sparse": ("categorical", "softmax", lambda: "sparse_categorical_crossentropy"),
    "one-hot": ("categorical", "softmax", lambda: keras.losses.CategoricalCrossentropy()),
    "binary": ("binary", "sigmoid", lambda: "binary_crossentropy"),
}


def network(case="sparse logits", optimizer=None, **compiled):
    keras.config.set_floatx(WIDEST)
    keras.config.set_dtype_policy(WIDEST)
    _, activation, loss = CASES[case]
    layers = [Alternating(), keras.layers.Dense(3, activation=activation, use_bias=False)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(optimizer or optimizers.SGD(0.1), loss(), **({"jit_compile": False} | compiled))
    model.set_weights([KERNEL])
    return model


def targets(case):
    return LABELS if "sparse" in case else np.eye(3)[LABELS]


def trained(model, epochs=2, case="sparse logits", **options):
    fitted = {"batch_size": 12, "shuffle": False, "verbose": 0} | options
    history = model.fit(X, targets(case), **fitted, epochs=epochs).history
    return model.get_weights(), history


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_value_and_gradient_equal_numpy(case, weights):
    kind, factors = CASES[case][0], 1.0 if weights is None else weights
    ours, history = trained(training.r_drop(network(case), 0.7), 2, case, sample_weight=weights)
    kernel = KERNEL
    even = np.arange(6) % 2 == 0
    for step in range(2):
        apart = divergence(kind, (2 * X * even) @ kernel, (2 * X * ~even) @ kernel)
        assert history["r_drop"][step] == pytest.approx((factors * apart).mean(), rel=1e-4)
        assert history["loss"][step] == pytest.approx(objective(kernel, kind, 0.7, factors), rel=1e-4)
        kernel = kernel - 0.1 * slope(lambda w: objective(w, kind, 0.7, factors), kernel)
    np.testing.assert_allclose(ours[0], kernel, atol=3e-6 if WIDEST == "float64" else 1e-4)


@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_the_divergence_of_equal_outputs_is_zero_and_of_others_is_not(kind):
    first, second = RNG.normal(size=(2, 5, 4))
    measure = Divergence(kind, True, "sum_over_batch_size")
    assert float(measure(first, first)) == 0
    assert float(measure(first, second)) == pytest.approx(divergence(kind, first, second).mean(), rel=1e-5)
    assert float(measure(second, first)) == pytest.approx(float(measure(first, second)), rel=1e-6)
    certain = Divergence(kind, False, "sum_over_batch_size")
    assert np.isfinite(float(certain(np.eye(2), np.eye(2)[::-1])))


def test_masks_and_sums():
    # Of a sequence the positions that the mask leaves out do not count, and "sum" sums.
    first, second = RNG.normal(size=(2, 2, 3, 4)).astype("float32")
    masked = ops.convert_to_tensor(first)
    masked._keras_mask = ops.convert_to_tensor([[True, True, False], [True, False, False]])
    apart = divergence("categorical", first, second)
    measure = Divergence("categorical", True, "sum_over_batch_size")
    assert float(measure(second, masked)) == pytest.approx((apart[0, :2].sum() + apart[1, 0]) / 3, rel=1e-5)
    whole = Divergence("categorical", True, "sum")
    assert float(whole(second, first)) == pytest.approx(apart.sum(), rel=1e-5)


# ----------------------------------------------------------------------------------------------- no trace of the pass


def noisy(optimizer=None):
    keras.utils.set_random_seed(12)
    layers = [
        keras.layers.Dense(8, activity_regularizer="l2"),
        keras.layers.BatchNormalization(momentum=0.5),
        keras.layers.Dropout(0.5, seed=3),
        keras.layers.Dense(3, kernel_regularizer="l2"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or optimizers.Adam(0.05), loss, metrics=["accuracy"], jit_compile=False)
    return model


def statistics(model):
    return [ops.convert_to_numpy(v) for v in model.non_trainable_weights]


def test_statistics_move_once_and_seeds_twice():
    helped, alone = training.r_drop(noisy(optimizers.SGD(0.0)), 0.0), noisy(optimizers.SGD(0.0))
    ours, theirs = trained(helped, 1)[1], trained(alone, 1)[1]
    assert ours["accuracy"] == theirs["accuracy"]  # of the first pass
    assert ours["loss"] != theirs["loss"]
    assert_close(statistics(helped), statistics(alone), 0.0)
    trained(alone, 1)
    seeds = [[ops.convert_to_numpy(v) for v in m.variables if "seed" in v.path] for m in (helped, alone)]
    assert_close(*seeds, 0.0)


def test_losses_of_layers_count_once():
    # Without dropout both passes are one, and with them the loss.
    def model():
        keras.utils.set_random_seed(2)
        regularized = keras.layers.Dense(4, activity_regularizer="l1", kernel_regularizer="l2")
        made = keras.Sequential([keras.Input((6,)), regularized, keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(optimizers.SGD(0.1), loss, jit_compile=False)
        return made

    with pytest.warns(UserWarning, match="finds no random layer"):
        ours = trained(training.r_drop(model(), 3.0), 2)
    theirs = trained(model(), 2)
    assert_close(ours[0], theirs[0], 1e-6)
    np.testing.assert_allclose(ours[1]["loss"], theirs[1]["loss"], rtol=1e-6)
    np.testing.assert_allclose(ours[1]["r_drop"], 0, atol=1e-7)


def test_it_lowers_the_divergence():
    last = []
    for strength in (0.0, 10.0):
        model = training.r_drop(noisy(optimizers.Adam(0.02)), strength)
        last.append(np.mean(trained(model, 25)[1]["r_drop"][-10:]))
    assert last[1] < 0.5 * last[0]


def test_evaluation_saving_and_plain(tmp_path):
    model = training.r_drop(noisy(), 1.0)
    history = model.fit(X, LABELS, verbose=0, validation_data=(X, LABELS)).history
    assert sorted(history) == ["accuracy", "loss", "r_drop", "val_accuracy", "val_loss"]
    model.save(tmp_path / "m.keras")
    noisy().save(tmp_path / "alone.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_close(loaded.get_weights(), model.get_weights(), 0.0)
    assert "train_step" not in vars(loaded) and all(m.name != "r_drop" for m in loaded.metrics)
    training.plain(model)
    assert "r_drop" not in trained(model, 1)[1]


# --------------------------------------------------------------------------------------------- in every way to train


@tensorflow
def test_xla_eager_and_several_steps_equal_the_graph():
    graph = trained(training.r_drop(network(), 0.7), 3, batch_size=3)[0]
    for compiled in ({"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}):
        assert_close(trained(training.r_drop(network(**compiled), 0.7), 3, batch_size=3)[0], graph, 1e-12)


@tensorflow
def test_two_replicas_equal_one_device(two_replicas):
    ends = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            model = training.r_drop(network(optimizer=optimizers.Adam(0.02)), 0.7)
        weights, history = trained(model, 3, batch_size=4)
        ends.append([*weights, *history["r_drop"], *history["loss"]])
    assert_close(ends[1], ends[0], 1e-7)


@tensorflow
def test_mixed_precision_with_loss_scaling():
    ends = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)
        model = keras.Sequential([keras.Input((6,)), Alternating(), keras.layers.Dense(3, use_bias=False)])
        optimizer = precision.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=2.0**10)
        model.compile(optimizer, CASES["sparse logits"][2](), jit_compile=False)
        model.set_weights([KERNEL])
        ends.append(trained(training.r_drop(model, 0.7), 3)[0])
        assert int(model.optimizer.iterations) == 3
    assert_close(ends[1], ends[0], 5e-3)
    before = model.get_weights()
    model.fit(6e4 * X, LABELS, batch_size=12, verbose=0)
    assert_close(model.get_weights(), before, 0.0)
    assert int(model.optimizer.skipped_steps) == 1


def test_accumulation_sums_its_parts():
    whole = trained(training.r_drop(network(), 0.7), 2)[0]
    parts = training.r_drop(network(optimizer=optimizers.SGD(0.1, gradient_accumulation_steps=2)), 0.7)
    assert_close(trained(parts, 2, batch_size=6)[0], whole, CLOSE)


def test_either_way_around_sam():
    first = slope(lambda w: objective(w, "categorical", 0.7), KERNEL)
    moved = KERNEL + 0.2 * first / np.linalg.norm(first)
    expected = KERNEL - 0.1 * slope(lambda w: objective(w, "categorical", 0.7), moved)
    for around in (
        lambda m: training.sam(training.r_drop(m, 0.7), 0.2),
        lambda m: training.r_drop(training.sam(m, 0.2), 0.7),
    ):
        ours = trained(around(network()), 1)[0]
        np.testing.assert_allclose(ours[0], expected, atol=3e-6 if WIDEST == "float64" else 1e-4)


@tensorflow
def test_inside_of_micro_batches_and_weighed():
    whole, history = trained(training.r_drop(network(), 0.7), 2)
    ours, seen = trained(training.micro_batches(training.r_drop(network(), 0.7), 5), 2)
    assert_close(ours, whole, CLOSE)
    np.testing.assert_allclose(seen["r_drop"], history["r_drop"], rtol=1e-6)
    uneven = network(optimizer=optimizers.SGD(0.1, gradient_accumulation_steps=2))
    weighed = training.weigh_samples(training.r_drop(uneven, 0.7))
    assert_close(trained(weighed, 2, batch_size=7)[0], whole, CLOSE)


def test_with_the_jacobian_penalty_either_way():
    # Each pass has the Jacobian of the pass in which the step began, so both orders are one sum.
    one = trained(training.r_drop(training.jacobian_penalty(network(), 0.2, None), 0.7), 2)
    other = trained(training.jacobian_penalty(training.r_drop(network(), 0.7), 0.2, None), 2)
    assert_close(one[0], other[0], CLOSE)
    assert sorted(one[1]) == ["jacobian", "loss", "r_drop"]
    for name in one[1]:
        np.testing.assert_allclose(one[1][name], other[1][name], rtol=1e-5)


# ------------------------------------------------------------------------------------------------- what is refused


def test_two_outputs_and_what_they_mean():
    shared = Alternating()(inputs := keras.Input((6,)))
    model = keras.Model(inputs, {name: keras.layers.Dense(3, use_bias=False)(shared) for name in "ab"})
    each = {
        "a": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "b": keras.losses.BinaryCrossentropy(from_logits=True),
    }
    model.compile(optimizers.SGD(0.1), each, jit_compile=False)
    model.set_weights([KERNEL, KERNEL[::-1].copy()])
    training.r_drop(model, 0.7)
    y = {"a": LABELS, "b": np.eye(3)[LABELS]}
    seen = model.fit(X, y, batch_size=12, shuffle=False, verbose=0).history["r_drop"][0]
    even = np.arange(6) % 2 == 0
    expected = 0.0
    for kernel, kind in ((KERNEL, "categorical"), (KERNEL[::-1], "binary")):
        expected += divergence(kind, (2 * X * even) @ kernel, (2 * X * ~even) @ kernel).mean()
    assert seen == pytest.approx(expected, rel=1e-4)


def test_a_loss_without_a_distribution_is_refused_unless_told():
    def squared():
        model = network()
        model.compile(optimizers.SGD(0.1), "mse", jit_compile=False)
        return model

    with pytest.raises(ValueError, match="`distribution` and `from_logits` must be given.*mse"):
        trained(training.r_drop(squared()), case="one-hot")
    trained(training.r_drop(squared(), distribution="categorical", from_logits=True), case="one-hot")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "`strength` must be a number at least 0"),
        ({"distribution": "normal"}, "`distribution` must be one of 'categorical', 'binary'"),
        ({"from_logits": 1}, "`from_logits` must be True or False"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        training.r_drop(network(), **arguments)

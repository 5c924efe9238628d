"""SAM and its kin: against NumPy, without a trace of the second run, on replicas, in every way to train."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, precision, training
from keras_trainkit.testing.contracts import assert_close, fit, small_model
from keras_trainkit.testing.problems import WIDEST
from keras_trainkit.training import ascent

RNG = np.random.default_rng(31)
X, Y = RNG.normal(size=(20, 4)), RNG.normal(size=(20, 1))
CLOSE = 1e-10 if WIDEST == "float64" else 2e-5
tensorflow = pytest.mark.tensorflow


# ----------------------------------------------------------------------------------------------------- NumPy twins


def gradient(w, b):
    """Of mean squared error of a linear model with tanh units, so that the gradient has a direction of its own."""
    hidden = np.tanh(X @ w)
    error = hidden @ b - Y
    inner = (2 / len(X)) * (error @ b.T) * (1 - hidden**2)
    return [X.T @ inner, (2 / len(X)) * hidden.T @ error]


def length(arrays):
    return np.sqrt(sum((a**2).sum() for a in arrays))


def inner(first, second):
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))


def twin(steps, rate, rho, adaptive=None, alpha=0.0, look=None):
    """Algorithm 1 of each: Foret et al. 2020, Kwon et al. 2021, Zhuang et al. 2022, Liu et al. 2022."""
    weights, turn = start(), None
    for step in range(steps):
        g = gradient(*weights)
        if look and step % look[0]:
            ratio = look[1] * length(g) / length(turn)
            used = [a + ratio * v for a, v in zip(g, turn, strict=True)]
        else:
            scale = [np.abs(w) + adaptive for w in weights] if adaptive is not None else [1.0, 1.0]
            size = length([s * a for s, a in zip(scale, g, strict=True)])
            moved = [w + rho * s**2 * a / size for w, s, a in zip(weights, scale, g, strict=True)]
            used = gradient(*moved)
            if look:
                cosine = inner(g, used) / length(g) / length(used)
                turn = [u - length(used) * cosine * a / length(g) for u, a in zip(used, g, strict=True)]
            if alpha:
                share = inner(g, used) / inner(used, used)
                used = [u - alpha * (a - share * u) for u, a in zip(used, g, strict=True)]
        weights = [w - rate * u for w, u in zip(weights, used, strict=True)]
    return weights


def start():
    rng = np.random.default_rng(8)
    return [rng.normal(size=(4, 3)), rng.normal(size=(3, 1))]


def compute_wide():
    keras.config.set_floatx(WIDEST)
    keras.config.set_dtype_policy(WIDEST)


def wide_model(optimizer=None, **compiled):
    compute_wide()
    layers = [keras.layers.Dense(3, activation="tanh", use_bias=False), keras.layers.Dense(1, use_bias=False)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer or optimizers.SGD(0.1), "mse", **({"jit_compile": False} | compiled))
    model.set_weights(start())
    return model


def trained(model, epochs=20, **options):
    model.fit(X, Y, **({"batch_size": 20, "shuffle": False, "verbose": 0} | options), epochs=epochs)
    return model.get_weights()


HELPERS = {
    "sam": (lambda m: training.sam(m, 0.3), {"rho": 0.3}),
    "asam": (lambda m: training.asam(m, 0.5, eta=0.05), {"rho": 0.5, "adaptive": 0.05}),
    "gsam": (lambda m: training.gsam(m, 0.3, alpha=0.6), {"rho": 0.3, "alpha": 0.6}),
    "looksam": (lambda m: training.looksam(m, 0.3, every=3, alpha=0.7), {"rho": 0.3, "look": (3, 0.7)}),
}
every_helper = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[tensorflow] if n == "looksam" else []) for n in HELPERS]
)


@every_helper
def test_equals_numpy_for_20_steps(name):
    wrap, arguments = HELPERS[name]
    ours, theirs = trained(wrap(wide_model())), twin(20, 0.1, **arguments)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * CLOSE, atol=CLOSE)
    without = twin(20, 0.1, 0.0)
    assert max(np.abs(a - b).max() for a, b in zip(theirs, without, strict=True)) > 1e-3


@every_helper
@tensorflow
def test_xla_equals_graph_and_eager(name):
    wrap, _ = HELPERS[name]
    graph = trained(wrap(wide_model()), 7)
    assert_close(trained(wrap(wide_model(jit_compile=True)), 7), graph, 1e-12)
    assert_close(trained(wrap(wide_model(run_eagerly=True)), 7), graph, 1e-12)


def test_rho_may_be_a_schedule():
    falling = keras.optimizers.schedules.PolynomialDecay(0.4, 10, 0.0)
    ours, weights = trained(training.sam(wide_model(), falling), 10), start()
    for step in range(10):
        g = gradient(*weights)
        moved = [w + 0.4 * (1 - step / 10) * a / length(g) for w, a in zip(weights, g, strict=True)]
        weights = [w - 0.1 * u for w, u in zip(weights, gradient(*moved), strict=True)]
    assert_close(ours, weights, 1e-6 if WIDEST == "float64" else 2e-5)


# -------------------------------------------------------------------------------------------------------- the maths


def tensors(*arrays):
    return [ops.convert_to_tensor(np.asarray(a, "float32")) for a in arrays]


def test_asam_is_blind_to_the_scale_of_layers():
    # w and c w with the gradients g and g / c describe one function: the offset must scale as the weights do.
    w, g, c = RNG.normal(size=(2, 5)), RNG.normal(size=(2, 5)), np.array([[4.0], [0.1]])
    rule = ascent.AdaptiveAscent(0.5, eta=0.0)
    plain = rule.offsets(tensors(w[0], w[1]), tensors(g[0], g[1]), ["a", "b"], 0.5)
    scaled = rule.offsets(tensors(*(c * w)), tensors(*(g / c)), ["a", "b"], 0.5)
    for a, b, factor in zip(plain, scaled, (4.0, 0.1), strict=True):
        np.testing.assert_allclose(factor * ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=1e-5)
    not_adaptive = ascent.Ascent(0.5).offsets(tensors(*(c * w)), tensors(*(g / c)), ["a", "b"], 0.5)
    assert np.abs(ops.convert_to_numpy(not_adaptive[0]) - 4 * ops.convert_to_numpy(plain[0])).max() > 0.01


def test_asam_leaves_excluded_variables_unscaled():
    rule = ascent.AdaptiveAscent(0.5, eta=0.0, exclude=("bias",))
    offsets = rule.offsets(tensors([2.0], [3.0]), tensors([1.0], [1.0]), ["d/kernel", "d/bias"], 0.5)
    size = np.sqrt(2.0**2 + 1)
    np.testing.assert_allclose([float(o[0]) for o in offsets], [0.5 * 4 / size, 0.5 / size], rtol=1e-6)


def test_gsam_takes_off_what_is_across_the_second_gradient():
    first, second = tensors(RNG.normal(size=(3, 2)), RNG.normal(size=4)), tensors(RNG.normal(size=(3, 2)), np.ones(4))
    across = ascent.orthogonal(first, second)
    assert abs(float(ascent.dot(across, second))) < 1e-5
    assert float(ascent.norm(across)) > 0.5
    combined = ascent.SurrogateAscent(0.1, alpha=0.4).combined(first, second)
    # Along the second gradient nothing is lost, and the part along `across` is exactly -alpha of it.
    assert float(ascent.dot(combined, second)) == pytest.approx(float(ascent.dot(second, second)), rel=1e-5)
    assert float(ascent.dot(combined, across)) == pytest.approx(-0.4 * float(ascent.dot(across, across)), rel=1e-4)


def test_offsets_have_the_length_rho_and_zero_gradients_none():
    offsets = ascent.Ascent(0.3).offsets([], tensors([3.0, 0.0], [4.0]), [], 0.3)
    assert float(ascent.norm(offsets)) == pytest.approx(0.3, rel=1e-6)
    assert float(ascent.norm(ascent.Ascent(0.3).offsets([], tensors([0.0]), [], 0.3))) == 0.0


# ------------------------------------------------------------------------------------------------ no trace is left


def noisy_model(optimizer=None, dropout=0.5):
    keras.utils.set_random_seed(12)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dropout(dropout, seed=3),
            keras.layers.Dense(1, kernel_regularizer="l2"),
        ]
    )
    model.compile(optimizer or optimizers.Adam(0.05), "mse", metrics=["mae"], jit_compile=False)
    return model


def state(model):
    return [ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


@every_helper
def test_rho_zero_is_plain_training_bit_for_bit(name):
    arguments = {"gsam": {"alpha": 0.0}, "looksam": {"every": 1}}.get(name, {})
    helped, alone = getattr(training, name)(noisy_model(), rho=0.0, **arguments), noisy_model()
    ours = trained(helped, 3, batch_size=5)
    assert_close(ours, trained(alone, 3, batch_size=5), 0.0)
    assert_close(state(helped), state(alone), 0.0)


@every_helper
def test_statistics_metrics_and_seeds_move_once(name):
    # With a rate of 0 all that the step changes is what it changes on the side.
    helped, alone = noisy_model(optimizers.SGD(0.0)), noisy_model(optimizers.SGD(0.0))
    getattr(training, name)(helped, rho=0.5)
    results = []
    for model in (helped, alone):
        results.append(model.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0).history)
    assert results[0] == results[1]
    assert_close(state(helped)[:-1], state(alone)[:-1], 0.0)
    moving = [v for v in helped.variables if "moving_mean" in v.path]
    assert np.abs(ops.convert_to_numpy(moving[0])).max() > 1e-3


def test_both_runs_draw_the_same_masks():
    # A tiny distance gives nearly the same gradient, but with another mask it would be a wholly different one.
    helped, alone = training.sam(noisy_model(optimizers.SGD(0.1)), 1e-5), noisy_model(optimizers.SGD(0.1))
    assert_close(trained(helped, 1), trained(alone, 1), 1e-4)
    moved = max(np.abs(a - b).max() for a, b in zip(noisy_model().get_weights(), alone.get_weights(), strict=True))
    assert moved > 0.01


def test_weights_come_back_bit_for_bit():
    model = training.sam(noisy_model(optimizers.SGD(0.0)), 0.7)
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    trained(model, 2, batch_size=5)
    assert_close([ops.convert_to_numpy(v) for v in model.trainable_variables], before, 0.0)


def test_looks_at_the_moved_weights_and_not_at_others():
    tiny, large = trained(training.sam(wide_model(), 1e-6), 1), trained(training.sam(wide_model(), 1.0), 1)
    assert max(np.abs(a - b).max() for a, b in zip(tiny, large, strict=True)) > 1e-3


@tensorflow
def test_looksam_of_one_is_sam():
    sam = trained(training.sam(noisy_model(), 0.2), 3, batch_size=5)
    assert_close(trained(training.looksam(noisy_model(), 0.2, every=1), 3, batch_size=5), sam, 0.0)


# ------------------------------------------------------------------------------------------------ a user's train step


class Own(keras.Model):
    """A train step of its own, with a loss of its own, a metric before the update and a teacher behind it."""

    def __init__(self, explicit):
        super().__init__()
        self.dense = keras.layers.Dense(1, use_bias=False)
        self.teacher = self.add_weight(shape=(4, 1), initializer="zeros", trainable=False, name="teacher")
        self.seen = keras.metrics.Sum(name="seen")
        self.explicit = explicit
        self.behind = 0

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.abs(self(x, training=True) - y) ** 3)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.seen.update_state(ops.ones(()))
        if self.explicit:
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        else:
            self.optimizer.apply(gradients, self.trainable_variables)
        self.teacher.assign(0.5 * self.teacher + 0.5 * self.dense.kernel)
        self.behind += 1
        return {"value": loss, "seen": self.seen.result()}


@tensorflow
@pytest.mark.parametrize("explicit", [False, True])
def test_a_users_train_step(explicit):
    compute_wide()
    model = Own(explicit)
    model(X[:1])
    model.compile(keras.optimizers.SGD(0.05), jit_compile=False)
    weights = np.random.default_rng(2).normal(size=(4, 1))
    model.dense.set_weights([weights])
    history = training.sam(model, 0.2).fit(X, Y, batch_size=20, epochs=4, shuffle=False, verbose=0).history

    def slope(w):
        error = X @ w - Y
        return X.T @ (3 * np.abs(error) * error) / len(X)

    teacher = 0.0
    for step in range(4):
        error = X @ weights - Y
        assert history["value"][step] == pytest.approx((np.abs(error) ** 3).mean(), rel=1e-6)  # here, not at the worst
        assert history["seen"][step] == 1
        g = slope(weights)
        weights = weights - 0.05 * slope(weights + 0.2 * g / np.linalg.norm(g))
        teacher = 0.5 * teacher + 0.5 * weights
    np.testing.assert_allclose(model.dense.get_weights()[0], weights, rtol=1e-10)
    np.testing.assert_allclose(model.teacher.numpy(), teacher, rtol=1e-10)
    assert model.behind == 1  # one trace, and its end was reached in the first run only


@tensorflow
@pytest.mark.parametrize(("calls", "message"), [(0, "did not call `apply`"), (2, "calls the optimizer twice")])
def test_train_steps_that_do_not_fit_are_errors(calls, message):
    import tensorflow as tf

    class Model(Own):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self(data[0], training=True) - data[1]))
            gradients = tape.gradient(loss, self.trainable_variables)
            for _ in range(calls):
                self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    model = Model(False)
    model(X[:1])
    model.compile(optimizers.SGD(0.05))
    with pytest.raises(ValueError, match=message):
        training.sam(model).fit(X, Y, verbose=0)
    assert "apply" not in vars(model.optimizer)


# --------------------------------------------------------------------------------------------------------- replicas


def replica_model(normalized=False):
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(3)]
    if normalized:
        layers.insert(1, keras.layers.BatchNormalization())
    model = keras.Sequential([keras.Input((5,)), *layers])
    options = {"global_clipnorm": 0.5, "weight_decay": 0.01, "use_ema": True}
    model.compile(optimizers.Adam(0.02, **options), "mse", jit_compile=False)
    return model


REPLICATED = {
    "sam": lambda m, s: training.sam(m, 0.3, synchronized=s),
    "asam": lambda m, s: training.asam(m, 0.5, synchronized=s),
    "gsam": lambda m, s: training.gsam(m, 0.3, alpha=0.6, synchronized=s),
    "looksam": lambda m, s: training.looksam(m, 0.3, every=3, synchronized=s),
}


@tensorflow
@pytest.mark.parametrize("name", REPLICATED)
def test_two_replicas_equal_one_device(name, two_replicas):
    models = []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            models.append(REPLICATED[name](replica_model(), True))
    models[1].set_weights(models[0].get_weights())
    for model in models:
        fit(model, epochs=4)
    assert_close(models[1].get_weights(), models[0].get_weights(), 5e-6)
    check_replicas(models[1], two_replicas)


@tensorflow
@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_that_go_their_own_way_stay_equal(name, two_replicas):
    with two_replicas.scope():
        own, joined = [REPLICATED[name](replica_model(normalized=True), s) for s in (False, True)]
    joined.set_weights(own.get_weights())
    for model in (own, joined):
        fit(model, epochs=3)
    check_replicas(own, two_replicas)
    distance = max(np.abs(a - b).max() for a, b in zip(own.get_weights(), joined.get_weights(), strict=True))
    assert distance > 1e-4


def check_replicas(model, strategy):
    for variable in [*model.trainable_variables, *model.optimizer.variables]:
        copies = [v.numpy() for v in strategy.experimental_local_results(variable.value)]
        np.testing.assert_array_equal(copies[0], copies[1])


# ------------------------------------------------------------------------------- precision, accumulation, and saving


@tensorflow
@pytest.mark.parametrize("name", HELPERS)
def test_overflow_skips_the_step(name):
    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(6)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1, dtype="float32")])
    model.compile(precision.LossScaleOptimizer(optimizers.Adam(0.05), initial_scale=2.0**10), "mse", jit_compile=False)
    getattr(training, name)(model, rho=0.1)
    fit_options = {"batch_size": 20, "verbose": 0, "shuffle": False}
    model.fit(X, Y, epochs=2, **fit_options)
    before = model.get_weights()
    huge = X * 6e4  # inside float16's range, its gradients are not
    model.fit(huge, Y, epochs=1, **fit_options)
    assert_close(model.get_weights(), before, 0.0)
    assert int(model.optimizer.skipped_steps.numpy()) == 1
    assert float(model.optimizer.dynamic_scale.numpy()) == 2.0**9
    model.fit(X, Y, epochs=2, **fit_options)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert int(model.optimizer.iterations.numpy()) == 4


@every_helper
def test_the_loss_scale_does_not_matter(name):
    compute_wide()
    ends = []
    for scale in (1.0, 2.0**12):
        optimizer = precision.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=scale)
        ends.append(trained(HELPERS[name][0](wide_model(optimizer)), 7))
    assert_close(ends[1], ends[0], 1e-9 if WIDEST == "float64" else 2e-5)


def test_each_micro_batch_goes_its_own_distance():
    halves = [slice(0, 10), slice(10, 20)]

    def part(weights, rows):
        hidden = np.tanh(X[rows] @ weights[0])
        error = hidden @ weights[1] - Y[rows]
        inside = 0.2 * (error @ weights[1].T) * (1 - hidden**2)
        return [X[rows].T @ inside, 0.2 * hidden.T @ error]

    compute_wide()
    model = training.sam(wide_model(optimizers.SGD(0.1, gradient_accumulation_steps=2)), 0.3)
    ours, weights = trained(model, 5, batch_size=10), start()
    for _ in range(5):
        total = [0.0, 0.0]
        for rows in halves:
            g = part(weights, rows)
            moved = [w + 0.3 * a / length(g) for w, a in zip(weights, g, strict=True)]
            total = [t + u / 2 for t, u in zip(total, part(moved, rows), strict=True)]
        weights = [w - 0.1 * t for w, t in zip(weights, total, strict=True)]
    for a, b in zip(ours, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * CLOSE, atol=CLOSE)


@every_helper
def test_a_model_is_saved_without_it_and_goes_on_with_it(name, tmp_path):
    # Without dropout, because Keras does not save the state of its seeds.
    whole = getattr(training, name)(noisy_model(dropout=0.0), rho=0.2)
    trained(whole, 5, batch_size=20)
    whole.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded) is keras.Sequential and "train_step" not in vars(loaded)
    again = getattr(training, name)(loaded, rho=0.2)
    for model in (whole, again):
        trained(model, 3, batch_size=20)
    assert_close(again.get_weights(), whole.get_weights(), 0.0)


def test_plain_takes_it_off_again():
    model = training.sam(noisy_model(), 0.5)
    with pytest.raises(ValueError, match="has a sharpness-aware helper around its `train_step` already"):
        training.asam(model)
    other = training.plain(model)
    assert other is model
    assert_close(trained(model, 2), trained(noisy_model(), 2), 0.0)
    with pytest.raises(ValueError, match="has no helper"):
        training.plain(model)


def test_it_takes_effect_on_a_model_that_was_trained_before():
    keras.utils.set_random_seed(1)
    model = wide_model()
    trained(model, 1)
    model.set_weights(start())
    ours, theirs = trained(training.sam(model, 0.3), 3), twin(3, 0.1, 0.3)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * CLOSE, atol=CLOSE)


def test_an_embedding_and_unused_variables():
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(7, 2), keras.layers.Flatten()])
    model.add(keras.layers.Dense(1))
    model.compile(optimizers.SGD(0.1), "mse", jit_compile=False)
    unhelped = keras.models.clone_model(model)
    unhelped.set_weights(model.get_weights())
    unhelped.compile(optimizers.SGD(0.1), "mse", jit_compile=False)
    x = np.array([[1, 1, 4], [2, 1, 6]])
    for one in (training.gsam(model, 0.0, alpha=0.0), unhelped):
        one.fit(x, np.ones((2, 1)), epochs=3, verbose=0, shuffle=False)
    assert_close(model.get_weights(), unhelped.get_weights(), 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: training.sam(m, rho=-0.1), "`rho` must be a number at least 0"),
        (lambda m: training.sam(m, synchronized=1), "`synchronized` must be True or False"),
        (lambda m: training.asam(m, eta=-1.0), "`eta`"),
        (lambda m: training.gsam(m, alpha=-1.0), "`alpha`"),
        (lambda m: training.sam("model"), "`model` must be a Keras model"),
        pytest.param(lambda m: training.looksam(m, every=0), "`every` must be an integer at least 1", marks=tensorflow),
        pytest.param(lambda m: training.looksam(keras.Sequential()), "`model` must be built", marks=tensorflow),
    ],
)
def test_arguments_are_checked_at_once(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(small_model(optimizers.SGD(0.1)))


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it works on TensorFlow")
def test_looksam_says_where_it_works():
    with pytest.raises(ValueError, match="needs Keras on TensorFlow"):
        training.looksam(small_model(optimizers.SGD(0.1)))

"""DecoupledL1 and DecoupledGroupLasso: the theory of ISTA, scikit-learn's solutions, and zeros that are zero."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, schedules, transforms
from keras_trainkit.testing import contracts
from keras_trainkit.testing.contracts import Case
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

RNG = np.random.default_rng(61)
TRUE = np.array([2.0, 0, 0, -1.5, 0, 0, 0, 0.8, 0, 0, 0, 0])
SINGLE = 3e-5


def problem(samples=80):
    """A lasso problem with correlated columns, in float64."""
    x = RNG.normal(size=(samples, len(TRUE))) + 0.5 * RNG.normal(size=(samples, 1))
    return x, x @ TRUE + 0.3 * RNG.normal(size=samples)


def run(optimizer, x, y, steps):
    """Full gradients of half of the mean squared error; yields the weights after each step."""
    step = Stepper(optimizer, [np.zeros(x.shape[1])])
    for _ in range(steps):
        w = step.parameters()[0]
        step([x.T @ (x @ w - y) / len(y)])
        yield step.parameters()[0]


def solution(x, y, l1, l2=0.0):
    """By coordinate descent, in float64: scikit-learn's, to the last digit."""
    from sklearn.linear_model import ElasticNet

    model = ElasticNet(l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-14, max_iter=100_000)
    return model.fit(x, y).coef_


# ------------------------------------------------------------------------------------------------------------ ISTA


def test_it_is_ista_with_its_rate_of_convergence():
    x, y = problem()
    best = solution(x, y, 0.1)
    curvature = np.linalg.eigvalsh(x.T @ x / len(y)).max()

    def objective(w):
        return 0.5 * np.mean((x @ w - y) ** 2) + 0.1 * np.abs(w).sum()

    values = [objective(w) for w in run(optimizers.SGD(1 / curvature, after=[transforms.DecoupledL1(0.1)]), x, y, 60)]
    # Beck and Teboulle, 2009, theorem 3.1; and at this rate it never goes up.
    for k, value in enumerate(values, 1):
        assert value - objective(best) <= curvature * (best**2).sum() / (2 * k) + 1e-6
    assert (np.diff(values) <= 1e-6).all()


def test_each_step_is_istas():
    keras.config.set_floatx(WIDEST)
    x, y = problem()
    w = np.zeros(len(TRUE))
    for found in run(optimizers.SGD(0.2, after=[transforms.DecoupledL1(0.3)]), x, y, 30):
        moved = w - 0.2 * x.T @ (x @ w - y) / len(y)
        w = np.array([max(v - 0.06, 0) if v > 0 else -max(-v - 0.06, 0) for v in moved])
        np.testing.assert_allclose(found, w, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}])
def test_it_solves_the_lasso_with_the_exact_support(options):
    x, y = problem()
    # Momentum makes the steps of the loss 1 / (1 - momentum) times as long, those of the penalty not.
    strength = 0.1 / (1 - options.get("momentum", 0.0))
    *_, found = run(optimizers.SGD(0.1, after=[transforms.DecoupledL1(strength)], **options), x, y, 900)
    best = solution(x, y, 0.1)
    assert 3 <= (best != 0).sum() < 12
    np.testing.assert_allclose(found, best, atol=1e-7 if WIDEST == "float64" else SINGLE)
    np.testing.assert_array_equal(found == 0, best == 0)


def test_with_weight_decay_it_solves_the_elastic_net():
    x, y = problem()
    optimizer = optimizers.SGD(0.1, weight_decay=0.25, after=[transforms.DecoupledL1(0.1)])
    *_, found = run(optimizer, x, y, 900)
    best = solution(x, y, 0.1, 0.25)
    np.testing.assert_allclose(found, best, atol=1e-7 if WIDEST == "float64" else SINGLE)
    np.testing.assert_array_equal(found == 0, best == 0)


def fit(model, x, y, updates):
    """Full batches, many of them to an epoch, because an epoch costs more than a step."""
    x, y = np.tile(x.astype("float32"), (50, 1)), np.tile(y.astype("float32"), 50)
    model.fit(x, y, batch_size=len(y) // 50, epochs=updates // 50, shuffle=False, verbose=0)


def lasso_model(optimizer, x, y, **layer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(1, **layer)])
    model.compile(optimizer, "mse")
    fit(model, x, y, 250)
    return model


def test_in_fit_it_has_scikit_learns_zeros_and_kerass_l1_regularizer_has_none():
    from sklearn.linear_model import Lasso

    x, y = problem()
    theirs = Lasso(0.1, tol=1e-12).fit(x, y + 4)
    zeros = theirs.coef_ == 0
    # Keras's "mse" is twice scikit-learn's loss.
    sparse = transforms.DecoupledL1(0.2, exclude=["bias"])
    kernel, bias = lasso_model(optimizers.SGD(0.05, after=[sparse]), x, y + 4).get_weights()
    np.testing.assert_allclose(kernel[:, 0], theirs.coef_, atol=1e-4)
    assert bias[0] == pytest.approx(theirs.intercept_, abs=1e-4)
    np.testing.assert_array_equal(kernel[:, 0] == 0, zeros)
    assert 3 <= zeros.sum() < 12
    model = lasso_model(keras.optimizers.SGD(0.05), x, y + 4, kernel_regularizer=keras.regularizers.L1(0.2))
    plain = model.get_weights()[0][:, 0]
    assert (plain != 0).all()
    # It goes on jumping around zero, by up to the rate times the strength.
    assert 1e-4 < np.abs(plain[zeros]).max() < 0.05 * 0.2 * 1.5
    np.testing.assert_allclose(plain, theirs.coef_, atol=0.02)


def test_around_an_optimizer_of_keras():
    x, y = problem()
    wrapped = optimizers.wrap(keras.optimizers.SGD(0.1), after=[transforms.DecoupledL1(0.1)])
    *_, found = run(wrapped, x, y, 600)
    np.testing.assert_array_equal(found == 0, solution(x, y, 0.1) == 0)


def test_with_adam_a_weight_stays_if_its_gradients_mean_is_more_than_strength_times_their_root_mean_square():
    # Gradients of -1 and of a share of +1, in turn: a mean of 1 - 2 share, a mean square of 1.
    def end(strength, share):
        links = [transforms.DecoupledL1(strength)]
        step = Stepper(optimizers.Adam(0.01, beta_1=0.98, beta_2=0.98, after=links), [np.array([0.1])])
        signs = np.where(np.arange(400) % 10 < 10 * share, 1.0, -1.0)
        return step.run([[np.array([sign])] for sign in signs])[0][0]

    assert end(0.5, 0.3) == 0  # 0.4 is less than 0.5
    assert end(0.3, 0.3) > 0.2


# ---------------------------------------------------------------------------------------------------- group lasso


def grouped(steps=700, **options):
    """Regression onto 6 inputs of which 2 matter, 3 outputs: the groups are the rows of the kernel."""
    x = RNG.normal(size=(60, 6))
    y = x[:, :2] @ np.array([[1.0, -1.0, 0.5], [0.3, 1.0, 1.0]]) + 0.3 * RNG.normal(size=(60, 3))
    step = Stepper(optimizers.SGD(0.1, after=[transforms.DecoupledGroupLasso(axis=0, **options)]), [np.zeros((6, 3))])
    for _ in range(steps):
        step([x.T @ (x @ step.parameters()[0] - y) / 60])
    w = step.parameters()[0]
    return w, x.T @ (y - x @ w) / 60


@pytest.mark.parametrize("scaled", [True, False])
def test_the_group_lasso_ends_at_its_optimality_conditions(scaled):
    w, slope = grouped(strength=0.2, scale_by_size=scaled)
    edge = 0.2 * (np.sqrt(3) if scaled else 1.0)
    zero = (w == 0).all(axis=1)
    assert zero.sum() >= 3 and not zero[:2].any()
    assert ((w == 0).any(axis=1) == zero).all()  # whole rows or none
    norms = np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(slope[~zero], (edge * w / np.where(norms > 0, norms, 1))[~zero], atol=SINGLE)
    assert (np.linalg.norm(slope[zero], axis=1) <= edge).all()


def test_multi_task_lasso_is_the_same_problem():
    from sklearn.linear_model import MultiTaskLasso

    x = RNG.normal(size=(60, 6))
    y = x[:, :2] @ RNG.normal(size=(2, 3)) + 0.3 * RNG.normal(size=(60, 3))
    theirs = MultiTaskLasso(0.2, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y).coef_.T
    link = transforms.DecoupledGroupLasso(0.2, axis=0, scale_by_size=False)
    step = Stepper(optimizers.SGD(0.1, after=[link]), [np.zeros((6, 3))])
    for _ in range(700):
        step([x.T @ (x @ step.parameters()[0] - y) / 60])
    np.testing.assert_allclose(step.parameters()[0], theirs, atol=SINGLE)
    np.testing.assert_array_equal(step.parameters()[0] == 0, theirs == 0)


def test_filters_vanish_and_vectors_and_what_is_excluded_stay():
    shapes = {"conv_kernel": (3, 3, 2, 4), "conv_bias": (4,), "head_kernel": (4, 2), "scale": ()}
    initial = [0.01 * RNG.normal(size=shape) for shape in shapes.values()]
    initial[0][..., 1] += 1.0
    link = transforms.DecoupledGroupLasso(1.0, exclude=["head"])
    step = Stepper(optimizers.SGD(0.05, after=[link]), initial, names=list(shapes))
    moved = step.run([[np.zeros(p.shape) for p in initial]])
    assert (moved[0] == 0).all(axis=(0, 1, 2)).tolist() == [True, False, True, True]
    column = initial[0][..., 1]
    shorter = column * (1 - 0.05 * np.sqrt(18) / np.linalg.norm(column))
    np.testing.assert_allclose(moved[0][..., 1], shorter, rtol=1e-6)
    for before, after in zip(initial[1:], moved[1:], strict=True):
        np.testing.assert_array_equal(after, before.astype(WIDEST))
    assert link.matched(step.variables) == [["conv_kernel", 4], ["conv_bias", 0], ["head_kernel", 0], ["scale", 0]]
    assert link.report(step.variables).splitlines()[1].split() == ["conv_kernel", "4"]


def test_a_kernel_without_the_axis_is_an_error_at_build():
    link = transforms.DecoupledGroupLasso(0.1, axis=[-1, -3])
    with pytest.raises(ValueError, match=r"`axis` must exist in the weights, of shape \(2, 3\)"):
        Stepper(optimizers.SGD(0.1, after=[link]), [np.ones((2, 3))])


# ------------------------------------------------------------------------------------------ zeros that are zero


LINKS = {
    "l1": lambda: transforms.DecoupledL1(1.0),
    "groups": lambda: transforms.DecoupledGroupLasso(1.0),
    "l1 on a schedule": lambda: transforms.DecoupledL1(schedules.Constant(1.0)),
}
every_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)


@every_link
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [3, 40000])
def test_zeros_are_exact_whatever_stands_before(link, compiled, size):
    # Momentum, decay, clipping and factors of every size: adding the displacement must give 0, not 1e-17.
    before = [transforms.ScaleByPath([["p0", 0.37]]), transforms.Lookahead(2, 0.3)]
    optimizer = optimizers.Adam(0.013, weight_decay=0.17, global_clipnorm=0.3, after=[*before, link()])
    initial = [np.exp(RNG.normal(size=(size, 2))) * 1e-3]
    step = Stepper(optimizer, initial, dtype="float32", jit_compile=compiled)
    for _ in range(4):
        found = step.run([[1e-4 * RNG.normal(size=(size, 2)).astype("float32")]])[0]
    assert (found == 0).any() and np.isfinite(found).all()
    step.optimizer.learning_rate = 10.0
    np.testing.assert_array_equal(step.run([[np.zeros((size, 2), "float32")]])[0], 0.0)


@every_link
def test_bfloat16_variables_and_rounding_at_random_keep_the_zeros(link):
    step = Stepper(
        optimizers.SGD(0.01, after=[link(), transforms.RoundAtRandom()]), [0.005 * np.ones((4, 3))], dtype="bfloat16"
    )
    found = ops.convert_to_numpy(ops.cast(step.run([[np.zeros((4, 3))]] * 3)[0], "float32"))
    np.testing.assert_array_equal(found, 0.0)


@every_link
def test_a_rate_of_zero_moves_nothing_and_nan_is_not_hidden(link):
    initial = [np.array([[1e-30, -2.0], [3.0, 0.0]])]
    step = Stepper(optimizers.SGD(0.0, after=[link()]), initial, dtype="float32")
    np.testing.assert_array_equal(step.run([[np.ones((2, 2))]])[0], initial[0].astype("float32"))
    step = Stepper(optimizers.SGD(0.1, after=[link()]), initial, dtype="float32")
    assert np.isnan(step.run([[np.full((2, 2), np.nan)]])[0]).all()


def test_the_strength_may_follow_a_schedule():
    rising = schedules.Linear(0.0, 4, 0.4)
    step = Stepper(optimizers.SGD(0.5, after=[transforms.DecoupledL1(rising)]), [np.array([1.0, -1.0])])
    step.run([[np.zeros(2)]] * 5)
    left = 1 - 0.5 * (0 + 0.1 + 0.2 + 0.3 + 0.4)
    np.testing.assert_allclose(step.parameters()[0], [left, -left], rtol=1e-6)


def test_it_shrinks_once_for_each_window():
    step = Stepper(
        optimizers.SGD(0.1, gradient_accumulation_steps=3, after=[transforms.DecoupledL1(1.0)]), [np.array([1.0])]
    )
    np.testing.assert_allclose(step.run([[np.zeros(1)]] * 6)[0], [0.8], rtol=1e-6)


def test_an_average_is_zero_where_all_that_it_averages_is():
    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, after=[transforms.DecoupledL1(1.0)])
    step = Stepper(optimizer, [np.array([0.25, 0.05])])
    step.run([[np.zeros(2)]] * 3)
    np.testing.assert_array_equal(step.parameters()[0], 0.0)
    optimizer.finalize_variable_values(step.variables)
    found = step.parameters()[0]
    assert found[0] == pytest.approx(0.5 * (0.5 * 0.15 + 0.5 * 0.05), rel=1e-5) and found[1] == 0


@pytest.mark.tensorflow
@pytest.mark.parametrize("make", [optimizers.Adam, optimizers.LazyAdam])
@pytest.mark.parametrize("link", [LINKS["l1"], LINKS["groups"]], ids=["l1", "groups"])
def test_sparse_gradients(make, link):
    if make is optimizers.LazyAdam and link is LINKS["groups"]:
        import tensorflow as tf

        # The transform sees whole variables: LazyAdam takes its dense step.
        gradient = tf.IndexedSlices(tf.ones((1, 2), "float64"), tf.constant([1]), dense_shape=tf.constant([3, 2]))
        found = Stepper(make(0.1, after=[link()]), [np.full((3, 2), 0.05)]).run([[gradient]])[0]
        assert (found == 0)[[0, 2]].all()
        return
    case = Case("sparse", make, lambda: None, {}, 8, arguments=lambda: {"after": [link()]})
    contracts.sparse_equals_dense(case)


@pytest.mark.tensorflow
def test_zeros_are_the_same_on_two_replicas_and_survive_a_file(two_replicas, tmp_path):
    x, y = problem(64)
    with two_replicas.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        links = [transforms.DecoupledL1(0.3, ["bias"]), transforms.DecoupledGroupLasso(0.1, exclude=["bias"])]
        model.compile(optimizers.Adam(0.02, weight_decay=0.01, after=links), "mse")
    model.fit(x.astype("float32"), y, batch_size=16, epochs=15, verbose=0)
    kernel = model.trainable_variables[0].value
    first, second = (copy.numpy() for copy in two_replicas.experimental_local_results(kernel))
    np.testing.assert_array_equal(first, second)
    assert 10 < (first == 0).sum() < 96
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.get_weights()[0], first)
    assert again.optimizer.after[0].strength == 0.3 and again.optimizer.after[1].axis == -1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.DecoupledL1(-0.1), "`strength` must be a number at least 0. Received: strength=-0.1"),
        (lambda: transforms.DecoupledL1("0.1"), "`strength` must be a number"),
        (lambda: transforms.DecoupledL1(0.1, ["("]), "`exclude` must be a regular expression"),
        (lambda: transforms.DecoupledGroupLasso(None), "`strength` must be a number"),
        (lambda: transforms.DecoupledGroupLasso(0.1, axis=[]), "`axis` must be an integer or a list"),
        (lambda: transforms.DecoupledGroupLasso(0.1, axis="rows"), "`axis` must be an integer"),
        (lambda: transforms.DecoupledGroupLasso(0.1, scale_by_size=1), "`scale_by_size` must be True or False"),
        (lambda: transforms.DecoupledGroupLasso(0.1, exclude=[3]), "`exclude` must be a regular expression"),
    ],
)
def test_arguments_are_checked_at_construction(make, message):
    with pytest.raises((ValueError, TypeError), match=message.replace("(", r"\(")):
        make()

"""The contracts that every optimizer keeps. A third party's optimizer can be put through them, too.

>>> from keras_trainkit import optimizers
>>> from keras_trainkit.testing import contracts, reference
>>> case = contracts.Case(
...     "adam", optimizers.Adam, twin=lambda: reference.Twin(reference.Adam), rates={"parabola": 0.1}, state_bytes=8)
>>> contracts.equals_twin(case)
>>> contracts.converges(case)
"""

from __future__ import annotations

import contextlib
import inspect
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.testing.cases import SHAPES, Case, Golden, Shape
from keras_trainkit.testing.problems import EXACT, PROBLEMS, WIDEST, Stepper, minimize

__all__ = ["Case", "Golden", "agrees_with_golden", "converges", "equals_twin", "keeps_configuration"]

# ---------------------------------------------------------------------------------------------------- configuration


OPTIONS: dict[str, Any] = {
    "weight_decay": 0.1,
    "weight_decay_exclude": ["p1"],
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 2,
    "last_window": "carry",
    "name": "renamed",
}


def keeps_configuration(case: Case) -> None:
    """The configuration survives JSON, every argument in it, and the optimizer made from it takes the same steps.

    A typo raises.
    """
    optimizer = case.optimizer(0.01, **OPTIONS)
    assert {name: optimizer.get_config()[name] for name in OPTIONS} == OPTIONS
    again = _reborn(optimizer)
    initial, gradients = _walk(10)
    for first, second in zip(
        Stepper(optimizer, initial).run(gradients), Stepper(again, initial).run(gradients), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    usual = case.optimizer(0.01).get_config()
    for name, value in _others(case).items():
        assert _reborn(case.optimizer(0.01, **{name: value})).get_config()[name] != usual[name], f"{name} is lost"
    try:
        case.optimizer(0.01, wieght_decay=0.1)
    except ValueError as error:
        assert "wieght_decay" in str(error) and "weight_decay" in str(error), error
    else:
        raise AssertionError("a misspelt argument was taken without an error")


def feels_every_argument(case: Case) -> None:
    """Each constructor argument but the name has another value in `case.others`, and it changes the trajectory."""
    named = set(inspect.signature(case.make.__init__).parameters) - {"self", "options", "learning_rate", "name"}
    missing = named - set(case.others)
    assert not missing, f"`others` lacks {sorted(missing)}"
    initial, gradients = _walk(30, case.shapes, case.drift)
    plain = Stepper(case.optimizer(case.felt_rate), initial, names=case.names).run(gradients)
    for name, value in _others(case).items():
        changed = Stepper(case.optimizer(case.felt_rate, **{name: value}), initial, names=case.names).run(gradients)
        distance = max(np.abs(a - b).max() for a, b in zip(plain, changed, strict=True))
        assert distance > 1e-9, f"{name} changes nothing"


# ---------------------------------------------------------------------------------------------------------- numbers


def equals_twin(case: Case) -> None:
    """50 random steps are the NumPy twin's, with clipping and decay of the case's twin; in float64 on TensorFlow."""
    keras.config.set_floatx(WIDEST)
    initial, gradients = _walk(50, case.shapes, case.drift)
    ours = Stepper(case.optimizer(0.03), initial).run(gradients)
    theirs = case.twin().run(initial, gradients, 0.03)
    for mine, twin in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, twin, rtol=EXACT, atol=EXACT)


def agrees_with_golden(case: Case, vectors: dict[str, Any], golden: Golden, tolerance: float = 1e-5) -> None:
    """20 steps in float32 end where a third party's implementation ended."""
    expected = vectors["final"][golden.method][golden.source]  # of some methods of the first variables alone
    initial = [np.array(p) for p in vectors["initial"]][: len(expected)]
    gradients = [[np.array(g) for g in step[: len(expected)]] for step in vectors["gradients"]]
    optimizer = case.optimizer(golden.learning_rate, **golden.arguments)
    ours = Stepper(optimizer, initial, dtype="float32").run(gradients)
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, np.array(theirs), rtol=0, atol=tolerance)


def converges(case: Case) -> None:
    """Each problem for which the case names a rate ends at its target."""
    assert case.rates, "`rates` must name at least one problem"
    for name, rate in case.rates.items():
        problem = PROBLEMS[name]()
        loss = minimize(case.optimizer(rate), problem)
        assert loss <= problem.target, f"{name}: loss {loss:.3g} after {problem.steps} updates at rate {rate}"


def compiled_equals_graph(case: Case) -> None:
    """With XLA the steps are those of the plain graph, to float64 rounding."""
    initial, gradients = _walk(12)
    graph = Stepper(case.optimizer(0.03, gradient_accumulation_steps=2), initial).run(gradients)
    compiled = Stepper(case.optimizer(0.03, gradient_accumulation_steps=2), initial, jit_compile=True).run(gradients)
    for first, second in zip(graph, compiled, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-7)


def keeps_dtypes(case: Case) -> None:
    """Variables keep their dtype, slots have at least float32, and the state is as large as the case says."""
    initial, gradients = _walk(2 * max(2, case.first_move), case.shapes)
    more = {"use_ema": True, "gradient_accumulation_steps": 2}
    widest = 8 if WIDEST == "float64" else 4
    for dtype, width, options in [(WIDEST, widest, {}), ("float32", 4, {}), ("bfloat16", 4, {}), ("bfloat16", 4, more)]:
        step = Stepper(case.optimizer(max(0.05, case.fit_rate), **options), initial, dtype=dtype)
        before = step.parameters()
        after = step.run(gradients)
        assert all(keras.backend.standardize_dtype(v.dtype) == dtype for v in step.variables)
        assert any((a != b).any() for a, b in zip(before, after, strict=True))
        slots = [v for v in step.optimizer.variables if len(v.shape)]
        extra = [v for v in slots if v.path.endswith(("_average", "_gradient_accumulator"))]
        assert len(extra) == len(options) * len(initial)
        assert all(keras.backend.standardize_dtype(v.dtype) == f"float{8 * width}" for v in extra)
        slots = [v for v in slots if not any(v is other for other in extra)]
        kept = case.slot_dtype or f"float{8 * width}"
        assert all(keras.backend.standardize_dtype(v.dtype) == kept for v in slots)
        state = sum(int(np.prod(v.shape)) * ops.convert_to_numpy(v).itemsize for v in slots)
        promised = case.total_state_bytes([p.shape for p in initial]) * (1 if case.slot_dtype else width / 4)
        if dtype == "bfloat16" and case.half_state_bytes is not None:
            promised = case.half_state_bytes * sum(p.size for p in initial)
        assert state == promised, f"{state} bytes of state, not {promised}"


# --------------------------------------------------------------------------------------------------------- training


def rests_at_rate_zero(case: Case) -> None:
    """With learning rate 0 `fit` changes no weight, and a built optimizer is traced once in two calls of `fit`.

    (One that is built inside the first step costs a second trace: TensorFlow's rule for new variables.)
    """
    model = small_model(case.optimizer(0.0, weight_decay=0.1))
    model.optimizer.build(model.trainable_variables)
    traces = []
    original = model.train_step

    def counted(*arguments: Any, **keywords: Any) -> Any:
        traces.append(1)
        return original(*arguments, **keywords)

    model.train_step = counted
    before = model.get_weights()
    fit(model, epochs=2)
    fit(model, epochs=1)
    assert_close(model.get_weights(), before, 0.0)
    assert len(traces) == 1, f"{len(traces)} traces"


def resumes_exactly(case: Case, directory: pathlib.Path, strategy: Any = None) -> None:
    """4 epochs, and 2 epochs, a `.keras` file and 2 more, end on the same bits; into a strategy, on 2e-6, too."""
    options: dict[str, Any] = {"weight_decay": 0.01, "weight_decay_exclude": ["bias"], "use_ema": True}
    options |= {"gradient_accumulation_steps": 3, "last_window": "carry", "ema_overwrite_frequency": 4}
    whole = small_model(case.optimizer(case.fit_rate, **options))
    fit(whole, epochs=2)
    path = directory / f"{case.name}.keras"
    whole.save(path)
    fit(whole, epochs=2)
    theirs = [ops.convert_to_numpy(v) for v in whole.optimizer.variables]
    for where in [None, *([] if strategy is None else [strategy])]:
        with where.scope() if where else contextlib.nullcontext():
            half = keras.models.load_model(path)
        fit(half, epochs=2)
        assert_close(half.get_weights(), whole.get_weights(), 2e-6 if where else 0.0)
        ours = [ops.convert_to_numpy(v) for v in half.optimizer.variables]
        assert_close(ours, theirs, 2e-5 if where else 0.0)


def replicas_agree(case: Case, strategy: Any, updates: int = 50, clipping: dict[str, float] | None = None) -> None:
    """One device and a strategy's replicas end on the same weights, with every option switched on.

    `clipping` is one of `clipvalue`, `clipnorm` and `global_clipnorm` with its bound; without it, the last of them. It
    is at work in some updates and not in others: in all it would hide a factor too much in the gradients.
    """
    from keras_trainkit.transforms import Lookahead

    def optimizer() -> Any:
        options = {
            "weight_decay": 0.01,
            "use_ema": True,
            "ema_momentum": 0.9,
            "ema_overwrite_frequency": 5,
            "gradient_accumulation_steps": 2,
            "after": [*case.arguments().get("after", []), Lookahead(3, 0.5)],
        }
        schedule = keras.optimizers.schedules.PolynomialDecay(case.fit_rate, updates, case.fit_rate / 4)
        return case.optimizer(schedule, **(clipping or {"global_clipnorm": 0.1}), **options)

    models = []
    for scope in [contextlib.nullcontext(), strategy.scope()]:
        with scope:
            models.append(small_model(optimizer(), constraint=True))
    start = models[0].get_weights()
    models[1].set_weights(start)
    for model in models:
        model.optimizer.watch()
        fit(model, epochs=1, first_half=0.02)
        norms = model.optimizer.statistics()
        assert norms["clipped_gradient_norm"] < 0.99 * norms["gradient_norm"], "the second update was not clipped"
        fit(model, epochs=updates // 2 - 1, first_half=0.02)
        assert int(ops.convert_to_numpy(model.optimizer.iterations)) == updates
    moved = max(np.abs(a - b).max() for a, b in zip(start, models[0].get_weights(), strict=True))
    assert moved > 1e-3, f"the weights moved by {moved} only"
    assert_close(models[1].get_weights(), models[0].get_weights(), case.replica_tolerance)


def embeddings_agree(case: Case, strategy: Any, steps: int = 48) -> None:
    """One device and a strategy's replicas end on the same embeddings; a batch holds some rows, and some twice."""
    rng = np.random.default_rng(9)
    x = rng.integers(0, 12, (48, 6))
    x[:, 0] = x[:, 1]
    y = rng.normal(size=(48, 2)).astype("float32")
    models = []
    for scope in [contextlib.nullcontext(), strategy.scope()]:
        keras.utils.set_random_seed(12)
        with scope:
            layers = [keras.layers.Embedding(20, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
            model = keras.Sequential([keras.Input((6,), dtype="int32"), *layers])
            options = {"global_clipnorm": 0.5, "weight_decay": 0.01, "use_ema": True, "ema_momentum": 0.9}
            model.compile(case.optimizer(case.fit_rate, **options), "mse", jit_compile=False)
        models.append(model)
    start = models[0].get_weights()
    models[1].set_weights(start)
    x, y = np.tile(x, (steps // 3, 1)), np.tile(y, (steps // 3, 1))
    for model in models:
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    moved = max(np.abs(a - b).max() for a, b in zip(start, models[0].get_weights(), strict=True))
    assert moved > 1e-3, f"the weights moved by {moved} only"
    assert_close(models[1].get_weights(), models[0].get_weights(), case.replica_tolerance)


def micro_batches_equal_big_ones(case: Case) -> None:
    """Four micro-batches of 8 are one batch of 32; the schedule, the average and `iterations` count updates."""
    schedule = keras.optimizers.schedules.PolynomialDecay(case.fit_rate, 8, 0.0)
    # The bound cuts one element of the gradient in four: a sum in place of a mean would show, as would a cut that comes
    # too early; a bound on the norm, reached by both, would hide the former.
    options: dict[str, Any] = {"global_clipnorm": None, "clipvalue": 0.15, "weight_decay": 0.01}
    options |= {"use_ema": True, "ema_momentum": 0.9}
    big = small_model(case.optimizer(schedule, **options))
    small = small_model(case.optimizer(schedule, gradient_accumulation_steps=4, **options))
    small.set_weights(big.get_weights())
    fit(big, epochs=3, batch_size=32)
    fit(small, epochs=3, batch_size=8)
    assert int(ops.convert_to_numpy(small.optimizer.iterations)) == 6
    assert int(ops.convert_to_numpy(big.optimizer.iterations)) == 6
    assert_close(small.get_weights(), big.get_weights(), 1e-6)


def follows_window_policy(case: Case) -> None:
    """A window of 3 of 4 micro-batches at the end of `fit` is applied, dropped or carried, as asked."""
    initial, gradients = _walk(8)
    start = [p.astype(WIDEST) for p in initial]

    def alone(first: int, last: int) -> list[np.ndarray]:
        """After one update with the mean of these gradients."""
        mean = [np.mean([step[i] for step in gradients[first:last]], axis=0) for i in range(len(initial))]
        return Stepper(case.optimizer(0.05), initial).run([mean])

    # The policy, where three micro-batches lead, how many more come, and where these lead.
    applied = alone(0, 3)
    rows = [("apply", applied, 0, applied), ("drop", start, 4, alone(3, 7)), ("carry", start, 1, alone(0, 4))]
    for policy, three, more, end in rows:
        step = Stepper(case.optimizer(0.05, gradient_accumulation_steps=4, last_window=policy), initial)
        step.run(gradients[:3])
        step.optimizer.finalize_variable_values(step.variables)
        assert_close(step.parameters(), three, max(EXACT, 1e-9) if policy == "apply" else 0.0)
        assert_close(step.run(gradients[3 : 3 + more]), end, max(EXACT, 1e-9))


def sparse_equals_dense(case: Case) -> None:
    """An embedding's gradient with repeated rows gives the step of the dense gradient.

    A lazy optimizer's step is that of the dense gradient on a table of the touched rows alone; the others stay.
    """
    import tensorflow as tf

    initial = [np.random.default_rng(5).normal(size=(7, 3))]
    rows = np.array([1, 4, 1, 1, 6])
    values = np.random.default_rng(6).normal(size=(4, 5, 3))
    dense, sparse = [], []
    for block in values:
        full = np.zeros((7, 3))
        np.add.at(full, rows, block)
        dense.append([full])
        sparse.append([tf.IndexedSlices(tf.constant(block), tf.constant(rows), dense_shape=tf.constant([7, 3]))])
    options: dict[str, Any] = {"global_clipnorm": 1.0, "weight_decay": 0.01}
    touched = np.unique(rows) if case.make.lazy else np.arange(7)
    with_full = Stepper(case.optimizer(0.05, **options), [initial[0][touched]]).run([[g[0][touched]] for g in dense])
    expected = initial[0].copy()
    expected[touched] = with_full[0]
    with_rows = Stepper(case.optimizer(0.05, **options), initial).run(sparse)
    assert_close(with_rows, [expected], 1e-12)


def overflow_skips_everywhere(case: Case, strategy: Any) -> None:
    """A bad gradient on the last or the first replica alone: nothing changes anywhere, the scale halves once.

    Good steps are those of one device that gets the sum of the gradients unscaled.
    """
    import tensorflow as tf

    from keras_trainkit.precision import LossScaleOptimizer

    initial = [np.array([1.0, -2.0, 3.0], "float32"), np.array([0.5, -0.5], "float32")]
    gradient = [np.array([1.0, -1.0, 0.5], "float32"), np.array([2.0, -0.25], "float32")]
    with strategy.scope():
        variables = [keras.Variable(value, name=f"p{i}") for i, value in enumerate(initial)]
        scaled = LossScaleOptimizer(case.optimizer(0.05), initial_scale=8.0, dynamic_growth_steps=case.first_move + 1)
        scaled.build(variables)

    @tf.function
    def step(poison: Any, where: Any) -> None:
        def on_replica() -> None:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group == where
            first, second = [tf.constant(g) * scaled.dynamic_scale.value for g in gradient]
            scaled.apply([first, second * tf.where(here, poison, 1.0)], variables)

        strategy.run(on_replica)

    def copies(kept: list[Any]) -> list[list[np.ndarray]]:
        local = [strategy.experimental_local_results(v.value) for v in kept]
        return [[c.numpy() for c in of_replica] for of_replica in zip(*local, strict=True)]

    for _ in range(case.first_move):
        step(tf.constant(1.0), tf.constant(0))
    kept = [*variables, *scaled.inner_optimizer.variables]
    good = copies(kept)
    alone = Stepper(case.optimizer(0.05), initial, dtype="float32")
    summed = [g * strategy.num_replicas_in_sync for g in gradient]
    assert_close(good[0][:2], alone.run([summed] * case.first_move), 1e-6)
    assert all((value != start).all() for value, start in zip(good[0], initial, strict=False))
    for poison, where, scale in [(np.inf, strategy.num_replicas_in_sync - 1, 4.0), (np.nan, 0, 2.0)]:
        step(tf.constant(poison, "float32"), tf.constant(where))
        for of_replica, before in zip(copies(kept), good, strict=True):
            assert_close(of_replica, before, 0.0)
        assert float(scaled.dynamic_scale.numpy()) == scale
    assert int(scaled.skipped_steps.numpy()) == 2
    assert int(scaled.iterations.numpy()) == case.first_move
    for _ in range(case.first_move + 1):
        step(tf.constant(1.0), tf.constant(0))
    assert float(scaled.dynamic_scale.numpy()) == 4.0
    last = copies(kept)
    assert all(np.isfinite(value).all() for value in last[0])
    for of_replica in last[1:]:
        assert_close(of_replica, last[0], 0.0)


# ------------------------------------------------------------------------------------------------------------- tools


def small_model(optimizer: Any, constraint: bool = False, dtype: Any = None) -> keras.Model:
    """A compiled network of 5 inputs and 3 outputs, always with the same initial weights."""
    keras.utils.set_random_seed(11)
    bound = keras.constraints.MaxNorm(1.5) if constraint else None
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="tanh", kernel_constraint=bound, dtype=dtype, name="hidden"),
            keras.layers.Dense(3, dtype=dtype, name="head"),
        ]
    )
    model.compile(optimizer, "mse", jit_compile=keras.backend.backend() == "jax")
    return model


def fit(model: keras.Model, epochs: int, batch_size: int = 16, first_half: float = 1.0) -> None:
    """Trains on 64 fixed samples in fixed order, the first 32 of them with the weight `first_half`.

    The epochs come as one long one: under a strategy Keras takes a tenth of a second to begin one.
    """
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 5)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(5, 3))).astype("float32")
    weights = None if first_half == 1 else np.tile(np.repeat([first_half, 1.0], 32).astype("float32"), epochs)
    x, y = np.tile(x, (epochs, 1)), np.tile(y, (epochs, 1))
    model.fit(x, y, batch_size=batch_size, sample_weight=weights, shuffle=False, verbose=0)


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> None:
    """Every element is within `tolerance`; the error says by how much it is not."""
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    distance = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    assert distance <= tolerance, f"{distance:.3g} apart, more than {tolerance}"


def _reborn(optimizer: Any) -> Any:
    """The optimizer that its configuration describes, by way of JSON."""
    again = keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    return again


def _others(case: Case) -> dict[str, Any]:
    return {name: other() if callable(other) else other for name, other in case.others.items()}


def _walk(
    steps: int, shapes: Sequence[Shape] = SHAPES, drift: float = 0.0
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Parameters (by default a kernel, a bias, a convolution kernel) and random gradients around `drift` for them."""
    rng = np.random.default_rng(42)
    initial = [rng.normal(size=shape) for shape in shapes]

    def gradient(shape: Shape) -> np.ndarray:
        return rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 1) + drift

    return initial, [[gradient(shape) for shape in shapes] for _ in range(steps)]

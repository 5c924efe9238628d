"""Pools: updates of many small variables at once equal those of each alone, and their slots stay one by one to see."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, transforms
from keras_trainkit.core import backend, pools
from keras_trainkit.core.transform import Slot
from keras_trainkit.testing.problems import Stepper

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(41)
SHAPES = [(3,), (2, 3), (), (4, 1, 2), (5,), (1,)]
LOOKAHEAD = {"after": [transforms.Lookahead(2, 0.5)]}
CASES = {
    "adam": lambda: optimizers.Adam(0.1),
    "adamw averaged": lambda: optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5, global_clipnorm=1.0),
    "overwritten": lambda: optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "accumulating": lambda: optimizers.Adam(0.1, gradient_accumulation_steps=2, clipnorm=0.5),
    "lookahead": lambda: optimizers.SGD(0.1, momentum=0.9, **LOOKAHEAD),
    "watched": lambda: _watched(optimizers.RMSprop(0.1, centered=True)),
    "guarded": lambda: optimizers.Adam(0.1, before=[transforms.SkipNonfinite()]),
    "muon": lambda: optimizers.Muon(0.1),
    "schedule-free": lambda: optimizers.ScheduleFreeAdamW(0.1),
    "nadam": lambda: optimizers.NAdam(0.1),
}


def _watched(optimizer):
    optimizer.watch()
    return optimizer


@pytest.fixture
def apart(monkeypatch):
    """Makes an optimizer whose slots are not pooled."""

    def made(make, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(pools, "FEWEST", 10**9)
            stepper = Stepper(make(), *arguments)
            stepper.optimizer.build(stepper.variables)
        return stepper

    return made


def initial():
    return [RNG.normal(size=shape) for shape in SHAPES]


def together(make, values):
    stepper = Stepper(make(), values)
    stepper.optimizer.build(stepper.variables)
    return stepper


def slots(optimizer):
    """By name; a guard's memory bears the optimizer's own name, which counts up."""
    store = _store(optimizer).items()
    return {key.replace(optimizer.name, "optimizer"): ops.convert_to_numpy(value) for key, value in store}


def _store(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def pooled(optimizer):
    return [v.path for v in optimizer.variables if "pool_" in v.path]


def alike(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, other[key], err_msg=key, **(tolerance or {"rtol": 1e-5, "atol": 1e-7}))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("graph", [False, True])
def test_updates_and_slots_equal_those_of_variables_apart(name, graph, apart):
    import tensorflow as tf

    start = initial()
    one, other = together(CASES[name], start), apart(CASES[name], start)
    assert pooled(one.optimizer)
    assert not pooled(other.optimizer)
    steps = [lambda g, s=s: s.optimizer.apply(g, s.variables) for s in (one, other)]
    steps = [tf.function(step) for step in steps] if graph else steps
    for _ in range(5):
        gradients = [tf.constant(RNG.normal(size=shape), "float32") for shape in SHAPES]
        for step in steps:
            step(gradients)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    alike(slots(one.optimizer), slots(other.optimizer), rtol=1e-4, atol=1e-6)
    statistics = one.optimizer.statistics()
    assert statistics == pytest.approx(other.optimizer.statistics(), rel=1e-4)


@pytest.mark.parametrize("name", ["adamw averaged", "overwritten"])
def test_averages_that_must_be_variables_are_joined_for_the_update_alone(name, apart, monkeypatch):
    start = initial()
    monkeypatch.setattr(backend, "pools_averages", lambda optimizer: False)  # as under a strategy
    one, other = together(CASES[name], start), apart(CASES[name], start)
    assert all(isinstance(average, keras.Variable) for average in one.optimizer._averages)
    assert pooled(one.optimizer) and not any("average" in path for path in pooled(one.optimizer))
    for _ in range(5):
        gradients = [ops.convert_to_tensor(RNG.normal(size=shape), "float32") for shape in SHAPES]
        for stepper in (one, other):
            stepper.optimizer.apply(gradients, stepper.variables)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    alike(slots(one.optimizer), slots(other.optimizer), rtol=1e-4, atol=1e-6)


def test_variables_without_a_gradient_stay_and_the_others_move_as_ever(apart):
    start = initial()
    one, other = together(CASES["adamw averaged"], start), apart(CASES["adamw averaged"], start)
    for missing in (None, 1, None, 4):
        gradients = [ops.convert_to_tensor(RNG.normal(size=shape), "float32") for shape in SHAPES]
        if missing is not None:
            gradients[missing] = None
        before = one.parameters()
        for stepper in (one, other):
            if missing is None:
                stepper.optimizer.apply(gradients, stepper.variables)
                continue
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                stepper.optimizer.apply(gradients, stepper.variables)
        after = one.parameters()
        moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [i != missing for i in range(len(SHAPES))]
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    alike(slots(one.optimizer), slots(other.optimizer))


def test_files_do_not_tell_how_slots_lie(apart):
    start = initial()
    one, other = together(CASES["adamw averaged"], start), apart(CASES["adamw averaged"], start)
    gradients = [RNG.normal(size=shape) for shape in SHAPES]
    one(gradients)
    other(gradients)
    for saved, target in (
        (other, together(CASES["adamw averaged"], start)),
        (one, apart(CASES["adamw averaged"], start)),
    ):
        target.optimizer.load_own_variables(_store(saved.optimizer))
        alike(slots(target.optimizer), slots(saved.optimizer), rtol=0, atol=0)
    unbuilt = CASES["adamw averaged"]()
    unbuilt.load_own_variables(_store(one.optimizer))
    unbuilt.build(one.variables)
    assert pooled(unbuilt)
    alike(slots(unbuilt), slots(one.optimizer), rtol=0, atol=0)


def test_pools_take_no_more_memory(apart):
    def numbers(stepper):
        return sum(int(np.prod(v.shape)) for v in stepper.optimizer.variables)

    assert numbers(together(CASES["adamw averaged"], initial())) == numbers(apart(CASES["adamw averaged"], initial()))


def test_a_checkpoint_of_tensorflow_brings_everything_back(tmp_path):
    import tensorflow as tf

    one = together(CASES["adamw averaged"], initial())
    one([RNG.normal(size=shape) for shape in SHAPES])
    path = tf.train.Checkpoint(optimizer=one.optimizer).save(str(tmp_path / "c"))
    other = together(CASES["adamw averaged"], initial())
    tf.train.Checkpoint(optimizer=other.optimizer).restore(path)
    alike(slots(other.optimizer), slots(one.optimizer), rtol=0, atol=0)


def test_callback_of_keras_swaps_pooled_averages():
    layers = [keras.layers.Dense(2, input_shape=(2,)) if not i else keras.layers.Dense(2) for i in range(3)]
    model = keras.Sequential(layers)
    model.compile(optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.5), "mse")
    model.fit(np.ones((8, 2)), np.ones((8, 2)), batch_size=4, verbose=0)
    assert pooled(model.optimizer)
    # `fit` has put the averages in; other weights and averages tell them apart.
    model.set_weights([np.full(w.shape, 3.0) for w in model.get_weights()])
    for average in model.optimizer._averages:
        average.assign(np.full(average.shape, 5.0))
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)
    for begin, weight in [(callback.on_test_begin, 5.0), (callback.on_test_end, 3.0)]:
        begin()
        assert all((w == weight).all() for w in model.get_weights())
        assert all((a.numpy() == 8.0 - weight).all() for a in model.optimizer._averages)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_model_that_xla_compiles_whole(jit_compile, apart):
    results = []
    for patched in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(3, "tanh") for _ in range(3))])
        optimizer = optimizers.AdamW(0.05, use_ema=True, ema_momentum=0.5)
        if patched:
            pools_apart(optimizer, model)
        model.compile(optimizer, "mse", jit_compile=jit_compile)
        model.fit(np.eye(3), np.eye(3), batch_size=1, epochs=3, shuffle=False, verbose=0)
        assert bool(pooled(optimizer)) != patched
        results.append((model.get_weights(), slots(optimizer)))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    one, other = ({key.rpartition(".")[0] + str(i): v for i, (key, v) in enumerate(r.items())} for _, r in results)
    for a, b in zip(one.values(), other.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def pools_apart(optimizer, model):
    """Builds the optimizer without pools."""
    fewest, pools.FEWEST = pools.FEWEST, 10**9
    optimizer.build(model.trainable_variables)
    pools.FEWEST = fewest


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(0.1),  # has no slots
        lambda: optimizers.LazyAdam(0.1),  # writes rows
        lambda: optimizers.LAMB(0.1),  # needs the norm of each variable
        lambda: optimizers.wrap(keras.optimizers.Adam(0.1)),
    ],
)
def test_what_is_not_pooled(make):
    assert not pooled(together(make, initial()).optimizer)


def test_only_what_is_treated_alike_lies_together():
    variables = [keras.Variable(np.ones(3), name=f"{'bias' if i % 2 else 'kernel'}_{i}") for i in range(9)]
    variables += [keras.Variable(np.ones(3), name="kernel_capped"), keras.Variable(np.ones(2**15), name="kernel_large")]
    variables[9].constraint = keras.constraints.NonNeg()
    variables.append(keras.Variable(np.ones(3), dtype="bfloat16", name="kernel_half"))
    optimizer = optimizers.AdamW(0.1, weight_decay=0.1, weight_decay_exclude=["bias"])
    optimizer.build(variables)
    assert [pool.indices for pool in optimizer._pools] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    gradients = [ops.ones(v.shape, v.dtype) for v in variables]
    optimizer.apply(gradients, variables)
    steps = [float(1 - ops.convert_to_numpy(v)[0]) for v in variables[:9]]
    np.testing.assert_allclose(steps, [0.1 if i % 2 else 0.109 + 0.001 for i in range(9)], atol=1e-5)


def test_a_pool_has_a_largest_size():
    sizes = [2**15 - 1] * 40
    groups = pools.plan([(i, size, "alike") for i, size in enumerate(sizes)])
    assert [len(group) for group in groups] == [32, 8]
    assert sorted(i for group in groups for i in group) == list(range(40))


def test_a_part_reads_and_assigns_as_a_variable_does():
    import tensorflow as tf

    whole = keras.Variable(np.arange(7.0), dtype="float32", name="pool")
    first, second = pools.parts(whole, [(2, 2), (3,)], ["a/kernel_m", "b/bias_m"])
    assert (first.shape, first.dtype, first.path, first.name) == ((2, 2), "float32", "a/kernel_m", "kernel_m")
    second.assign([7, 8, 9])
    np.testing.assert_array_equal(whole.numpy(), [0, 1, 2, 3, 7, 8, 9])
    np.testing.assert_array_equal(np.asarray(first), [[0, 1], [2, 3]])
    assert np.asarray(first, dtype="float64").dtype == np.float64
    np.testing.assert_array_equal(tf.ones(3) + second, [8, 9, 10])
    np.testing.assert_array_equal(ops.convert_to_numpy(second), [7, 8, 9])
    with pytest.raises(ValueError, match=r"`value` must have the shape \(3,\) of `b/bias_m`. Received: \(2,\)"):
        second.assign([1.0, 2.0])
    assert "b/bias_m" in repr(second)


def test_copies_of_weights_fill_a_pool():
    one = together(CASES["lookahead"], initial())
    for index, value in enumerate(one.parameters()):
        slow = dict(one.optimizer._slots.named(index))["slow"]
        np.testing.assert_array_equal(slow.numpy(), value)
    assert Slot("copy") != Slot(0.0)


@pytest.mark.parametrize("name", ["adam", "accumulating", "lookahead", "schedule-free", "adamw averaged"])
def test_pools_on_two_replicas(name, two_replicas, apart):
    import tensorflow as tf

    start = initial()
    other = apart(CASES[name], start)
    with two_replicas.scope():
        one = together(CASES[name], start)
    assert pooled(one.optimizer) and not any("average" in path for path in pooled(one.optimizer))
    step = tf.function(lambda g: one.optimizer.apply([x / 2 for x in g], one.variables))

    def run(count):
        for _ in range(count):
            gradients = [tf.constant(RNG.normal(size=shape), "float32") for shape in SHAPES]
            two_replicas.run(step, args=(gradients,))
            other.optimizer.apply(gradients, other.variables)

    def compare():
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        alike(slots(one.optimizer), slots(other.optimizer), rtol=1e-4, atol=1e-6)
        for variable in one.optimizer.variables:
            first, second = two_replicas.experimental_local_results(variable.value)
            np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=variable.path)

    run(4)
    compare()
    # What a file brings arrives in both copies.
    store = _store(other.optimizer)
    doubled = {key: 2 * np.asarray(a) if "." in key else a for key, a in store.items()}
    for stepper in (one, other):
        stepper.optimizer.load_own_variables(doubled)
    compare()
    run(2)
    compare()


def test_copies_wait_for_weights_that_the_first_step_makes():
    results = []
    for patched in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(3, "tanh") for _ in range(3)])
        optimizer = optimizers.SGD(0.5, momentum=0.5, **LOOKAHEAD)
        model.compile(optimizer, "mse")
        fewest, pools.FEWEST = pools.FEWEST, 10**9 if patched else pools.FEWEST
        model.fit(np.eye(3), np.eye(3), batch_size=1, epochs=3, shuffle=False, verbose=0)
        pools.FEWEST = fewest
        assert bool(pooled(optimizer)) != patched
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "in_place"),
    [
        (lambda: optimizers.Adam(0.1), True),
        (lambda: optimizers.SGD(0.1), True),
        (lambda: optimizers.AdamW(0.1), False),
        (lambda: optimizers.Adam(0.1, use_ema=True), False),
        (lambda: optimizers.SGD(0.1, momentum=0.9, **LOOKAHEAD), False),
    ],
)
def test_parameters_are_added_to_where_they_lie_if_the_update_does_not_read_them(make, in_place):
    import tensorflow as tf

    stepper = together(make, initial())
    gradients = [tf.constant(RNG.normal(size=shape), "float32") for shape in SHAPES]
    step = tf.function(lambda: stepper.optimizer.apply(gradients, stepper.variables), autograph=False)
    operations = [operation.type for operation in step.get_concrete_function().graph.get_operations()]
    assert operations.count("AssignAddVariableOp") == (len(SHAPES) if in_place else 0)

"""Guards: steps that are called off as a whole, on every path a step can take."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import core, optimizers, transforms
from keras_trainkit.testing import reference
from keras_trainkit.testing.contracts import assert_close, fit, small_model
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

RNG = np.random.default_rng(14)
INITIAL = [RNG.normal(size=(3, 4)), RNG.normal(size=4), RNG.normal(size=(2, 2, 1, 3))]


def walk(steps, spikes=(), bad=()):
    gradients = [[RNG.normal(size=p.shape) * RNG.uniform(0.8, 1.2) for p in INITIAL] for _ in range(steps)]
    for step in spikes:
        gradients[step] = [30 * g for g in gradients[step]]
    for step in bad:
        gradients[step][1][2] = np.inf if step % 2 else np.nan
    return gradients


def run(guards, gradients, **options):
    keras.config.set_floatx(WIDEST)
    stepper = Stepper(optimizers.Adam(0.05, before=guards, **options), INITIAL)
    return stepper, stepper.run(gradients)


def state(stepper):
    memories = {id(v) for v in stepper.optimizer.inner_variables()}
    return [ops.convert_to_numpy(v) for v in stepper.optimizer.variables if id(v) not in memories]


GUARDS = {
    "nonfinite": (lambda: transforms.SkipNonfinite(), lambda: reference.SkipNonfinite()),
    "spikes": (lambda: transforms.SkipSpikes(3.0, 0.9, 5), lambda: reference.SkipSpikes(3.0, 0.9, 5)),
    "zclip": (lambda: transforms.ZClip(2.0, 0.9, 6), lambda: reference.ZClip(2.0, 0.9, 6)),
}


@pytest.mark.parametrize("name", GUARDS)
def test_equals_twin(name):
    ours, theirs = GUARDS[name]
    bad = (4, 13, 14, 30) if name != "zclip" else ()
    gradients = walk(50, spikes=(9, 20, 21, 22, 40), bad=bad)
    stepper, result = run([ours()], gradients)
    guard = theirs()
    expected = reference.Twin(reference.Adam, guards=[guard]).run(INITIAL, gradients, 0.05)
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * EXACT, atol=10 * EXACT)
    memory = stepper.optimizer.guard_memories()[0]
    for field in ("skipped", "clipped", "consecutive", "seen"):
        if hasattr(guard, field):
            assert memory[field] == getattr(guard, field)
    for field in ("mean", "variance"):
        if hasattr(guard, field):
            assert memory[field] == pytest.approx(getattr(guard, field), rel=1e-9 if WIDEST == "float64" else 1e-4)
    assert memory.get("skipped", 0) + memory.get("clipped", 0) >= 4


@pytest.mark.parametrize("options", [{}, {"use_ema": True, "weight_decay": 0.1, "clipnorm": 1.0}])
def test_a_refused_step_changes_nothing(options):
    stepper, _ = run([transforms.SkipNonfinite()], walk(3), **options)
    before = [*stepper.parameters(), *state(stepper)]
    stepper(walk(1, bad=[0])[0])
    for a, b in zip(before, [*stepper.parameters(), *state(stepper)], strict=True):
        np.testing.assert_array_equal(a, b)
    assert stepper.optimizer.guard_memories() == [{"guard": "SkipNonfinite", "skipped": 1, "consecutive": 1}]
    stepper(walk(1)[0])
    assert stepper.optimizer.guard_memories() == [{"guard": "SkipNonfinite", "skipped": 1, "consecutive": 0}]
    assert int(ops.convert_to_numpy(stepper.optimizer.iterations)) == 4


def test_without_bad_steps_nothing_differs():
    gradients = walk(12)
    guards = [transforms.SkipNonfinite(2), transforms.SkipSpikes(), transforms.ZClip(50.0)]
    for a, b in zip(run(guards, gradients)[1], run([], gradients)[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_patience_ends():
    gradients = walk(6, bad=[1, 2, 3])
    stepper, after = run([transforms.SkipNonfinite(max_consecutive=2)], gradients[:3])
    assert np.isfinite(after[1]).all()
    stepper(gradients[3])
    assert np.isnan(stepper.parameters()[1]).any()
    expected = reference.Twin(reference.Adam, guards=[reference.SkipNonfinite(2)]).run(INITIAL, gradients, 0.05)
    assert np.isnan(expected[1]).any()


def test_a_risen_level_is_accepted_after_a_while():
    steady = [[np.ones(3)]] * 6
    guard = transforms.SkipSpikes(2.0, 0.5, 5)
    stepper = Stepper(optimizers.SGD(0.1, before=[guard]), [np.zeros(3)])
    stepper.run(steady + [[np.full(3, 10.0)]] * 12)
    memory = stepper.optimizer.guard_memories()[0]
    assert 2 <= memory["skipped"] <= 6
    assert memory["mean"] > 9 * np.sqrt(3)


def test_gradients_of_zero_do_not_lock_the_optimizer():
    stepper = Stepper(optimizers.SGD(0.1, before=[transforms.SkipSpikes(2.0, 0.9, 3)]), [np.zeros(2)])
    after = stepper.run([[np.zeros(2)]] * 5 + [[np.ones(2)]])
    np.testing.assert_allclose(after[0], -0.1, rtol=1e-6)


def test_zclip_of_equal_norms_is_finite():
    stepper = Stepper(optimizers.SGD(0.1, before=[transforms.ZClip(warmup=2, epsilon=0)]), [np.zeros(2)])
    assert np.isfinite(stepper.run([[np.ones(2)]] * 4 + [[np.full(2, 5.0)]])).all()


def test_zclip_leaves_bad_norms_to_the_guard_behind_it():
    guards = [transforms.ZClip(warmup=2), transforms.SkipNonfinite()]
    stepper, after = run(guards, walk(8, bad=[3, 4]))
    memories = stepper.optimizer.guard_memories()
    assert memories[0]["seen"] == 6 and memories[1]["skipped"] == 2
    assert all(np.isfinite(p).all() for p in after)


@pytest.mark.parametrize("bad", [0, 2])
def test_with_accumulation_a_bad_micro_batch_costs_its_window(bad):
    gradients = walk(6, bad=[bad])
    options = {"gradient_accumulation_steps": 3}
    stepper, result = run([transforms.SkipNonfinite()], gradients, **options)
    _, expected = run([], gradients[3:], **options)
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert stepper.optimizer.guard_memories()[0]["skipped"] == 1
    assert int(ops.convert_to_numpy(stepper.optimizer.iterations)) == 1


def test_memory_survives_saving(tmp_path):
    def guards():
        return [transforms.SkipSpikes(1.01, 0.3, 3), transforms.ZClip(0.05, 0.3, 2)]

    options = {"gradient_accumulation_steps": 3, "last_window": "carry"}
    whole = small_model(optimizers.Adam(0.5, before=guards(), **options))
    fit(whole, epochs=3)
    whole.save(tmp_path / "m.keras")
    half = keras.models.load_model(tmp_path / "m.keras")
    assert half.optimizer.guard_memories() == whole.optimizer.guard_memories()
    for model in (whole, half):
        fit(model, epochs=3)
    assert_close(half.get_weights(), whole.get_weights(), 0.0)
    memories = whole.optimizer.guard_memories()
    assert half.optimizer.guard_memories() == memories
    assert memories[0]["seen"] == 8 and memories[0]["skipped"] + memories[1]["clipped"] > 0


def test_a_wrapped_optimizer_is_guarded_and_saved(tmp_path):
    def made():
        return optimizers.wrap(keras.optimizers.Nadam(0.05), before=[transforms.SkipNonfinite()])

    keras.config.set_floatx(WIDEST)
    gradients = walk(6, bad=[2, 3])
    guarded = Stepper(made(), INITIAL)
    plain = Stepper(optimizers.wrap(keras.optimizers.Nadam(0.05)), INITIAL)
    good = [g for i, g in enumerate(gradients) if i not in (2, 3)]
    for a, b in zip(guarded.run(gradients), plain.run(good), strict=True):
        np.testing.assert_array_equal(a, b)
    keras.config.set_floatx("float32")
    model = small_model(made())
    fit(model, epochs=1)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for one in (model, again):
        fit(one, epochs=1)
    assert_close(again.get_weights(), model.get_weights(), 0.0)


@pytest.mark.tensorflow
def test_one_bad_replica_calls_the_step_off_on_all(two_replicas):
    import tensorflow as tf

    with two_replicas.scope():
        variable = keras.Variable(np.array([1.0, -2.0], "float32"))
        optimizer = optimizers.Adam(0.1, before=[transforms.SkipNonfinite(), transforms.SkipSpikes(warmup=2)])
        optimizer.build([variable])

    @tf.function
    def step(poison):
        def on_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            factor = tf.where(tf.equal(replica, 1), poison, 1.0)
            optimizer.apply([tf.constant([1.0, -2.0]) * factor], [variable])

        two_replicas.run(on_replica)

    for poison in (1.0, 1.0, np.nan, np.inf, 1.0):
        step(tf.constant(poison, "float32"))
    copies = [v.numpy() for v in two_replicas.experimental_local_results(variable.value)]
    np.testing.assert_array_equal(copies[0], copies[1])
    alone = Stepper(optimizers.Adam(0.1), [np.array([1.0, -2.0])], dtype="float32")
    np.testing.assert_allclose(copies[0], alone.run([[np.array([2.0, -4.0])]] * 3)[0], rtol=1e-6)
    for memory in optimizer.guard_memories():
        assert memory["skipped"] == 2


@pytest.mark.tensorflow
def test_replicas_agree_through_fit(two_replicas):
    def made():
        guards = [transforms.SkipSpikes(1.01, 0.3, 2), transforms.ZClip(0.05, 0.3, 2)]
        options = {"gradient_accumulation_steps": 2, "weight_decay": 0.01, "use_ema": True}
        return small_model(optimizers.SGD(1.5, before=guards, **options))

    one = made()
    with two_replicas.scope():
        two = made()
    two.set_weights(one.get_weights())
    for model in (one, two):
        fit(model, epochs=6)
    assert_close(two.get_weights(), one.get_weights(), 2e-6)
    for mine, theirs in zip(one.optimizer.guard_memories(), two.optimizer.guard_memories(), strict=True):
        assert [mine[key] for key in mine if key != "guard"] == pytest.approx(
            [theirs[key] for key in mine if key != "guard"], rel=1e-4
        )
    memories = one.optimizer.guard_memories()
    assert memories[0]["skipped"] + memories[1]["clipped"] > 0


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", GUARDS)
def test_compiled_equals_graph(name):
    keras.config.set_floatx(WIDEST)
    gradients = walk(30, spikes=(12, 25), bad=(7,) if name != "zclip" else ())
    results = []
    for compiled in (False, True):
        optimizer = optimizers.Adam(0.05, before=[GUARDS[name][0]()])
        results.append(Stepper(optimizer, INITIAL, jit_compile=compiled).run(gradients))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.tensorflow
def test_works_under_loss_scaling():
    from keras_trainkit.precision import LossScaleOptimizer

    variable = keras.Variable(np.ones(2, "float32"))
    inner = optimizers.SGD(0.1, before=[transforms.SkipSpikes(2.0, 0.5, 2)])
    scaled = LossScaleOptimizer(inner, initial_scale=4.0)
    scaled.build([variable])
    for size in (1.0, 1.0, 1.0, 50.0, np.inf):
        scaled.apply([ops.convert_to_tensor(np.full(2, 4 * size, "float32"))], [variable])
    assert inner.guard_memories()[0]["skipped"] == 1 and int(scaled.skipped_steps.numpy()) == 1
    np.testing.assert_allclose(variable.numpy(), 0.7, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.SkipNonfinite(0), "`max_consecutive` must be an integer at least 1"),
        (lambda: transforms.SkipSpikes(1.0), "`factor` must be a number above 1"),
        (lambda: transforms.SkipSpikes(decay=1.0), "`decay`"),
        (lambda: transforms.SkipSpikes(warmup=0), "`warmup`"),
        (lambda: transforms.ZClip(0), "`threshold`"),
        (lambda: transforms.ZClip(warmup=1), "`warmup` must be an integer at least 2"),
        (lambda: transforms.ZClip(epsilon=-1.0), "`epsilon`"),
        (lambda: core.masked(transforms.SkipNonfinite(), "kernel"), "must not hold a guard"),
        (lambda: core.partition([["k", core.chain(transforms.ZClip())]]), "must not hold a guard"),
    ],
)
def test_arguments_are_checked_at_construction(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

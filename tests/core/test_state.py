"""Saving and loading of optimizer state: what fits is exact, what does not fit is an error that names the slots."""

import keras
import numpy as np
import pytest

from keras_trainkit import optimizers, transforms
from keras_trainkit.testing.contracts import fit, small_model
from keras_trainkit.testing.problems import Stepper


class Store(dict):
    """What Keras hands to `save_own_variables`."""


def saved(optimizer):
    store = Store()
    optimizer.save_own_variables(store)
    return store


def trained(optimizer, steps=3):
    rng = np.random.default_rng(0)
    initial = [rng.normal(size=(2, 3)), rng.normal(size=3)]
    step = Stepper(optimizer, initial, dtype="float32")
    step.run([[rng.normal(size=p.shape) for p in initial] for _ in range(steps)])
    return optimizer


def fresh(optimizer, shapes=((2, 3), (3,))):
    optimizer.build([keras.Variable(np.zeros(s, "float32"), name=f"p{i}") for i, s in enumerate(shapes)])
    return optimizer


def test_names_in_the_file_say_what_is_what():
    store = saved(trained(optimizers.Adam(0.1, use_ema=True, after=[transforms.Lookahead()])))
    assert sorted(store) == sorted(
        ["iteration", "learning_rate"]
        + [f"{i}.{slot}.p{i}" for i in (0, 1) for slot in ("momentum", "velocity", "average", "slow")]
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: optimizers.Lion(0.1), r"the optimizer has no slot `velocity` of variable 0 \(`p0`\)"),
        (lambda: optimizers.Adam(0.1, amsgrad=True), r"the file lacks slot `velocity_hat` of variable 0 \(`p0`\)"),
        (lambda: optimizers.Adam(0.1, use_ema=True), "the file lacks slot `average` of variable 0"),
        (lambda: optimizers.Adam(0.1, after=[transforms.Lookahead()]), "the file lacks slot `slow` of variable 0"),
    ],
)
def test_state_that_does_not_fit_is_an_error_that_names_the_slots(other, message):
    store = saved(trained(optimizers.Adam(0.1)))
    with pytest.raises(ValueError, match=message):
        fresh(other()).load_own_variables(store)


def test_wrong_shape_is_named():
    store = saved(trained(optimizers.Adam(0.1)))
    with pytest.raises(
        ValueError, match=r"slot `momentum` of variable 0 .* has shape \(4, 3\), and \(2, 3\) in the file"
    ):
        fresh(optimizers.Adam(0.1), [(4, 3), (3,)]).load_own_variables(store)


def test_nothing_is_loaded_when_something_does_not_fit():
    store = saved(trained(optimizers.Adam(0.1)))
    other = fresh(optimizers.Adam(0.1, amsgrad=True))
    with pytest.raises(ValueError, match="does not fit"):
        other.load_own_variables(store)
    assert all(not np.any(keras.ops.convert_to_numpy(v)) for v in other.variables if len(v.shape))
    assert int(keras.ops.convert_to_numpy(other.iterations)) == 0


def test_loading_a_model_with_another_optimizer_fails_by_name(tmp_path):
    model = small_model(optimizers.Adam(0.01))
    fit(model, epochs=1)
    model.save_weights(tmp_path / "all.weights.h5")
    other = small_model(optimizers.RMSprop(0.01, momentum=0.9))
    fit(other, epochs=1)
    with pytest.raises(ValueError, match="the optimizer has no slot `momentum` of variable 0"):
        other.load_weights(tmp_path / "all.weights.h5")


def test_only_the_first_problems_are_listed():
    other = fresh(optimizers.SGD(0.1), [(2, 3)] * 6)
    store = saved(fresh(optimizers.Adam(0.1), [(2, 3)] * 6))
    with pytest.raises(ValueError, match=r"slot `velocity` of variable 3 \(`p3`\) \(and 4 more\)\. Make"):
        other.load_own_variables(store)


def test_names_of_variables_need_not_be_those_of_the_file():
    source = trained(optimizers.Adam(0.1))
    other = optimizers.Adam(0.1)
    other.build([keras.Variable(np.zeros(s, "float32"), name=f"other_{i}") for i, s in enumerate([(2, 3), (3,)])])
    other.load_own_variables(saved(source))
    for ours, theirs in zip(other.variables, source.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


def test_two_slots_of_one_name_are_saved_apart():
    def twice():
        return optimizers.SGD(0.1, after=[transforms.Momentum(0.5), transforms.Momentum(0.9)])

    source, other = trained(twice()), fresh(twice())
    store = saved(source)
    assert "0.trace.p0" in store and "0.trace_1.p0" in store
    other.load_own_variables(store)
    for ours, theirs in zip(other.variables, source.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


def test_a_file_without_a_window_empties_the_window():
    def accumulating():
        return optimizers.SGD(0.1, gradient_accumulation_steps=2)

    other = trained(accumulating(), steps=3)
    other.load_own_variables(saved(trained(accumulating(), steps=2)))
    assert saved(other).keys() == {"iteration", "learning_rate"}, "a window of nothing is not saved"
    sums = [keras.ops.convert_to_numpy(v) for v in other.variables if "accumulator" in v.path]
    assert len(sums) == 2 and not any(s.any() for s in sums)


def test_state_loaded_before_build_waits_for_it():
    source = trained(optimizers.RAdam(0.1, gradient_accumulation_steps=2, last_window="carry"), steps=5)
    other = optimizers.RAdam(0.3, gradient_accumulation_steps=2, last_window="carry")
    other.load_own_variables(saved(source))
    fresh(other)
    for ours, theirs in zip(other.variables, source.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


def test_state_loaded_before_build_that_does_not_fit_is_an_error_at_build():
    other = optimizers.Lion(0.1)
    other.load_own_variables(saved(trained(optimizers.Adam(0.1))))
    with pytest.raises(ValueError, match="has no slot `velocity`"):
        fresh(other)


def test_an_untrained_file_leaves_the_slots_fresh():
    other = fresh(optimizers.Adam(0.3))
    other.load_own_variables(saved(optimizers.Adam(0.1)))
    assert float(keras.ops.convert_to_numpy(other.learning_rate)) == pytest.approx(0.1)


def test_accumulation_may_be_switched_on_and_changed():
    full = saved(trained(optimizers.SGD(0.1, momentum=0.9), steps=4))
    assert not any("gradient_accumulator" in key for key in full)
    on = fresh(optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4))
    on.load_own_variables(full)
    assert int(keras.ops.convert_to_numpy(on.iterations)) == 4

    part = saved(trained(optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4), steps=6))
    assert int(part["window"]) == 2 and "0.gradient_accumulator.p0" in part
    longer = fresh(optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=8))
    longer.load_own_variables(part)
    assert int(keras.ops.convert_to_numpy(longer.iterations)) == 1
    with pytest.raises(ValueError, match="the optimizer has no slot `gradient_accumulator` of variable 0"):
        fresh(optimizers.SGD(0.1, momentum=0.9)).load_own_variables(part)


def test_a_schedule_may_replace_a_rate_and_the_other_way_round():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    with_rate = saved(trained(optimizers.Adam(0.1)))
    with_schedule = saved(trained(optimizers.Adam(schedule)))
    for optimizer, store in [(optimizers.Adam(schedule), with_rate), (optimizers.Adam(0.2), with_schedule)]:
        fresh(optimizer).load_own_variables(store)
        assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 3
        assert np.any(keras.ops.convert_to_numpy(optimizer.variables[-1]))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adagrad", {}),
        ("Adadelta", {}),
        ("RMSprop", {}),
        # With the default epsilon the centered variance is rounding noise in float32, here as in Keras.
        ("RMSprop", {"momentum": 0.9, "centered": True, "epsilon": 1e-3}),
        ("Adam", {"clipnorm": 0.1}),
        ("Adam", {"amsgrad": True, "use_ema": True}),
        ("AdamW", {"gradient_accumulation_steps": 3}),
        ("Lion", {"global_clipnorm": 0.1}),
    ],
)
def test_a_project_on_keras_optimizers_goes_on_with_ours(name, arguments, tmp_path):
    if arguments.get("gradient_accumulation_steps"):
        arguments = arguments | {"last_window": "carry"}
    theirs_takes = {key: value for key, value in arguments.items() if key != "last_window"}
    theirs = small_model(getattr(keras.optimizers, name)(0.01, **theirs_takes))
    ours = small_model(getattr(optimizers, name)(0.01, **arguments))
    fit(theirs, epochs=2)
    theirs.save_weights(tmp_path / "k.weights.h5")
    ours.optimizer.build(ours.trainable_variables)
    ours.load_weights(tmp_path / "k.weights.h5")
    assert int(keras.ops.convert_to_numpy(ours.optimizer.iterations)) == 8 // arguments.get(
        "gradient_accumulation_steps", 1
    )
    fit(theirs, epochs=2)
    fit(ours, epochs=2)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("theirs", [{"amsgrad": True}, {"use_ema": True}])
def test_a_keras_optimizer_of_more_slots_does_not_fit(theirs, tmp_path):
    old = small_model(keras.optimizers.Adam(0.01, **theirs))
    fit(old, epochs=1)
    old.save_weights(tmp_path / "k.weights.h5")
    new = small_model(optimizers.Adam(0.01))
    new.optimizer.build(new.trainable_variables)
    with pytest.raises(ValueError, match="it holds 14 arrays, not the 10 of"):
        new.load_weights(tmp_path / "k.weights.h5")


def test_a_keras_optimizer_of_other_slots_does_not_fit(tmp_path):
    theirs = small_model(keras.optimizers.Lion(0.01))
    fit(theirs, epochs=1)
    theirs.save_weights(tmp_path / "k.weights.h5")
    ours = small_model(optimizers.Adam(0.01))
    ours.optimizer.build(ours.trainable_variables)
    with pytest.raises(ValueError, match="does not fit"):
        ours.load_weights(tmp_path / "k.weights.h5")

"""`TransformOptimizer`: arguments, options, sparse and missing gradients, statistics, and JAX's stateless step."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import core, optimizers, transforms
from keras_trainkit.testing.contracts import fit, small_model
from keras_trainkit.testing.problems import WIDEST, Stepper

INITIAL = [np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([0.1, -0.1])]
GRADIENTS = [[np.array([[0.3, -0.1], [2.0, 0.2]]), np.array([1.0, -3.0])]] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, r"`learning_rate` must be a number at least 0. Received: learning_rate=-1.0"),
        ({"learning_rate": float("nan")}, "`learning_rate`"),
        ({"learning_rate": "fast"}, "`learning_rate`"),
        ({"weight_decay": -0.1}, "`weight_decay` must be a number at least 0. Received: weight_decay=-0.1"),
        ({"clipnorm": 0}, "`clipnorm` must be a number above 0. Received: clipnorm=0"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "exclude each other. Received: clipnorm=1.0, clipvalue=1.0"),
        ({"beta_1": 1.0}, "`beta_1` must be a number at least 0 and below 1. Received: beta_1=1.0"),
        ({"epsilon": -1e-8}, "`epsilon`"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be an integer at least 1"),
        ({"gradient_accumulation_steps": 2.5}, "`gradient_accumulation_steps` must be an integer at least 1"),
        (
            {"last_window": "keep"},
            "`last_window` must be one of 'apply', 'drop', 'carry'. Received: last_window='keep'",
        ),
        ({"before": transforms.Centralize()}, "`before` must be a list of transforms"),
        ({"after": ["lookahead"]}, "`after` must be a list of transforms"),
        ({"ema_momentum": 1.5}, "`ema_momentum`"),
        ({"use_ema": 1}, "`use_ema` must be True or False"),
        ({"momentum": 0.9}, "`momentum` is not an argument of Adam"),
        ({"beta1": 0.9}, "Did you mean 'beta_1'"),
    ],
)
def test_bad_arguments_say_what_and_why(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message.replace("(", r"\(")):
        optimizers.Adam(**arguments)


@pytest.mark.parametrize("rate", [1, np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_any_number_is_a_learning_rate(rate):
    assert float(ops.convert_to_numpy(optimizers.SGD(rate).learning_rate)) == float(rate)


def test_learning_rate_may_be_a_function_or_set_later():
    by_function = Stepper(optimizers.SGD(lambda: 0.25), INITIAL).run(GRADIENTS)
    optimizer = optimizers.SGD(0.1)
    optimizer.learning_rate = 0.25
    for a, b in zip(by_function, Stepper(optimizer, INITIAL).run(GRADIENTS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_ad_hoc_algorithm_survives_saving():
    algorithm = core.chain(
        transforms.ClipByValue(0.5),
        core.partition([["p1", transforms.ScaleByLion()]], default=transforms.ScaleByAdam()),
        core.masked(transforms.Momentum(0.5), "p0"),
        transforms.ScaleByLearningRate(),
    )
    optimizer = core.TransformOptimizer(0.1, algorithm)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.algorithm == algorithm
    first = Stepper(optimizer, INITIAL).run(GRADIENTS)
    for a, b in zip(first, Stepper(again, INITIAL).run(GRADIENTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_algorithm_must_be_a_transform():
    with pytest.raises(TypeError, match="`algorithm` must be a transform"):
        core.TransformOptimizer(0.1).build([keras.Variable(np.ones(2))])


def test_missing_gradients_are_named_and_their_variables_rest():
    variables = [
        keras.Variable(np.ones(2, "float32"), name="moves"),
        keras.Variable(np.ones(2, "float32"), name="rests"),
    ]
    optimizer = optimizers.Adam(0.1, weight_decay=0.1, use_ema=True)
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="rests"):
        optimizer.apply([ops.ones(2), None], variables)
    assert (ops.convert_to_numpy(variables[0]) < 1).all()
    assert (ops.convert_to_numpy(variables[1]) == 1).all()
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None, None], variables)


def test_wrong_number_of_gradients():
    optimizer = optimizers.Adam(0.1)
    with pytest.raises(ValueError, match="must be given as long as the optimizer is not built"):
        optimizer.apply([ops.ones(2)])
    optimizer.build([keras.Variable(np.ones(2))])
    with pytest.raises(ValueError, match="one gradient for each variable"):
        optimizer.apply([ops.ones(2), ops.ones(2)])


def test_variables_of_several_dtypes_share_one_global_norm():
    kinds = ["bfloat16", "float32", WIDEST]
    variables = [keras.Variable(np.zeros(1), dtype=kind, name=f"v{i}") for i, kind in enumerate(kinds)]
    optimizer = optimizers.SGD(1.0, global_clipnorm=1.0)
    optimizer.build(variables)
    optimizer.watch()
    optimizer.apply([ops.ones(1, kind) for kind in kinds], variables)
    for variable in variables:
        moved = float(np.asarray(ops.convert_to_numpy(variable), "float64")[0])
        assert moved == pytest.approx(-1 / np.sqrt(3), rel=4e-3)
    assert optimizer.statistics()["gradient_norm"] == pytest.approx(np.sqrt(3), rel=1e-6)


def test_an_error_in_the_train_step_is_the_one_that_shows():
    class Broken(optimizers.SGD):
        def reduce(self, grads, trainable_variables=None, samples=None):
            raise RuntimeError("broken on purpose")

    model = small_model(Broken(0.1, use_ema=True, gradient_accumulation_steps=2))
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(model, epochs=1)


def test_empty_gradients_do_nothing():
    optimizer = optimizers.Adam(0.1)
    optimizer.apply([], [])
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 0


def test_decay_exclusions_by_pattern_and_by_variable():
    variables = [keras.Variable(np.ones(2), dtype=WIDEST, name=name) for name in ("kernel", "bias", "gamma")]
    optimizer = optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[variables[2]], var_names=["bias"])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    again.build(variables)
    again.apply([ops.zeros(2, WIDEST)] * 3, variables)
    assert [float(ops.convert_to_numpy(v)[0]) for v in variables] == pytest.approx([0.95, 1.0, 1.0])
    with pytest.raises(ValueError, match="before the optimizer is built"):
        again.exclude_from_weight_decay(var_names=["kernel"])


def test_an_exclusion_is_looked_for_in_the_whole_path():
    model = small_model(optimizers.SGD(0.1, weight_decay=0.5, weight_decay_exclude=["bias", "d/kernel$"]))
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    model.optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    ends = {"/".join(v.path.split("/")[-2:]): float(ops.convert_to_numpy(v).min()) for v in model.trainable_variables}
    assert ends == pytest.approx({"hidden/kernel": 0.95, "hidden/bias": 1.0, "head/kernel": 1.0, "head/bias": 1.0})


def test_transforms_see_the_clipped_gradients_of_the_step():
    @core.register_transform
    class GradientItself(core.Transform):
        def leaf(self, update, parameter, state, context):
            return -context.gradient, state

    made = core.TransformOptimizer(1.0, core.chain(transforms.ScaleByLion(), GradientItself()), clipvalue=0.5)
    after = Stepper(made, INITIAL).run(GRADIENTS[:1])
    for start, gradient, end in zip(INITIAL, GRADIENTS[0], after, strict=True):
        np.testing.assert_allclose(end, start - np.clip(gradient, -0.5, 0.5), rtol=1e-6)


def test_the_average_of_a_variable_that_rests_is_its_value():
    variables = [keras.Variable(np.full(2, start, "float32"), name=f"p{start}") for start in (1, 2)]
    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="p2"):
        optimizer.apply([ops.ones(2), None], variables)
    optimizer.finalize_variable_values(variables)
    assert [float(ops.convert_to_numpy(v)[0]) for v in variables] == pytest.approx([0.9, 2.0])


def test_the_last_window_is_in_the_average_that_is_put_in_place():
    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2)
    step = Stepper(optimizer, [np.array([1.0])])
    step.run([[np.array([1.0])]] * 3)
    optimizer.finalize_variable_values(step.variables)
    assert step.parameters()[0][0] == pytest.approx(0.5 * 0.9 + 0.5 * 0.8)


def test_average_counts_updates_and_is_put_in_place():
    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    step = Stepper(optimizer, [np.array([1.0])])
    trail = []
    for gradient in [1.0, 1.0, 1.0]:
        step([np.array([gradient])])
        trail.append(step.parameters()[0][0])
    expected = 0.5 * (0.5 * trail[0] + 0.5 * trail[1]) + 0.5 * trail[2]
    optimizer.finalize_variable_values(step.variables)
    assert step.parameters()[0][0] == pytest.approx(expected, abs=1e-6)


def test_the_callback_of_keras_finds_the_averages():
    model = small_model(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    model.optimizer.build(model.trainable_variables)
    trained = model.get_weights()
    gradients = [ops.ones(v.shape) for v in model.trainable_variables]
    for _ in range(2):  # to -0.1 and -0.2 of the start; the average lies between
        model.optimizer.apply(gradients, model.trainable_variables)
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)
    for begin, lag in [(callback.on_test_begin, 0.15), (callback.on_test_end, 0.2)]:
        begin()
        for now, start in zip(model.get_weights(), trained, strict=True):
            np.testing.assert_allclose(start - now, lag, atol=1e-6)


def test_average_overwrites_every_nth_update():
    plain = Stepper(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), [np.array([1.0])])
    often = Stepper(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2), [np.array([1.0])])
    for step in (plain, often):
        step([np.array([1.0])])
    assert plain.parameters()[0] == often.parameters()[0]
    for step in (plain, often):
        step([np.array([1.0])])
    assert plain.parameters()[0][0] == pytest.approx(0.8)
    assert often.parameters()[0][0] == pytest.approx(0.85)


def test_constraint_holds_and_the_average_sees_it():
    class Cap(keras.constraints.Constraint):
        def __call__(self, w):
            return ops.minimum(w, 1.0)

    variable = keras.Variable(np.array([0.9]), dtype=WIDEST, name="w")
    variable.constraint = Cap()
    optimizer = optimizers.SGD(1.0, use_ema=True)
    optimizer.build([variable])
    optimizer.apply([ops.convert_to_tensor([-5.0], WIDEST)], [variable])
    assert float(ops.convert_to_numpy(variable)[0]) == 1.0
    optimizer.finalize_variable_values([variable])
    assert float(ops.convert_to_numpy(variable)[0]) == 1.0


def test_loss_scale_factor_is_divided_out():
    plain = Stepper(optimizers.SGD(0.1), INITIAL).run(GRADIENTS)
    scaled = optimizers.SGD(0.1, loss_scale_factor=8.0)
    assert float(ops.convert_to_numpy(scaled.scale_loss(ops.convert_to_tensor(2.0)))) == 16.0
    result = Stepper(scaled, INITIAL).run([[8.0 * g for g in step] for step in GRADIENTS])
    for a, b in zip(plain, result, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_half_precision_is_not_used_for_the_maths():
    # 300 gradients of one: in bfloat16 their mean would be 0.85, and 1 - 0.999 would be rounded away.
    step = Stepper(optimizers.SGD(1.0, gradient_accumulation_steps=300), [np.array([0.0])], dtype="bfloat16")
    step.run([[ops.ones(1, "bfloat16")]] * 300)
    assert float(step.parameters()[0].astype("float32")[0]) == -1.0


def test_half_precision_weights_are_rounded_once():
    # Between 1 and the next smaller bfloat16, 0.9961, lie 2.6 steps of 0.0015: two make a change, each alone none.
    step = Stepper(optimizers.SGD(0.0015, weight_decay=1.0), [np.array([1.0])], dtype="bfloat16")
    step.run([[ops.ones(1, "bfloat16")]])
    assert float(step.parameters()[0].astype("float32")[0]) == 0.99609375


@pytest.mark.tensorflow
def test_rows_in_half_precision_are_summed_in_float32():
    import tensorflow as tf

    rows = tf.IndexedSlices(tf.ones((300, 1), "bfloat16"), tf.zeros(300, "int32"), tf.constant([2, 1]))
    gradients, _ = (optimizer := optimizers.SGD(1.0)).reduce([rows], [keras.Variable(np.zeros((2, 1)), "bfloat16")])
    assert optimizer.built
    np.testing.assert_array_equal(gradients[0], [[300.0], [0.0]])


def test_large_variables_take_the_steps_of_small_ones():
    # Large variables are updated in place, one by one; small ones are joined. Slots, average and decay go along.
    rng = np.random.default_rng(6)
    whole = rng.normal(size=2**16)
    gradients = [rng.normal(size=2**16) for _ in range(5)]

    def run(parts):
        optimizer = optimizers.AdamW(
            0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3, after=[transforms.Lookahead(2, 0.5)]
        )
        step = Stepper(optimizer, np.split(whole, parts))
        ends = np.concatenate(step.run([np.split(g, parts) for g in gradients]))
        optimizer.finalize_variable_values(step.variables)
        return ends, np.concatenate(step.parameters())

    for large, small in zip(run(1), run(4), strict=True):
        np.testing.assert_allclose(large, small, rtol=0, atol=1e-6)


def test_one_batch_in_a_window_is_no_accumulation():
    optimizer = optimizers.SGD(0.1, gradient_accumulation_steps=1)
    Stepper(optimizer, INITIAL)
    assert optimizer.gradient_accumulation_steps is None
    assert not any("accumulator" in v.path for v in optimizer.variables)


def test_statistics_are_the_norms_of_the_update():
    optimizer = optimizers.SGD(0.1, global_clipnorm=1.0)
    assert optimizer.statistics() == {}
    optimizer.watch(every=2)
    step = Stepper(optimizer, INITIAL)
    step(GRADIENTS[0])
    assert optimizer.statistics()["gradient_norm"] == 0.0
    before = step.parameters()
    step(GRADIENTS[0])
    norms = optimizer.statistics()
    whole = np.concatenate([g.ravel() for g in GRADIENTS[0]])
    weights = np.concatenate([p.ravel() for p in before])
    assert norms["gradient_norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-6)
    assert norms["clipped_gradient_norm"] == pytest.approx(1.0, rel=1e-6)
    assert norms["update_norm"] == pytest.approx(0.1, rel=1e-6)
    assert norms["weight_norm"] == pytest.approx(np.linalg.norm(weights), rel=1e-6)
    assert norms["update_to_weight_ratio"] == pytest.approx(0.1 / np.linalg.norm(weights), rel=1e-6)


def test_watching_may_begin_after_training_began_and_is_not_saved(tmp_path):
    model = small_model(optimizers.Adam(0.01))
    fit(model, epochs=1)
    model.optimizer.watch(every=1)
    model.make_train_function(force=True)
    fit(model, epochs=1)
    assert model.optimizer.statistics()["gradient_norm"] > 0
    model.save(tmp_path / "watched.keras")
    again = keras.models.load_model(tmp_path / "watched.keras")
    fit(model, epochs=1)
    fit(again, epochs=1)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_build_inside_a_traced_function_copies_real_weights():
    # `fit` builds the optimizer in its first traced step: Lookahead's slow weights must not start at zero there.
    model = small_model(optimizers.SGD(0.0, after=[transforms.Lookahead(1, 0.5)]))
    before = model.get_weights()
    fit(model, epochs=1)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_model_that_is_built_by_its_first_step_is_copied_then():
    # Its variables are made inside the trace, where they have no value yet: the copy waits for the first update.
    def train(known):
        keras.utils.set_random_seed(5)
        layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input((5,)), *layers] if known else layers)
        model.compile(optimizers.SGD(0.1, after=[transforms.Lookahead(3, 0.5)]), "mse")
        fit(model, epochs=2)
        return model.get_weights()

    for a, b in zip(train(True), train(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_unknown_variable_is_refused():
    optimizer = optimizers.Adam(0.1)
    optimizer.build([keras.Variable(np.ones(2))])
    stranger = keras.Variable(np.ones(2))
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ops.ones(2)], [stranger])


@pytest.mark.tensorflow
def test_accumulation_runs_inside_xla_and_custom_loops():
    import tensorflow as tf

    model = small_model(optimizers.AdamW(0.01, gradient_accumulation_steps=2, global_clipnorm=1.0))
    model.compile(model.optimizer, "mse", jit_compile=True)
    fit(model, epochs=1)
    assert int(model.optimizer.iterations.numpy()) == 2

    optimizer = optimizers.RAdam(0.1)
    variable = keras.Variable(np.array([2.0], "float32"))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(variable.value))
        optimizer.apply_gradients([(tape.gradient(loss, variable.value), variable)])

    for _ in range(3):
        step()
    assert 0 < float(variable.numpy()[0]) < 2

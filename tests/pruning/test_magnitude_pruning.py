"""Pruning in `fit`: masks against the slow twin, and nothing that has gone comes back, whatever else goes on."""

import keras
import numpy as np
import pruning_twin as twin
import pytest
from pruned_models import (
    BATCHES,
    RNG,
    X,
    Y,
    assert_held,
    assert_same,
    fit,
    kernels,
    masks,
    model_of,
    pruned,
    whole_run,
)

from keras_trainkit import callbacks, optimizers, precision, schedules, training, transforms
from keras_trainkit.core import backend
from keras_trainkit.pruning.slots import element_slots


def elements_gone(optimizer, model):
    """What the optimizer keeps of the elements that have gone: every variable in a kernel's shape, and averages."""
    found = []
    for variable, mask in zip((model.get_layer(n).kernel for n in ("one", "two")), masks(model), strict=True):
        for slot, first in element_slots(optimizer, variable):
            found.append((np.asarray(keras.ops.convert_to_numpy(slot.value))[~mask], first))
    return found


# ------------------------------------------------------------------------------------------------------- the twin


def trained_by_hand(weights, updates, momentum, share):
    """SGD with momentum on mean squares of a linear model, with the masks of the twin."""
    velocity, mask = np.zeros_like(weights), np.ones(weights.shape, bool)
    for step in range(1, updates + 1):
        batch = slice((step - 1) % BATCHES * 8, (step - 1) % BATCHES * 8 + 8)
        error = X[batch].astype("float64") @ weights - Y[batch]
        gradient = 2 * X[batch].T.astype("float64") @ error / error.size * mask
        velocity = momentum * velocity - 0.1 * gradient
        weights = (weights + velocity) * mask
        wanted = twin.sparsity(step, share, 0.0, 3, 25, 4)
        before = twin.sparsity(step - 1, share, 0.0, 3, 25, 4)
        if wanted > before:
            mask = twin.unstructured(weights, mask, wanted)
            weights, velocity = weights * mask, velocity * mask
    return weights, mask


@pytest.mark.parametrize("make", [optimizers.SGD, keras.optimizers.SGD], ids=["the kit", "Keras"])
@pytest.mark.parametrize("updates", [16, 32])
def test_weights_and_masks_are_those_of_the_twin(make, updates):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, use_bias=False, name="only")])
    start = model.get_weights()[0].astype("float64")
    model.compile(make(0.1, momentum=0.9), "mse")
    fit(model, pruned(layers=["only"]), epochs=updates // BATCHES)
    weights, mask = trained_by_hand(start, updates, 0.9, 0.75)
    np.testing.assert_array_equal(masks(model)[0], mask)
    np.testing.assert_allclose(model.get_weights()[0], weights, atol=1e-5)


# --------------------------------------------------------------------------------------- nothing of it comes back

OPTIMIZERS = {
    "AdamW": lambda: optimizers.AdamW(1e-2),
    "SGD with Nesterov's momentum": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "Lookahead": lambda: optimizers.Adam(1e-2, after=[transforms.Lookahead(3, 0.5)]),
    "Muon": lambda: optimizers.Muon(1e-2),
    "Prodigy": lambda: optimizers.Prodigy(),
    "COCOB": lambda: optimizers.COCOB(),
    "Schedule-Free": lambda: optimizers.ScheduleFreeAdamW(1e-2),
    "wrapped": lambda: optimizers.wrap(keras.optimizers.Nadam(1e-2)),
    "average": lambda: optimizers.RAdam(1e-2, use_ema=True, ema_momentum=0.9),
    "Keras's Adam with an average": lambda: keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9),
    "Keras's Lamb": lambda: keras.optimizers.Lamb(1e-2),
    "Keras's Ftrl": lambda: keras.optimizers.Ftrl(1e-2),
    "Keras's Adagrad": lambda: keras.optimizers.Adagrad(1e-2),
}


# How many variables in the shape of a weight each of them keeps, averages among them, in their order above.
KEPT = dict(zip(OPTIMIZERS, [2, 1, 3, 1, 4, 4, 2, 2, 3, 3, 2, 2, 1], strict=True))


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_state_and_averages_of_what_has_gone(name):
    model = model_of(OPTIMIZERS[name]())
    # Not at its end, where averages are put in place of the weights.
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["sparsity"])
            found = elements_gone(self.model.optimizer, self.model)
            assert len(found) == 2 * KEPT[name]
            for value, first in found:
                np.testing.assert_array_equal(value, np.float32(first))
            assert all(not kernel[~mask].any() for kernel, mask in zip(kernels(model), masks(model), strict=True))

    fit(model, pruned(), Look())
    assert seen == sorted(seen) and seen[-1] == 0.75
    assert_held(model)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.tensorflow
@pytest.mark.parametrize("make", [lambda: optimizers.ScheduleFreeSGD(0.05), OPTIMIZERS["average"]], ids=["x", "EMA"])
def test_evaluation_weights_are_masked(make):
    model, found = model_of(make()), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert self.model.optimizer.holds_evaluation()
            found.append([(kernel[~mask]).any() for kernel, mask in zip(kernels(model), masks(model), strict=True)])

    fit(model, callbacks.EvaluationWeights(), pruned(), Look(), validation_data=(X, Y))
    assert not np.any(found)
    assert_held(model)
    if not model.optimizer.use_ema:  # its end puts the average in
        plain = model_of(make())
        fit(plain, pruned())
        model.optimizer.to_training()
        plain.optimizer.to_training()
        assert_same(model, plain)


@pytest.mark.tensorflow
@pytest.mark.skipif(not hasattr(keras.optimizers, "Muon"), reason="this Keras has no Muon")
def test_keras_averages_what_an_optimizer_that_mixes_elements_moves():
    # Muon's step on a matrix moves what has gone, and Keras averages before it applies constraints.
    try:
        matrix = keras.Variable(np.ones((2, 3), "float32"), name="kernel")
        keras.optimizers.Muon(1e-2).apply([keras.ops.ones((2, 3))], [matrix])
    except AttributeError:
        pytest.skip("the Muon of this Keras does not run on TensorFlow")
    model = model_of(keras.optimizers.Muon(1e-2, use_ema=True))

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = model.get_layer("one").kernel
            average = backend.average_of(model.optimizer, kernel).numpy()
            assert average.any() and not average[~masks(model)[0]].any()

    fit(model, Look(), pruned())
    assert_held(model)


@pytest.mark.tensorflow
def test_gradients_of_what_has_gone_do_not_count_for_the_norm():
    model = model_of(optimizers.SGD(0.01, global_clipnorm=1e9))
    fit(model, pruned(begin_step=0, end_step=0), epochs=1)
    optimizer = model.optimizer
    gradients = [np.ones(v.shape, "float32") for v in model.trainable_variables]
    optimizer.watch()
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], model.trainable_variables)
    gone = sum((~mask).sum() for mask in masks(model))
    left = sum(g.size for g in gradients) - gone
    assert optimizer.statistics()["gradient_norm"] == pytest.approx(np.sqrt(left), rel=1e-6)


# ----------------------------------------------------------------------------------------- however the step is run


@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [{"steps_per_execution": 3}, {"jit_compile": True}], ids=["several", "XLA"])
@pytest.mark.parametrize("of_keras", [False, True], ids=["the kit", "Keras"])
def test_several_steps_in_one_call_and_xla(of_keras, options):
    model = model_of(keras.optimizers.Adam(1e-2) if of_keras else optimizers.AdamW(1e-2), **options)
    fit(model, pruned())
    assert_same(whole_run(of_keras), model, exact="jit_compile" not in options)


@pytest.mark.tensorflow
@pytest.mark.parametrize("make", [optimizers.SGD, keras.optimizers.SGD], ids=["the kit", "Keras"])
def test_masks_change_at_updates_not_at_micro_batches(make):
    whole = model_of(make(0.1, momentum=0.9))
    fit(whole, pruned(frequency=2, end_step=9), batch_size=16)
    windows = model_of(make(0.1, momentum=0.9, gradient_accumulation_steps=2))
    fit(windows, pruned(frequency=2, end_step=9))
    assert_same(whole, windows, exact=False)
    assert_held(windows)


@pytest.mark.tensorflow
def test_a_window_that_fit_ends_counts():
    model = model_of(optimizers.SGD(0.1, gradient_accumulation_steps=3))
    fit(model, pruned(begin_step=3, end_step=3), epochs=1)  # 8 batches: two windows and a part
    assert int(model.optimizer.iterations) == 3
    assert_held(model)


def assert_replicas_agree(model, strategy):
    for variable in model.trainable_variables:
        for each in (variable, getattr(variable.constraint, "mask", variable)):
            first, second = (copy.numpy() for copy in strategy.experimental_local_results(each.value))
            np.testing.assert_array_equal(first, second)


@pytest.mark.tensorflow
def test_two_replicas_equal_one_device(two_replicas):
    with two_replicas.scope():
        two = model_of(keras.optimizers.Adam(1e-2))
    fit(two, pruned())
    assert_same(whole_run(True), two, exact=False)
    assert_replicas_agree(two, two_replicas)


@pytest.mark.tensorflow
def test_replicas_with_averages_and_updates_that_are_compiled_in_place(two_replicas):
    x, y = RNG.normal(size=(32, 256)).astype("float32"), RNG.normal(size=(32, 2)).astype("float32")

    def fitted():
        keras.utils.set_random_seed(2)
        large = keras.layers.Dense(160, name="large")  # 40,960 elements: a program of its own
        small = keras.layers.Dense(8, name="small")
        model = keras.Sequential([keras.Input((256,)), large, small, keras.layers.Dense(2)])
        model.compile(optimizers.AdamW(1e-3, use_ema=True, ema_momentum=0.5), "mse")
        options = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=[pruned(begin_step=2, end_step=9, frequency=3)], **options)
        return model

    one = fitted()
    with two_replicas.scope():
        two = fitted()
    assert_same(one, two, exact=False)
    assert_replicas_agree(two, two_replicas)
    for name, gone in (("large", 30720), ("small", 960)):
        kernel = one.get_layer(name).kernel
        zeros = kernel.numpy() == 0
        assert zeros.sum() == gone
        for slot, _ in element_slots(one.optimizer, kernel):
            assert not keras.ops.convert_to_numpy(slot.value)[zeros].any()


@pytest.mark.tensorflow
@pytest.mark.parametrize("scaled", [precision.LossScaleOptimizer, keras.optimizers.LossScaleOptimizer])
@pytest.mark.parametrize("make", [optimizers.Adam, keras.optimizers.Adam], ids=["the kit", "Keras"])
def test_mixed_half_precision_with_a_loss_scale(scaled, make):
    keras.config.set_dtype_policy("mixed_float16")
    model = model_of(scaled(make(1e-2), initial_scale=2.0**20))
    fit(model, pruned(), epochs=5)
    assert int(model.optimizer.inner_optimizer.iterations) < 5 * BATCHES  # a scale too high skips steps
    assert_held(model)


@pytest.mark.tensorflow
def test_half_precision_weights():
    keras.config.set_dtype_policy("bfloat16")
    model = model_of(optimizers.AdamW(1e-2))
    fit(model, pruned())
    for mask, kernel in zip(masks(model), kernels(model), strict=True):
        assert (~mask).sum() == twin.count(0.75, mask.size)
        assert not kernel.astype("float32")[~mask].any()


@pytest.mark.tensorflow
def test_beside_other_parts():
    model = model_of(optimizers.SGD(0.05, momentum=0.9))
    training.sam(model, 0.05)
    follow = callbacks.HyperparameterSchedule(momentum=schedules.Linear(0.9, 30, 0.5))
    fit(model, follow, pruned())
    assert_held(model)
    assert training.plain(model).train_step.__func__ is keras.Model.train_step


@pytest.mark.tensorflow
def test_nothing_is_left_on_the_model_and_nothing_is_traced_twice():
    model, traced = model_of(optimizers.AdamW(1e-2)), []
    layer = model.get_layer("one")
    original = layer.call
    layer.call = lambda *arguments, **keywords: traced.append(1) or original(*arguments, **keywords)
    fit(model, pruned())
    assert len(traced) == 1
    assert "train_step" not in vars(model)


# ------------------------------------------------------------------------------------------------- the structures


def test_two_of_four_in_fit():
    model = model_of(optimizers.AdamW(1e-2))
    fit(model, pruned(final_sparsity=None, structure="2:4"))
    for kernel in kernels(model):
        groups = kernel.reshape(-1, 4, kernel.shape[1])
        assert ((groups != 0).sum(1) == 2).all()


@pytest.mark.tensorflow
def test_filters_in_fit():
    model = model_of(optimizers.AdamW(1e-2))
    fit(model, pruned(final_sparsity=0.5, structure="filters", norm="l1"))
    assert [int((~kernel.any(0)).sum()) for kernel in kernels(model)] == [8, 4]


@pytest.mark.tensorflow
def test_over_all_layers_in_fit():
    model = model_of(optimizers.AdamW(1e-2))
    fit(model, pruned(scope="global"))
    zeros = [int((kernel == 0).sum()) for kernel in kernels(model)]
    assert sum(zeros) == 192 and zeros[0] != 96


def test_before_the_first_update():
    model = model_of(optimizers.SGD(0.0))
    start = kernels(model)
    fit(model, pruned(begin_step=0, end_step=0), epochs=1)
    for before, after in zip(start, kernels(model), strict=True):
        expected = twin.unstructured(before, np.ones(before.shape, bool), 0.75)
        np.testing.assert_array_equal(after, before * expected)

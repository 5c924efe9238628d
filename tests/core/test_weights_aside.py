"""Evaluation weights go into the variables and out again without a trace, through files, too."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers
from keras_trainkit.core import Transform, TransformOptimizer, chain, masked, partition, register_transform
from keras_trainkit.testing.contracts import assert_close, fit, small_model
from keras_trainkit.transforms import ScaleByLearningRate


def averaged():
    """A trained model whose optimizer keeps a moving average, with the average in NumPy."""
    model = small_model(optimizers.Adam(0.02, use_ema=True, ema_momentum=0.5))
    fit(model, epochs=1)  # puts the average in, as Keras does
    model.set_weights([w + 0.25 for w in model.get_weights()])
    return model, [ops.convert_to_numpy(v) for v in model.optimizer._averages]


def test_there_and_back_is_exact():
    model, average = averaged()
    before = model.get_weights()
    assert model.optimizer.offers_evaluation() and not model.optimizer.holds_evaluation()
    model.optimizer.to_evaluation()
    model.optimizer.to_evaluation()
    assert model.optimizer.holds_evaluation()
    assert_close(model.get_weights(), average, 0.0)
    model.optimizer.to_training()
    model.optimizer.to_training()
    assert not model.optimizer.holds_evaluation()
    assert_close(model.get_weights(), before, 0.0)


def test_reading_them_changes_nothing():
    model, average = averaged()
    before = model.get_weights()
    assert_close([ops.convert_to_numpy(w) for w in model.optimizer.evaluation_weights()], average, 0.0)
    last = model.trainable_variables[-1:]
    assert_close([ops.convert_to_numpy(w) for w in model.optimizer.evaluation_weights(last)], average[-1:], 0.0)
    assert_close(model.get_weights(), before, 0.0)
    with pytest.raises(ValueError, match="before it is built"):
        optimizers.Adam(use_ema=True).evaluation_weights()


def test_the_training_weights_are_saved_beside_the_others(tmp_path):
    model, average = averaged()
    before = model.get_weights()
    model.optimizer.to_evaluation()
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    other = small_model(optimizers.Adam(0.02, use_ema=True, ema_momentum=0.5))
    other.load_weights(tmp_path / "m.weights.h5")  # before its optimizer is built
    other.optimizer.build(other.trainable_variables)
    for again in (loaded, other):
        assert again.optimizer.holds_evaluation()
        assert_close(again.get_weights(), average, 0.0)
        again.optimizer.to_training()
        assert_close(again.get_weights(), before, 0.0)
    model.optimizer.to_training()
    model.save_weights(tmp_path / "trained.weights.h5")
    loaded.optimizer.to_evaluation()
    loaded.load_weights(tmp_path / "trained.weights.h5")
    assert not loaded.optimizer.holds_evaluation()


def test_weights_replaced_from_outside_stay():
    model, _ = averaged()
    model.optimizer.to_evaluation()
    best = [w * 2 for w in model.get_weights()]
    model.set_weights(best)
    model.optimizer.to_training()
    assert_close(model.get_weights(), best, 0.0)


def test_an_interrupted_exchange_is_mended():
    model, average = averaged()
    before = model.get_weights()
    model.optimizer.to_evaluation()
    model.set_weights(before[:1] + average[1:])
    model.optimizer.to_training()
    assert_close(model.get_weights(), before, 0.0)


def test_updates_on_the_evaluation_weights_are_noticed():
    model, _ = averaged()
    model.optimizer.to_evaluation()
    with pytest.warns(UserWarning, match="4 updates were made on the evaluation weights"):
        fit(model, epochs=1)
    assert not model.optimizer.holds_evaluation()


def test_the_last_window_is_applied_to_the_training_weights():
    def end(swap):
        variable = keras.Variable(np.array([1.0, 2.0], "float32"))
        optimizer = optimizers.SGD(0.5, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5)
        optimizer.build([variable])
        for _ in range(5):
            optimizer.apply([ops.ones(2)], [variable])
        if swap:
            optimizer.to_evaluation()
        optimizer.flush()
        assert optimizer.holds_evaluation() == swap
        optimizer.to_training()
        return ops.convert_to_numpy(variable)

    np.testing.assert_array_equal(end(True), end(False))
    np.testing.assert_array_equal(end(True), [-0.5, 0.5])


def test_an_optimizer_without_them_does_nothing():
    model = small_model(optimizers.SGD(0.1))
    fit(model, epochs=1)
    before = model.get_weights()
    assert not model.optimizer.offers_evaluation()
    model.optimizer.to_evaluation()
    assert not model.optimizer.holds_evaluation()
    assert_close(model.get_weights(), before, 0.0)


@register_transform
class Doubled(Transform):
    """Evaluates the double of what it trains."""

    factor: float = 2.0

    def leaf(self, update, parameter, state, context):
        return update, state

    def exchange(self, parameter, state, path, to_evaluation):
        return parameter * self.factor if to_evaluation else parameter / self.factor


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (chain(Doubled(), Doubled(4.0), ScaleByLearningRate()), [8.0, 8.0]),
        (chain(masked(Doubled(), "bias"), ScaleByLearningRate()), [1.0, 2.0]),
        (chain(masked(Doubled(), "bias", invert=True), ScaleByLearningRate()), [2.0, 1.0]),
        (partition([["bias", chain(Doubled(4.0), ScaleByLearningRate())]], ScaleByLearningRate()), [1.0, 4.0]),
    ],
    ids=["chain", "masked", "inverted", "partition"],
)
def test_transforms_of_transforms_hand_them_on(algorithm, expected):
    variables = [keras.Variable(np.ones(2, "float32"), name=name) for name in ("kernel", "bias")]
    optimizer = TransformOptimizer(0.1, algorithm)
    assert optimizer.offers_evaluation()
    optimizer.build(variables)
    optimizer.to_evaluation()
    assert [float(ops.convert_to_numpy(v)[0]) for v in variables] == expected
    for variable in variables:  # replaced by better ones
        variable.assign(variable.value * 3)
    optimizer.to_training()
    assert [float(ops.convert_to_numpy(v)[0]) for v in variables] == [3.0, 3.0]
    assert not TransformOptimizer(0.1, chain(ScaleByLearningRate())).offers_evaluation()


@pytest.mark.tensorflow
def test_on_two_replicas(two_replicas):
    with two_replicas.scope():
        model, average = averaged()
    before = model.get_weights()
    model.optimizer.to_evaluation()
    for variable, value in zip(model.trainable_variables, average, strict=True):
        for copy in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy.numpy(), value)
    model.optimizer.to_training()
    assert_close(model.get_weights(), before, 0.0)

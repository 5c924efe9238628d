"""Flat parameters, and what optimizers, losses, metrics and callbacks become of them: nothing is trained here."""

import pickle

import keras
import numpy as np
import pytest
from sklearn.base import clone

from keras_trainkit import optimizers
from keras_trainkit.tuning import KerasClassifier, KerasRegressor, Meta
from keras_trainkit.tuning.scikit_learn.models import fresh, make_loss, make_optimizer


def build(meta, units=4, epochs=None, fit=None):
    return keras.Sequential([keras.layers.Dense(units), keras.layers.Dense(meta.units)])


def anything(**arguments):
    return build(**arguments)


def test_arguments_of_the_function_are_parameters():
    estimator = KerasClassifier(build, units=8, optimizer__learning_rate=0.1, epochs=3, model__epochs=7)
    parameters = estimator.get_params()
    assert (parameters["units"], parameters["optimizer__learning_rate"], parameters["epochs"]) == (8, 0.1, 3)
    assert estimator._routed("model") == {"units": 8, "epochs": 7}
    assert estimator._routed("optimizer") == {"learning_rate": 0.1}
    assert clone(estimator).get_params() == parameters
    assert pickle.loads(pickle.dumps(estimator)).get_params() == parameters
    assert "units=8" in repr(estimator) and "optimizer__learning_rate=0.1" in repr(estimator)


def test_set_params_takes_the_function_first():
    def other(width):
        return build(width)

    estimator = KerasRegressor(build).set_params(width=3, model=other, loss__delta=2.0)
    assert estimator._routed("model") == {"width": 3} and estimator._routed("loss") == {"delta": 2.0}
    assert KerasRegressor(anything, whatever=1)._routed("model") == {"whatever": 1}


@pytest.mark.parametrize("name", ["unit", "meta", "model__unit", "optimiser__learning_rate", "fit", "_units", "units_"])
def test_a_name_that_nobody_takes(name):
    with pytest.raises(TypeError, match=name):
        KerasClassifier(build, **{name: 1})
    with pytest.raises(ValueError, match=name):
        KerasClassifier(build).set_params(**{name: 1})


def test_errors_offer_near_names():
    with pytest.raises(ValueError, match=r"Did you mean 'units'.*Valid parameters are: .*batch_size"):
        KerasClassifier(build).set_params(unitz=3)
    with pytest.raises(TypeError, match="model__fit"):
        KerasClassifier(build, fit=3)
    assert KerasClassifier(build, model__fit=3)._routed("model") == {"fit": 3}


def test_a_model_takes_no_arguments():
    with pytest.raises(TypeError, match="units"):
        KerasClassifier(build(Meta((2,), "binary", 1, 2)), units=3)


class Custom(optimizers.RAdam):
    pass


@pytest.mark.parametrize(
    ("identifier", "kind"),
    [
        (None, optimizers.Adam),
        ("RAdam", optimizers.RAdam),
        ("ftrl", keras.optimizers.Ftrl),
        (Custom, Custom),
        ({"name": "lion", "beta_1": 0.8}, optimizers.Lion),
        (keras.saving.serialize_keras_object(keras.optimizers.Adam(0.3)), keras.optimizers.Adam),
        (keras.optimizers.SGD(0.3, momentum=0.9), keras.optimizers.SGD),
        (lambda learning_rate: optimizers.AdamW(learning_rate, weight_decay=0.1), optimizers.AdamW),
    ],
)
def test_optimizers_are_made_anew(identifier, kind):
    made = make_optimizer(identifier, {"learning_rate": 0.25})
    assert type(made) is kind and made is not identifier
    assert float(keras.ops.convert_to_numpy(made.learning_rate)) == 0.25
    if isinstance(identifier, keras.optimizers.SGD):
        assert made.momentum == 0.9 and float(keras.ops.convert_to_numpy(identifier.learning_rate)) < 0.31


def test_an_optimizer_keeps_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    made = make_optimizer("adamw", {"learning_rate": schedule})
    assert made.get_config()["learning_rate"]["config"]["decay_steps"] == 10


def test_optimizers_that_cannot_be():
    with pytest.raises(TypeError, match="momentun"):
        make_optimizer(keras.optimizers.SGD(), {"momentun": 0.9})
    with pytest.raises(TypeError, match="`optimizer` must be"):
        make_optimizer(3, {})


def test_losses_take_arguments():
    assert make_loss("mae", {}, None) == "mae"
    for identifier in ("huber", keras.losses.Huber):
        assert float(make_loss(identifier, {"delta": 2.0}, None)(np.zeros((1, 1)), np.full((1, 1), 10.0))) == 18
    default = keras.losses.BinaryCrossentropy(from_logits=True)
    smoothed = make_loss(None, {"label_smoothing": 0.1}, default).get_config()
    assert (smoothed["label_smoothing"], smoothed["from_logits"]) == (0.1, True)
    assert make_loss(build, {}, None) is build
    with pytest.raises(ValueError, match="`loss` must name"):
        make_loss("no_such_loss", {"delta": 1}, None)
    with pytest.raises(TypeError, match="`loss` must be a name or a class"):
        make_loss(keras.losses.Huber(3.0), {"delta": 1}, None)


def test_metrics_and_callbacks_are_copies():
    metric, callback = keras.metrics.MeanSquaredError(name="m"), keras.callbacks.EarlyStopping(patience=3)
    made = fresh([metric, "mae", {"a": [callback]}, keras.callbacks.TerminateOnNaN])
    assert made[0] is not metric and made[0].name == "m" and made[1] == "mae"
    assert made[2]["a"][0] is not callback and made[2]["a"][0].patience == 3
    assert isinstance(made[3], keras.callbacks.TerminateOnNaN)

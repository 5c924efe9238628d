"""A metric that reaches a value."""

import warnings

import keras
import pytest
from steps import fit, model_of

from keras_trainkit import callbacks, optimizers
from keras_trainkit.callbacks import Threshold


class Metric(keras.callbacks.Callback):
    """Puts given values into the logs of the epochs."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values, self.epochs = name, values, 0

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]
        self.epochs = epoch + 1


def epochs(name, values, **arguments):
    metric, threshold = Metric(name, values), Threshold(name, **arguments)
    fit(model_of(optimizers.SGD(0.1)), metric, threshold, epochs=len(values), batches=1)
    return metric.epochs, threshold.reached


@pytest.mark.parametrize(
    ("name", "values", "arguments", "expected"),
    [
        ("val_accuracy", [0.5, 0.8, 0.9, 0.95], {"value": 0.9}, (3, 3)),
        ("val_loss", [0.5, 0.3, 0.2, 0.1], {"value": 0.3}, (2, 2)),
        ("val_loss", [0.5, 0.3, 0.2, 0.6], {"value": 0.6, "mode": "max"}, (4, 4)),
        ("val_loss", [0.5, 0.1, 0.5, 0.1, 0.1, 0.1], {"value": 0.2, "times": 2}, (5, 5)),
        ("val_loss", [float("nan"), float("-inf"), 0.5], {"value": 1.0}, (3, 3)),
        ("val_loss", [0.5, 0.4], {"value": 0.1}, (2, None)),
    ],
)
def test_it_stops(name, values, arguments, expected):
    assert epochs(name, values, **arguments) == expected


def test_it_warns_once_for_each_crossing_of_the_bad_side():
    with pytest.warns(UserWarning, match="past the threshold of 10") as seen:
        assert epochs("loss", [1.0, 20.0, 30.0, 5.0, 40.0], value=10, action="warn")[0] == 5
    assert [str(one.message)[:24] for one in seen if "threshold" in str(one.message)] == [
        "loss is 20 in epoch 2, p",
        "loss is 40 in epoch 5, p",
    ]


def test_it_raises():
    with pytest.raises(callbacks.ThresholdCrossed, match=r"accuracy is 0\.1 in epoch 2"):
        epochs("accuracy", [0.9, 0.1, 0.9], value=0.2, action="raise")


def test_in_the_middle_of_an_epoch():
    steps = fit(model_of(optimizers.SGD(0.1)), Threshold("loss", -0.15, each="batch"), batches=12)
    # The weight falls by 0.1 a step and is the loss; its mean so far is -0.05 times the steps before.
    assert len(steps) == 4
    plain = Threshold("loss", 1.0)
    assert getattr(plain.on_train_batch_end, "_is_default", False)  # or Keras reads the metrics at each step


def test_a_metric_that_is_not_there_is_said_once():
    with pytest.warns(UserWarning, match="no metric 'f1'") as seen:
        fit(model_of(optimizers.SGD(0.1)), Threshold("f1", 1.0), epochs=3, batches=1)
    assert len([one for one in seen if "f1" in str(one.message)]) == 1


def test_configuration_and_state():
    threshold = Threshold("loss", 2, "max", "warn", times=3, each="batch")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(threshold))
    assert again.get_config() == threshold.get_config()
    again.set_state({"row": 2, "reached": 5})
    assert again.get_state() == {"row": 2, "reached": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again._look({"loss": 1.0})
    assert again.get_state()["row"] == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"monitor": ""}, TypeError),
        ({"value": float("nan")}, ValueError),
        ({"mode": "up"}, ValueError),
        ({"action": "halt"}, ValueError),
        ({"times": 0}, ValueError),
        ({"each": "step"}, ValueError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error, match=f"`{next(iter(arguments))}`"):
        Threshold(**({"monitor": "loss", "value": 1.0} | arguments))

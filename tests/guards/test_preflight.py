"""A run before it begins: what is found, and that nothing is changed by looking."""

import io
import random

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_trainkit import callbacks, guards, optimizers, transforms
from keras_trainkit.core import backend
from keras_trainkit.guards import data_checks, model_checks

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(9)
CLASSES = 3


def make_model(optimizer=None, loss=None, metrics=("accuracy",), last=None, compiled=True):
    layers = [keras.layers.Dense(16, "relu", name="first"), keras.layers.BatchNormalization(name="norm"),
              keras.layers.Dropout(0.1), keras.layers.Dense(CLASSES, activation=last, name="last")]  # fmt: skip
    model = keras.Sequential([keras.Input((4,)), *layers])
    if compiled:
        loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=last is None)
        model.compile(optimizer or optimizers.AdamW(1e-3), loss, metrics=list(metrics))
    return model


def make_data(rows=64):
    x = RNG.normal(size=(rows, 4)).astype("float32")
    return x, np.argmax(x[:, :CLASSES], axis=1)


def look(model, x, y, **options):
    return guards.preflight(model, x, y, **{"overfit_steps": 0, "save": False} | options)


def names(findings):
    return [finding.name for finding in findings]


def bits(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [keras.ops.convert_to_numpy(v).tobytes() for v in variables]


def test_a_good_run_has_no_findings_and_nothing_changes_by_looking():
    model, data = make_model(), make_data()
    model.fit(*data, verbose=0)  # everything is built and has moved
    trained = model.train_function, model.optimizer, keras.layers.Dense(1).name
    before, generators = bits(model), (random.getstate(), np.random.get_state()[1].tobytes())
    report = guards.preflight(model, *data, overfit_steps=20)
    assert report.findings == [] and report.ok
    assert bits(model) == before
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == generators
    assert (model.train_function, model.optimizer) == trained[:2]
    assert (trained[2], keras.layers.Dense(1).name) == ("dense", "dense_1")


@pytest.mark.parametrize("shared_seeds", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fit_with_the_callback_ends_with_the_bits_of_one_without(shared_seeds):
    ends = []
    for listed in ([], [callbacks.PreflightCheck(overfit_steps=3)]):
        RNG.bit_generator.state = np.random.default_rng(9).bit_generator.state
        backend.forget_global_seeds()  # Keras 3.10 keeps them when the seed is set
        keras.utils.set_random_seed(3)
        model = make_model()
        if shared_seeds:
            keras.random.normal((2,))
        model.fit(*make_data(), epochs=2, verbose=0, batch_size=16, callbacks=listed)
        ends.append([bits(model), keras.ops.convert_to_numpy(keras.random.normal((3,))).tolist()])
    assert ends[0] == ends[1]
    assert listed[0].report.findings == []


LABELS = {
    "labels-out-of-range": ("SparseCategoricalCrossentropy", [0, 1, 3, 2]),
    "labels-negative": ("SparseCategoricalCrossentropy", [0, 1, -1, 2]),
    "labels-fractional": ("SparseCategoricalCrossentropy", [0.0, 1.0, 0.5, 2.0]),
    "labels-one-hot": ("SparseCategoricalCrossentropy", np.eye(CLASSES)[[0, 1, 2, 2]]),
    "labels-sparse": ("CategoricalCrossentropy", [[0], [1], [2], [2]]),
    "labels-no-distribution": ("CategoricalCrossentropy", np.ones((4, CLASSES))),
    "targets-shape": ("MeanSquaredError", [0.0, 1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_go_with_loss_and_output(name):
    loss, y = LABELS[name]
    logits = RNG.normal(size=(4, CLASSES))
    assert [f.name for f in data_checks.labels("y", loss, True, y, logits)] == [name]


@pytest.mark.parametrize(
    ("loss", "y"),
    [("SparseCategoricalCrossentropy", [0, 1, 2, 2]), ("SparseCategoricalCrossentropy", [[0.0], [1.0], [2.0], [2.0]]),
     ("CategoricalCrossentropy", np.eye(CLASSES)[[0, 1, 2, 2]]), ("BinaryCrossentropy", np.eye(CLASSES)[[0, 1, 2, 2]]),
     ("MeanSquaredError", np.ones((4, CLASSES)))],
)  # fmt: skip
def test_labels_that_do(loss, y):
    logits = RNG.normal(size=(4, CLASSES))
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert list(data_checks.labels("y", loss, True, y, logits)) == []
    assert list(data_checks.labels("y", loss, False, y, shares)) == []
    if loss != "MeanSquaredError":
        (first,) = data_checks.labels("y", loss, False, y, logits)
        (second,) = data_checks.labels("y", loss, True, y, shares)
        assert names([first, second]) == ["logits-taken-for-probabilities", "probabilities-taken-for-logits"]
    else:
        assert list(data_checks.labels("y", loss, False, [1.0, 2.0, 3.0, 4.0], logits[:, :1])) == []


def test_labels_that_the_loss_ignores():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    x, y = make_data()
    y[::7] = -1
    assert look(make_model(loss=loss, metrics=()), x, y).findings == []


def test_binary_labels():
    found = data_checks.labels("y", "BinaryCrossentropy", True, [-1, 1, 1, -1], RNG.normal(size=(4, 1)))
    assert [f.name for f in found] == ["labels-out-of-range"]


def test_values_of_the_whole_data_and_of_the_model():
    x, y = make_data()
    x[60, 1] = np.nan
    report = look(make_model(), x, y)
    assert report.names("error") == ["data-not-finite"] and "samples 60" in report.findings[0].line
    model = make_model()
    kernel = model.get_layer("last").kernel
    kernel.assign(kernel.value * np.nan)
    assert "forward-not-finite" in look(model, *make_data()).names("error")
    model = make_model(last="softmax", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert look(model, *make_data()).names("error") == ["probabilities-taken-for-logits"]
    report = look(make_model(optimizers.SGD(1e38)), x=np.full((8, 4), 1e10, "float32"), y=np.arange(8) % 3)
    assert "update-not-finite" in report.names("error")


def test_what_is_frozen():
    model, data = make_model(compiled=False), make_data()
    model.get_layer("first").trainable = False
    model.get_layer("last").trainable = False
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert names(model_checks.frozen(model)) == ["layers-frozen", "batch-normalization-trains"]
    model.get_layer("norm").trainable = False
    assert look(model, *data).names("error") == ["nothing-trainable"]
    model.get_layer("last").trainable = True
    assert names(model_checks.frozen(model)) == ["layers-frozen", "batch-normalization-frozen"]


def test_rules_that_take_no_variable():
    data = make_data()
    made = optimizers.AdamW(1e-3, weight_decay_exclude=["bias", "embedding"])
    (finding,) = model_checks.rules(make_model(made))
    assert (finding.severity, finding.name) == ("warning", "rule-without-variable") and "'embedding'" in finding.line
    inner = transforms.DecoupledDecay(0.01, exclude=["layer_norm"])
    assert names(model_checks.rules(make_model(optimizers.SGD(0.1, after=[inner])))) == ["rule-without-variable"]
    from keras_trainkit import core

    parts = core.partition([["attention", transforms.ScaleByLearningRate()]], transforms.ScaleByLearningRate())
    report = look(make_model(core.TransformOptimizer(1e-3, parts)), *data)
    assert report.names("error") == ["rule-without-variable"] and "attention" in report.findings[0].line


def test_masks_gradients_and_updates():
    from keras_trainkit.pruning import WeightMask

    model, data = make_model(optimizers.SGD(0.0)), make_data()
    assert look(model, *data).names("warning") == ["no-update"]
    layer = model.get_layer("first")
    layer.kernel.constraint = WeightMask(np.zeros(layer.kernel.shape, bool))
    assert [f.name for f in model_checks.rules(model)] == ["weight-mask-empty"]
    model = make_model()
    model.get_layer("first").bias.assign(np.full(16, -100.0))  # every unit is dead
    assert look(model, *data).names() == ["zero-gradient"]


def test_inputs_by_name_and_in_order():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], keras.layers.Dense(1)(keras.layers.Concatenate()([a, b])))
    model.compile("sgd", "mse")
    left, right = np.ones((8, 2), "float32"), np.ones((8, 3), "float32")
    y = np.ones((8, 1), "float32")
    assert look(model, [left, right], y).names() == []
    assert look(model, [right, left], y).names() == ["inputs-order"]
    assert look(model, {"b": right, "a": left}, y).names() == ["inputs-order"]
    assert look(model, {"b": right, "a": left}, y).ok
    assert look(model, {"b": right, "c": left}, y).names("error") == ["inputs-names"]
    assert look(model, [left], y).names() == ["inputs-count"]


def test_files_steps_that_fail_and_batches_that_are_not_learned():
    class Unknown(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return x * self.factor

    x, y = make_data()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(Unknown(2.0)(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert look(model, x, y, save=True).names() == ["file-fails"]
    model = make_model()
    assert look(model, np.ones((8, 5), "float32"), y[:8]).names("error") == ["step-fails"]
    cut = keras.Sequential([keras.Input((4,)), keras.layers.Dense(CLASSES)])
    cut.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    same, mixed = np.ones((16, 4), "float32"), np.arange(16) % 3
    cut.get_layer(index=0).kernel.assign(np.zeros((4, CLASSES)))
    assert look(cut, same, mixed, overfit_steps=40).names() == ["no-overfitting"]
    assert look(cut, x, y, overfit_steps=200).names() == []


def test_seeds_that_are_not_set(monkeypatch):
    monkeypatch.setattr(model_checks.backend, "seed_is_set", lambda: False)
    assert names(model_checks.seeds()) == ["seeds-unset"]


def test_the_callback_shows_and_raises(capsys):
    x, _ = make_data()
    model, check = make_model(), callbacks.PreflightCheck(overfit_steps=0, save=False)
    with pytest.raises(guards.PreflightError, match="labels-out-of-range"):
        model.fit(x, np.full(64, 7), verbose=0, callbacks=[check])
    assert "labels-out-of-range" in capsys.readouterr().out and int(model.optimizer.iterations) == 0
    shown = callbacks.PreflightCheck(action="show", overfit_steps=0, save=False)
    model.fit(x, np.full(64, 2), verbose=0, callbacks=[shown])
    assert shown.report.ok

    def batches():
        yield x[:8], np.full(8, 1)

    shown = callbacks.PreflightCheck(action="show", overfit_steps=0)
    model.fit(batches(), verbose=0, callbacks=[shown])
    assert shown.report.names() == ["no-batch"]
    shown = callbacks.PreflightCheck((x[:8], np.full(8, 1)), overfit_steps=0)
    model.fit(batches(), verbose=0, callbacks=[shown])
    assert shown.report.findings == []


@pytest.mark.slow
def test_two_replicas(two_replicas):
    keras.utils.set_random_seed(1)
    with two_replicas.scope():
        model = make_model(optimizers.AdamW(1e-3, gradient_accumulation_steps=2))
        model.optimizer.build(model.trainable_variables)
    before = [keras.ops.convert_to_numpy(v).tobytes() for v in [*model.variables, *model.optimizer.variables]]
    assert look(model, *make_data()).findings == []
    assert before == [keras.ops.convert_to_numpy(v).tobytes() for v in [*model.variables, *model.optimizer.variables]]


def test_a_report_as_a_table():
    report = guards.PreflightReport.of(
        [guards.Finding("note", "one", "do this"), guards.Finding("error", "two", "[that]")]
    )
    stream = io.StringIO()
    Console(file=stream, width=80).print(report)
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert ["error", "two", "[that]"] in lines and ["note", "one", "do", "this"] in lines
    assert lines.index(["error", "two", "[that]"]) < lines.index(["note", "one", "do", "this"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="must be compiled"):
        guards.preflight(make_model(compiled=False), *make_data())
    with pytest.raises(TypeError, match="`batch` must be a tuple"):
        callbacks.PreflightCheck([1])
    with pytest.raises(ValueError, match="overfit_steps=-1"):
        callbacks.PreflightCheck(overfit_steps=-1)
    made = callbacks.PreflightCheck(None, "show", 8, 5, False)
    assert callbacks.PreflightCheck.from_config(made.get_config()).get_config() == made.get_config()

"""The first value that is not finite: what Keras misses comes first, then what the guard sees, keeps and says."""

import json

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, guards, optimizers, precision
from keras_trainkit.cli.main import main
from keras_trainkit.guards import evidence

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(6)


@keras.saving.register_keras_serializable("tests")
class Root(keras.layers.Layer):
    """The root: its derivative at 0 is infinite, its value is not."""

    def call(self, x):
        return keras.ops.sqrt(x)


@keras.saving.register_keras_serializable("tests")
class Logarithm(keras.layers.Layer):
    def call(self, x):
        return keras.ops.log(x)


def make_model(optimizer=None, middle=None, activation="tanh", **options):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(3, activation=activation, name="first"), middle, keras.layers.Dropout(0.2),
              keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(1, name="last")]  # fmt: skip
    model = keras.Sequential([keras.Input((5,)), *[layer for layer in layers if layer is not None]])
    model.compile(optimizer or optimizers.SGD(0.01), "mse", **options)
    return model


def make_data(rows=32, bad=None):
    x = RNG.normal(size=(rows, 5)).astype("float32")
    if bad is not None:
        x[bad, 2] = np.nan
    return x, x[:, :1] * 0 + 1


def fit(model, guard, data, batch_size=4, before=(), after=(), **options):
    listed = [*before, guard, *after]
    model.fit(*data, batch_size=batch_size, shuffle=False, verbose=0, callbacks=listed, **options)
    return guard


class Keep(keras.callbacks.Callback):
    """All variables before each batch."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_begin(self, batch, logs=None):
        self.kept.append([v.numpy().copy() for v in self.model.variables])


class Spoil(keras.callbacks.Callback):
    """Puts a NaN into the first kernel before a batch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            kernel = self.model.get_layer("first").kernel
            value = kernel.numpy()
            value[0, 0] = np.nan
            kernel.assign(value)


def relu_model():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(3, activation="relu", name="first"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def test_terminate_on_nan_of_keras_misses_weights_behind_a_fused_relu_and_the_guard_sees_them(tmp_path):
    model, data = relu_model(), make_data()
    history = keras.callbacks.History()
    fit(model, keras.callbacks.TerminateOnNaN(), data, before=[Spoil(2), history])
    assert np.isnan(model.get_weights()[0]).any()
    assert np.isfinite(history.history["loss"]).all() and int(model.optimizer.iterations) == 8

    model = relu_model()
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path), data, before=[Spoil(2)])
    assert int(model.optimizer.iterations) == 4  # the batch that met it, and the one that had begun
    assert [(e["kind"], e["batch"], e["where"], e["layer"]) for e in guard.events] == [
        ("weights", 2, "weights", "first")
    ]
    assert guards.autopsy(tmp_path).weights == [model.get_layer("first").kernel.path]
    assert guards.autopsy(tmp_path).facts["weights_are"] == "of now"


def test_a_nan_in_the_data_is_traced_to_its_samples(tmp_path, capsys):
    model, keep = make_model(), Keep()
    x, y = make_data(bad=[13, 15])
    recipe = {"seed": 1}
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path, recipe=recipe), (x, y), after=[keep])
    (event,) = guard.events
    assert (event["where"], event["layer"], event["iterations"], event["batch"]) == ("data", "first", 3, 3)
    assert model.stop_training and "the data hold NaN" in capsys.readouterr().err
    found = guards.autopsy(event["path"])
    assert found.samples == {"x": [1, 3]} and found.weights == []
    with np.load(found.path / "batch.npz") as batch, np.load(found.path / "weights.npz") as weights:
        np.testing.assert_array_equal(batch["x"], x[12:16])
        np.testing.assert_array_equal(batch["y"], y[12:16])
        # Before the step: statistics and seeds, which the forward pass changes, too.
        for variable, value in zip(model.variables, keep.kept[3], strict=True):
            np.testing.assert_array_equal(weights[variable.path], value)
    configuration = json.loads((found.path / "configuration.json").read_text())
    assert configuration["recipe"] == recipe and configuration["optimizer"]["class_name"] == "SGD"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("middle", "activation", "where"),
    [(Logarithm(name="bad"), "tanh", "forward"), (Root(name="bad"), "relu", "backward")],
)
def test_the_layer_that_made_it_is_named(tmp_path, middle, activation, where):
    model = make_model(middle=middle, activation=activation)
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path), make_data())
    (event,) = guard.events
    assert (event["where"], event["layer"], event["iterations"]) == (where, "bad", 0)


def test_figures_of_the_replay_equal_those_of_the_step(tmp_path):
    """Forward by NumPy; the gradients of the replay are those that the compiled step had."""
    model = make_model(keras.optimizers.SGD(0.01), Root(name="bad"), "relu")
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path), make_data())
    facts = guards.autopsy(guard.events[0]["path"]).facts
    with (
        np.load(guard.events[0]["path"] + "/batch.npz") as batch,
        np.load(guard.events[0]["path"] + "/weights.npz") as w,
    ):
        kernel, bias = (w[v.path] for v in model.get_layer("first").weights)
        hidden = np.maximum(batch["x"] @ kernel + bias, 0)
    first = facts["layers"][0]["outputs"][0]
    assert first["rms"] == pytest.approx(np.sqrt((hidden.astype("float64") ** 2).mean()), rel=1e-5)
    assert first["zeros"] == pytest.approx((hidden == 0).mean())
    replayed = {path: about for layer in facts["layers"] for path, about in layer["weight_gradients"].items()}
    for gradient in facts["gradients"]:
        if gradient.get("rms") is not None:
            assert replayed[gradient["path"]]["rms"] == pytest.approx(gradient["rms"], rel=1e-4)
    assert facts["loss"] == pytest.approx(facts["replayed_loss"]["mean"], rel=1e-5)


def test_the_replay_leaves_no_trace(tmp_path):
    """Two equal runs, one with a dump on the way: the same bits in the end."""
    ends = []
    for guard in (callbacks.NonFiniteGuard(tmp_path, "continue"), keras.callbacks.Callback()):
        x, y = make_data()
        y[13] = np.nan
        model = make_model(optimizers.Adam(0.01, before=[_skip()]))
        fit(model, guard, (x, y), epochs=2)
        ends.append([v.numpy() for v in [*model.variables, *model.optimizer.variables]])
        np.random.default_rng()
        RNG.bit_generator.state = np.random.default_rng(6).bit_generator.state
    assert len(list(tmp_path.iterdir())) == 1
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def _skip():
    from keras_trainkit import transforms

    return transforms.SkipNonfinite()


def test_raise_and_several_dumps(tmp_path):
    guard = callbacks.NonFiniteGuard(tmp_path / "a", "raise")
    model = make_model()
    with pytest.raises(callbacks.NonFiniteError, match="samples 1"):
        fit(model, guard, make_data(bad=5))
    assert "train_step" not in vars(model)
    model, guard = make_model(), callbacks.NonFiniteGuard(tmp_path / "b", "continue", dumps=2)
    fit(model, guard, make_data(bad=5), steps_per_epoch=6)
    assert [event["iterations"] for event in guard.events] == [1, 2] and int(model.optimizer.iterations) == 6


@pytest.mark.parametrize("ours", [True, False])
def test_an_overflow_that_the_loss_scale_skips_is_no_event(tmp_path, ours):
    kind = precision.LossScaleOptimizer if ours else keras.optimizers.LossScaleOptimizer
    inner = optimizers.SGD(0.01) if ours else keras.optimizers.SGD(0.01)
    keras.config.set_dtype_policy("mixed_float16")
    model = make_model(kind(inner, initial_scale=2.0**24))
    start = float(keras.ops.convert_to_numpy(model.optimizer.initial_scale))
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path / "good"), make_data(64))
    assert guard.events == [] and float(keras.ops.convert_to_numpy(model.optimizer.dynamic_scale)) < start
    model = make_model(kind(inner.from_config(inner.get_config()), initial_scale=8.0))
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path / "bad"), make_data(bad=5))
    assert [event["where"] for event in guard.events] == ["data"]


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, optimizers.Adam])
def test_accumulation_and_steps_per_execution(tmp_path, optimizer):
    model = make_model(optimizer(0.01, gradient_accumulation_steps=2), steps_per_execution=4)
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path, every=3), make_data(64, bad=22), epochs=2)
    assert len(guard.events) == 1 and guard.events[0]["where"] == "data"
    assert guards.autopsy(tmp_path).samples == {"x": [2]}


@pytest.mark.parametrize("ours", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_value_on_one_of_two_replicas_is_an_event_for_both(tmp_path, two_replicas, ours):
    with two_replicas.scope():
        model = make_model(optimizers.SGD(0.01) if ours else keras.optimizers.SGD(0.01))
    x, y = make_data(32, bad=14)
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path), (x, y), batch_size=8)
    (event,) = guard.events
    assert (event["where"], event["layer"], event["iterations"]) == ("data", "first", 1)
    found = guards.autopsy(tmp_path)
    assert (found.facts["replica"], found.facts["shares"], found.samples) == (1, [4, 4], {"x": [6]})
    with np.load(found.path / "batch.npz") as batch:
        np.testing.assert_array_equal(batch["x"], x[8:16])


@pytest.mark.slow
def test_with_xla_a_flag_is_read(tmp_path):
    model = make_model(jit_compile=True)
    guard = fit(model, callbacks.NonFiniteGuard(tmp_path, look_every=2), make_data(bad=5))
    (event,) = guard.events
    assert event["kind"] == "loss or gradients" and int(model.optimizer.iterations) == 3
    assert guards.autopsy(tmp_path).facts["weights_are"] == "of now"


def test_dictionaries_eager_steps_and_a_step_of_ones_own(tmp_path):
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    output = keras.layers.Dense(1)(keras.layers.Concatenate()([a, b]))
    model = Own({"a": a, "b": b}, output)
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = make_data(8)
    x[5, 4] = np.inf
    fit(model, callbacks.NonFiniteGuard(tmp_path), ({"b": x[:, 2:], "a": x[:, :2]}, y))
    assert guards.autopsy(tmp_path).samples == {"x/b": [1]}


def test_nothing_is_read_and_nothing_left_when_all_is_well(tmp_path, monkeypatch):
    model, guard = make_model(), callbacks.NonFiniteGuard(tmp_path)
    monkeypatch.setattr("keras_trainkit.callbacks.nonfinite_guard.to_float", None)
    fit(model, guard, make_data(), epochs=2)
    assert guard.events == [] and not list(tmp_path.iterdir()) and "train_step" not in vars(model)
    plain = make_model()
    plain.fit(*make_data(), batch_size=4, shuffle=False, verbose=0, epochs=0)
    assert vars(plain).keys() == vars(model).keys()


def test_large_finite_values_are_no_event():
    large = keras.ops.convert_to_tensor(np.full(4, 1e30, "float32"))
    assert bool(evidence.all_finite([large])) and not bool(evidence.all_finite([large, large * 1e30]))
    assert bool(evidence.all_finite([keras.ops.zeros((2,), "int32"), None]))


def test_state_and_configuration():
    guard = callbacks.NonFiniteGuard("there", "raise", 3, 2, 5, {"a": 1})
    guard.events.append({"iterations": 3})
    again = callbacks.NonFiniteGuard.from_config(guard.get_config())
    again.set_state(guard.get_state())
    assert again.get_config() == guard.get_config() and again.events == guard.events


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"action": "hide"}, "`action` must be one of"), ({"every": 0}, "every=0"), ({"dumps": 0}, "dumps=0"),
     ({"look_every": 0}, "look_every=0")],
)  # fmt: skip
def test_bad_arguments_fail_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.NonFiniteGuard(**arguments)


def test_the_command(tmp_path, capsys):
    fit(make_model(middle=Logarithm(name="bad")), callbacks.NonFiniteGuard(tmp_path), make_data())
    capsys.readouterr()
    assert main(["autopsy", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "bad made the first value that is not finite" in " ".join(text.split()) and "Logarithm" in text
    assert main(["autopsy", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["where"], found["iterations"], found["weights_are"]) == ("forward", 0, "before the step")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no folder"), ("", "holds no event.json"), ("{", "cannot be read"), ("{}", "not of")],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys, content, words):
    folder = tmp_path / "dump"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "event.json").write_text(content)
    assert main(["autopsy", str(folder)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1

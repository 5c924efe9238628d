"""TrainingMonitor's lines of layers: norms and activations, against NumPy."""

import contextlib
import json

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, core, optimizers, precision, schedules, training, transforms

TENSORFLOW = pytest.mark.tensorflow
RNG = np.random.default_rng(11)
RATE = 0.1


def lines(directory, kind):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def make_model(optimizer, activation="relu", **compile_arguments):
    keras.utils.set_random_seed(4)
    layers = [
        keras.layers.Dense(6, activation=activation, name="low"),
        keras.layers.Dense(4, name="middle"),
        keras.layers.ReLU(name="rectified"),
        keras.layers.Dense(2, name="top"),
    ]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer, "mse", **compile_arguments)
    return model


def make_data(rows=24):
    return RNG.normal(size=(rows, 5)).astype("float32"), RNG.normal(size=(rows, 2)).astype("float32")


class Weights(keras.callbacks.Callback):
    """Keeps the weights before each batch, and at the end."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def keep(self):
        self.kept.append({v.path: keras.ops.convert_to_numpy(v).copy() for v in self.model.trainable_variables})

    def on_train_batch_begin(self, batch, logs=None):
        self.keep()

    def on_train_end(self, logs=None):
        self.keep()


def fit(model, directory, x, y, every=2, batch_size=4, **arguments):
    kept = Weights()
    monitor = callbacks.TrainingMonitor(directory, every=every, layers_every=every, tensorboard=False)
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[kept, monitor], **arguments)
    return kept.kept


def layer_norm(values, layer):
    return np.sqrt(sum((v.astype("float64") ** 2).sum() for path, v in values.items() if f"{layer}/" in path))


@pytest.mark.parametrize("case", ["plain", "accumulation", "mixed", "replicas", "compiled"])
def test_norms_by_layer(tmp_path, case, request):
    """SGD moves by rate times gradient, so the weights around an update say what each norm must be."""
    scope, accumulation, arguments = contextlib.nullcontext(), 2 if case == "accumulation" else 1, {}
    if case != "plain" and case != "accumulation" and keras.backend.backend() != "tensorflow":
        pytest.skip("these cases need Keras on TensorFlow")
    if case == "replicas":
        scope = request.getfixturevalue("two_replicas").scope()
    if case == "compiled":
        arguments = {"jit_compile": True}
    if case == "mixed":
        keras.config.set_dtype_policy("mixed_float16")
    with scope:
        optimizer = optimizers.SGD(RATE, gradient_accumulation_steps=accumulation)
        if case == "mixed":
            optimizer = precision.LossScaleOptimizer(optimizer, initial_scale=64.0)
        model = make_model(optimizer, **arguments)
    x, y = make_data(24)
    kept = fit(model, tmp_path, x, y)
    found = lines(tmp_path, "layers")
    updates = 6 // accumulation
    assert [line["step"] for line in found] == list(range(2, updates + 1, 2))
    for line in found:
        before, after = kept[(line["step"] - 1) * accumulation], kept[line["step"] * accumulation]
        moved = {path: after[path] - before[path] for path in before}
        assert len(line["layers"]) >= 3
        for layer, values in line["layers"].items():
            if "weight_norm" not in values:
                continue
            name = layer.rpartition("/")[2]
            assert values["weight_norm"] == pytest.approx(layer_norm(before, name), rel=1e-5)
            assert values["update_norm"] == pytest.approx(layer_norm(moved, name), rel=1e-3)
            assert values["gradient_norm"] == pytest.approx(layer_norm(moved, name) / RATE, rel=1e-3)
            ratio = values["update_norm"] / values["weight_norm"]
            assert values["update_to_weight_ratio"] == pytest.approx(ratio, rel=1e-6)
    steps = lines(tmp_path, "step")
    for line, whole in zip(found, steps, strict=True):
        squares = sum(v["gradient_norm"] ** 2 for v in line["layers"].values() if "gradient_norm" in v)
        assert squares == pytest.approx(whole["gradient_norm"] ** 2, rel=1e-5)


def test_a_layer_without_a_gradient_has_no_norms(tmp_path):
    class Unused(keras.layers.Layer):
        def build(self, shape):
            self.extra = self.add_weight(shape=(3,), name="extra")

        def call(self, inputs):
            return inputs

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), Unused(name="unused"), keras.layers.Dense(2, name="top")])
    model.compile(optimizers.SGD(RATE), "mse")
    x, y = make_data(16)
    if keras.backend.backend() == "tensorflow":
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            fit(model, tmp_path, x, y)
        layers = lines(tmp_path, "layers")[0]["layers"]
        unused = next(values for layer, values in layers.items() if layer.endswith("unused"))
        assert "gradient_norm" not in unused and "activation_mean" in unused
    else:
        fit(model, tmp_path, x, y)
        layers = lines(tmp_path, "layers")[0]["layers"]
        unused = next(values for layer, values in layers.items() if layer.endswith("unused"))
        assert unused["gradient_norm"] == 0 and unused["weight_norm"] > 0


def forward(weights, x):
    """The outputs of `make_model`, by layer."""
    (w1, b1, w2, b2, w3, b3) = (weight.astype("float64") for weight in weights)
    low = np.maximum(x @ w1 + b1, 0)
    middle = low @ w2 + b2
    rectified = np.maximum(middle, 0)
    return {"low": low, "middle": middle, "rectified": rectified, "top": rectified @ w3 + b3}


def check_outputs(line, expected, rectifying, rel=1e-5):
    found = {layer.rpartition("/")[2]: values for layer, values in line["layers"].items()}
    assert set(expected) <= set(found)
    for layer, outputs in expected.items():
        values, flat = found[layer], outputs.reshape(-1, outputs.shape[-1])
        assert values["activation_mean"] == pytest.approx(flat.mean(), rel=rel, abs=rel)
        assert values["activation_std"] == pytest.approx(flat.std(), rel=rel)
        assert values["zero_fraction"] == pytest.approx((flat == 0).mean(), abs=1e-6)
        assert ("dead_fraction" in values) is (layer in rectifying)
        if layer in rectifying:
            assert values["dead_fraction"] == pytest.approx((flat == 0).all(axis=0).mean(), abs=1e-6)


@TENSORFLOW
@pytest.mark.parametrize("case", ["plain", "executions", "accumulation", "replicas", "compiled", "eager", "own step"])
def test_activations(tmp_path, case, request):
    """Weights that stand still, so that the batches of the measured update are all that matters."""
    scope = request.getfixturevalue("two_replicas").scope() if case == "replicas" else contextlib.nullcontext()
    arguments = {"executions": {"steps_per_execution": 3}, "compiled": {"jit_compile": True}}.get(case, {})
    arguments |= {"run_eagerly": True} if case == "eager" else {}
    window = 2 if case == "accumulation" else 1
    with scope:
        optimizer = optimizers.SGD(0.0, gradient_accumulation_steps=window)
        if case == "own step":
            model = own_step_model(optimizer)
        else:
            model = make_model(optimizer, **arguments)
    weights = model.get_weights()
    weights[1][:2] = -100.0  # two units of six that are dead
    model.set_weights(weights)
    x, y = make_data(48)
    fit(model, tmp_path, x, y, every=3)
    found = lines(tmp_path, "layers")
    assert [line["step"] for line in found] == list(range(3, 12 // window + 1, 3))
    for line in found:
        last = 4 * window * line["step"]
        check_outputs(line, forward(weights, x[last - 4 * window : last]), {"low", "rectified"})
    assert found[0]["layers"] != found[1]["layers"] or case == "accumulation"
    assert "train_step" not in vars(model) and not any("call" in vars(layer) for layer in model.layers)
    model.save(tmp_path / "model.keras")


def own_step_model(optimizer):
    import tensorflow as tf

    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean((self(x, training=True) - y) ** 2)
            variables = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss}

    plain = make_model(optimizers.SGD(0.0))
    model = Own(plain.inputs, plain.outputs)
    model.compile(optimizer, "mse")
    return model


@TENSORFLOW
def test_masked_steps_do_not_count_and_loops_are_left_out(tmp_path):
    keras.utils.set_random_seed(2)
    ids = RNG.integers(0, 4, size=(12, 5))
    ids[:, 0] = 1
    layers = [
        keras.layers.Embedding(4, 3, mask_zero=True, name="table"),
        keras.layers.Dense(4, "relu", name="dense"),
        keras.layers.LSTM(3, name="memory"),
        keras.layers.Dense(1, name="top"),
    ]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
    model.compile(optimizers.SGD(0.0), "mse")
    table, kernel, bias = (layer_weights.astype("float64") for layer_weights in model.get_weights()[:3])
    fit(model, tmp_path, ids, np.zeros((12, 1), "float32"), every=1, batch_size=12)
    line = lines(tmp_path, "layers")[0]
    embedded = table[ids][ids != 0]
    check_outputs(line, {"table": embedded, "dense": np.maximum(embedded @ kernel + bias, 0)}, {"dense"})
    found = {layer.rpartition("/")[2]: values for layer, values in line["layers"].items()}
    assert "activation_std" in found["memory"], "the recurrent layer's own output is no loop's"
    assert not any("activation_std" in values for layer, values in line["layers"].items() if "cell" in layer)


@TENSORFLOW
def test_what_a_loop_calls_is_left_out(tmp_path):
    class Loop(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="loop")
            self.inside = keras.layers.Dense(5, "relu", name="inside")

        def build(self, shape):
            self.inside.build(shape)

        def call(self, inputs):
            return keras.ops.fori_loop(0, 3, lambda step, x: self.inside(x), inputs)

    model = keras.Sequential([keras.Input((5,)), Loop(), keras.layers.Dense(2, name="top")])
    model.compile(optimizers.SGD(0.01), "mse")
    fit(model, tmp_path, *make_data(16))
    layers = lines(tmp_path, "layers")[0]["layers"]
    found = {layer.rpartition("/")[2]: values for layer, values in layers.items()}
    assert found["inside"]["gradient_norm"] > 0 and "activation_std" not in found["inside"]
    assert found["top"]["activation_std"] > 0


@TENSORFLOW
def test_half_precision_is_summed_in_full(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = make_model(precision.LossScaleOptimizer(optimizers.SGD(0.0), initial_scale=64.0))
    weights = model.get_weights()
    x, y = make_data(24)
    fit(model, tmp_path, x, y, every=2, batch_size=4)
    line = lines(tmp_path, "layers")[0]
    check_outputs(line, {"low": forward(weights, x[4:8])["low"]}, {"low"}, rel=5e-3)


@TENSORFLOW
def test_helpers_and_other_callbacks_keep_working(tmp_path):
    """Another helper around the step, and a callback that has the train function made anew."""
    model = training.sam(make_model(optimizers.SGD(0.0, momentum=0.5)), rho=0.0)
    weights = model.get_weights()
    x, y = make_data(24)
    monitor = callbacks.TrainingMonitor(tmp_path, every=2, layers_every=2, tensorboard=False)
    momentum = callbacks.HyperparameterSchedule(momentum=schedules.Constant(0.5))
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[monitor, momentum])
    check_outputs(lines(tmp_path, "layers")[0], forward(weights, x[4:8]), {"low", "rectified"})
    training.plain(model)
    assert "train_step" not in vars(model) or model.train_step.__func__ is keras.Model.train_step


@TENSORFLOW
def test_layers_are_traced_once_and_cost_nothing_unasked(tmp_path):
    model = make_model(optimizers.SGD(RATE))
    x, y = make_data(24)
    monitor = callbacks.TrainingMonitor(tmp_path, every=2, layers_every=2, tensorboard=False)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[monitor])
    function = model.train_function
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[monitor])
    assert model.train_function is function
    assert [line["step"] for line in lines(tmp_path, "layers")] == [2, 4, 6, 8, 10, 12]
    plain = make_model(optimizers.SGD(RATE))
    plain.fit(x, y, batch_size=4, verbose=0, callbacks=[callbacks.TrainingMonitor(tmp_path / "plain", every=2)])
    names = [v.name for v in plain.optimizer.variables]
    assert "norms_by_variable" not in names and "piece_ratio" not in names
    assert lines(tmp_path / "plain", "layers") == []


def test_learning_rates_of_groups(tmp_path):
    """Rules of `partition` and factors by path, each with the rate that its variables move by."""
    adam = core.chain(transforms.ScaleByAdam(), transforms.ScaleByLearningRate())
    sgd = core.chain(transforms.Scale(0.5), transforms.ScaleByLearningRate())
    algorithm = core.partition([["low", adam]], default=sgd)
    optimizer = core.TransformOptimizer(0.2, algorithm, after=[transforms.ScaleByPath([["bias", 2.0]])])
    x, y = make_data(16)
    fit(make_model(optimizer), tmp_path, x, y)
    line = lines(tmp_path, "step")[0]
    rates = {name.removeprefix("learning_rate/"): v for name, v in line.items() if name.startswith("learning_rate/")}
    assert rates == pytest.approx({"low": 0.2, "low x2": 0.4, "rest": 0.1, "rest x2": 0.2})
    assert optimizer.learning_rates() == pytest.approx(rates)


def test_clip_ratio(tmp_path):
    x, y = make_data(16)
    fit(make_model(optimizers.SGD(0.1, global_clipnorm=0.25)), tmp_path / "clipped", x, y)
    for line in lines(tmp_path / "clipped", "step"):
        assert line["clip_ratio"] == pytest.approx(min(1.0, 0.25 / line["gradient_norm"]), rel=1e-5)
    fit(make_model(optimizers.SGD(0.1)), tmp_path / "free", x, y)
    assert all("clip_ratio" not in line for line in lines(tmp_path / "free", "step"))


def test_layers_every_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"`layers_every` must be a multiple of `every`, which is 10\. Received: l"):
        callbacks.TrainingMonitor(tmp_path, layers_every=15)

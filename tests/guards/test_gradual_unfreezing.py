"""Groups of layers that join one by one: what moves, what does not, and that the steps are those of a frozen model."""

import contextlib
import json
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import callbacks, optimizers, transforms

RNG = np.random.default_rng(8)
TENSORFLOW = pytest.mark.tensorflow


def make_model(optimizer, **options):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4, name="low"), keras.layers.BatchNormalization(name="norm"),
              keras.layers.Dense(3, "tanh", name="middle"), keras.layers.Dense(1, name="top")]  # fmt: skip
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer, "mse", **options)
    return model


PATTERNS = ["low|norm", "middle", "top"]


def make_data(rows=32):
    x = RNG.normal(size=(rows, 5)).astype("float32")
    return x, x[:, :1] * 2


def values(model):
    return {layer.name: [np.array(w) for w in layer.get_weights()] for layer in model.layers}


def moved(before, after):
    return {name for name in before if any((a != b).any() for a, b in zip(before[name], after[name], strict=True))}


class Moves(keras.callbacks.Callback):
    """The layers that moved in each batch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_begin(self, batch, logs=None):
        self.before = values(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(moved(self.before, values(self.model)))


def fit(model, listed, data=None, **options):
    model.fit(*(data or make_data()), batch_size=8, shuffle=False, verbose=0, callbacks=listed, **options)


ALL = {"low", "norm", "middle", "top"}


@TENSORFLOW
def test_groups_join_after_epochs_and_frozen_ones_do_not_move():
    model, moves = make_model(optimizers.SGD(0.01, weight_decay=0.1, use_ema=True)), Moves()
    guard = callbacks.GradualUnfreezing(PATTERNS)
    fit(model, [guard, moves], epochs=4)
    assert moves.found == [{"top"}] * 4 + [{"middle", "top"}] * 4 + [ALL] * 8
    assert [(e["group"], e["epoch"], e["layers"], e["parameters"]) for e in guard.events] == [
        (1, 1, ["middle"], 15), (0, 2, ["low", "norm"], 32)
    ]  # fmt: skip
    assert "train_step" not in vars(model) and all(v.trainable for v in model.get_layer("low").weights)


@TENSORFLOW
@pytest.mark.parametrize("kind", [keras.optimizers.SGD, optimizers.SGD])
def test_the_steps_are_those_of_a_model_that_was_frozen_and_compiled_by_hand(kind):
    data = make_data()
    model = make_model(kind(0.05))
    fit(model, [callbacks.GradualUnfreezing(PATTERNS)], data, epochs=3)
    by_hand = make_model(kind(0.05))
    for frozen in (["low", "norm", "middle"], ["low", "norm"], []):
        for layer in by_hand.layers:
            layer.trainable = layer.name not in frozen
        by_hand.compile(kind(0.05), "mse")
        fit(by_hand, [], data)
    for one, other in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@TENSORFLOW
def test_groups_join_after_updates_whatever_the_windows():
    model, moves = make_model(optimizers.SGD(0.01, gradient_accumulation_steps=2)), Moves()
    guard = callbacks.GradualUnfreezing(PATTERNS, at=[3, 5])
    fit(model, [moves, guard], make_data(64), epochs=2)
    assert moves.found[1::2] == [{"top"}] * 3 + [{"middle", "top"}] * 2 + [ALL] * 3
    assert [event["iterations"] for event in guard.events] == [3, 5]
    model = make_model(optimizers.SGD(0.01), steps_per_execution=2)
    guard = callbacks.GradualUnfreezing(at=2)
    fit(model, [guard], make_data(64), epochs=2)
    assert [event["iterations"] for event in guard.events] == [2, 4, 6] and guard.open == 4


@TENSORFLOW
def test_two_replicas_equal_one(two_replicas):
    ends, data = [], make_data()
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            keras.utils.set_random_seed(1)
            layers = [keras.layers.Dense(4, "tanh", name="low"), keras.layers.Dense(1, name="top")]
            model = keras.Sequential([keras.Input((5,)), *layers])
            model.compile(optimizers.Adam(0.01, after=[transforms.CountOwnUpdates()]), "mse")
        first = values(model)
        fit(model, [callbacks.GradualUnfreezing()], data)
        assert moved(first, values(model)) == {"top"}
        fit(model, [callbacks.GradualUnfreezing()], data, epochs=2)
        ends.append(model.get_weights())
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@TENSORFLOW
def test_files_in_between_are_of_a_model_that_trains_whole(tmp_path):
    model = make_model(optimizers.Adam(0.01, after=[transforms.CountOwnUpdates()]))
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, [callbacks.GradualUnfreezing(PATTERNS), saving], epochs=2)
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    assert all(layer.trainable for layer in loaded.layers) and len(loaded.optimizer.variables) == len(
        model.optimizer.variables
    )
    fit(loaded, [callbacks.GradualUnfreezing(PATTERNS)], epochs=2)


@TENSORFLOW
def test_a_second_fit_and_a_resumed_one_go_on():
    data = make_data()
    model, guard = make_model(optimizers.SGD(0.01)), callbacks.GradualUnfreezing(PATTERNS)
    fit(model, [guard], data)
    state = json.loads(json.dumps(guard.get_state()))
    fit(model, [guard], data)
    assert guard.open == 2 and guard.events[0]["epoch"] == 1
    again = callbacks.GradualUnfreezing.from_config(guard.get_config())
    again.set_model(model)
    again.on_train_begin()
    again.set_state(state)
    assert again.open == 1 and len(again._step.layers) == 3
    state["open"] = 2
    again.set_state(state)
    assert [layer.name for layer in again._step.layers] == ["low", "norm"]
    again.on_train_end()
    assert "train_step" not in vars(model)


@TENSORFLOW
@pytest.mark.parametrize("first", [True, False])
def test_beside_a_guard_in_any_order(tmp_path, first):
    model, moves = make_model(keras.optimizers.SGD(0.01)), Moves()
    guard = callbacks.NonFiniteGuard(tmp_path, "continue")
    unfreezing = callbacks.GradualUnfreezing(PATTERNS)
    x, y = make_data()
    x[30, 1] = np.nan
    fit(model, [unfreezing, guard, moves] if first else [guard, unfreezing, moves], (x, y))
    assert moves.found[0] == {"top"} and len(guard.events) == 1 and guard.events[0]["where"] == "data"


@TENSORFLOW
def test_nested_layers_and_layers_frozen_by_the_user():
    keras.utils.set_random_seed(1)
    inside = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(3, name="b")],
                              name="inside")  # fmt: skip
    fixed = keras.layers.Dense(3, name="fixed", trainable=False)
    model = keras.Sequential([keras.Input((5,)), inside, fixed, keras.layers.Dense(1, name="top")])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    start = [w.numpy() for w in model.weights]
    guard = callbacks.GradualUnfreezing(["a/", "b/", "top"])
    fit(model, [guard], epochs=2)
    changed = [v.path for v, w in zip(model.weights, start, strict=True) if (v.numpy() != w).any()]
    assert {path.split("/")[-2] for path in changed} == {"b", "top"} and not fixed.trainable
    assert [len(group) for group in guard._layers] == [1, 1, 1]


def late_adam(gradients, rate=0.1, late=20, after=()):
    """A parameter that joins after some updates of another one, with the kit's Adam."""
    keras.config.set_floatx("float32")
    early, joining = keras.Variable(np.zeros(3)), keras.Variable(np.zeros(3))
    optimizer = optimizers.Adam(rate, epsilon=1e-12, after=list(after))
    optimizer.build([early, joining])
    path = []
    for step, gradient in enumerate(gradients):
        tensor = ops.convert_to_tensor(gradient)
        if step < late:
            optimizer.apply([tensor], [early])
        else:
            optimizer.apply([tensor, tensor], [early, joining])
        path.append(ops.convert_to_numpy(joining).copy())
    return ops.convert_to_numpy(early), np.array(path)


def test_own_counts_equal_an_adam_that_counts_for_each_parameter():
    gradients = RNG.normal(size=(60, 3)).astype("float32")
    early, path = late_adam(gradients, after=[transforms.CountOwnUpdates()])
    expected = []
    for used in (gradients, gradients[20:]):
        weight, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
        for n, gradient in enumerate(used.astype("float64"), start=1):
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            weight -= 0.1 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-12)
        expected.append(weight)
    np.testing.assert_allclose(early, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path[-1], expected[1], rtol=1e-4, atol=1e-5)


def test_without_them_the_first_steps_are_too_long():
    """A constant gradient, of which Adam makes steps of one length: those of a late parameter grow to 6.6 times it."""
    steps = -np.diff(late_adam(np.ones((1060, 3), "float32"), late=1000)[1][999:, 0])
    factors = [(1 - 0.9**n) / np.sqrt(1 - 0.999**n) * np.sqrt(1 - 0.999 ** (1000 + n)) for n in range(1, 61)]
    np.testing.assert_allclose(steps, 0.1 * np.array(factors), rtol=1e-3)
    right = -np.diff(
        late_adam(np.ones((1060, 3), "float32"), late=1000, after=[transforms.CountOwnUpdates()])[1][999:, 0]
    )
    np.testing.assert_allclose(right, 0.1, rtol=1e-3)


@TENSORFLOW
def test_adam_without_own_counts_is_warned_of():
    data = make_data()
    with pytest.warns(UserWarning, match="CountOwnUpdates"):
        fit(make_model(keras.optimizers.Adam(0.01)), [callbacks.GradualUnfreezing()], data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        optimizer = optimizers.AdamW(0.01, after=[transforms.CountOwnUpdates()])
        fit(make_model(optimizer), [callbacks.GradualUnfreezing()], data)


@TENSORFLOW
def test_what_does_not_fit_the_model_is_an_error_when_training_begins():
    data = make_data()
    cases = [(["low", "top"], "Unmatched: `.*norm/gamma`"), (["low", "none", ""], "takes no variable")]
    for groups, words in cases:
        with pytest.raises(ValueError, match=words):
            fit(make_model("sgd"), [callbacks.GradualUnfreezing(groups)], data)
    with pytest.raises(ValueError, match="one time for each of the 3 groups"):
        fit(make_model("sgd"), [callbacks.GradualUnfreezing(at=[1])], data)
    model = make_model("sgd")
    model.get_layer("low").trainable = False
    fit(model, [], data)
    model.get_layer("low").trainable = True
    with pytest.raises(ValueError, match="built while some were frozen"):
        fit(model, [callbacks.GradualUnfreezing()], data)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"groups": ["a"]}, "at least two"), ({"groups": ["(", "a"]}, "regular expression"), ({"at": 0}, "at=0"),
     ({"at": "half"}, "at='half'"), ({"groups": ["a", "b"], "at": [1, 2]}, "but the top one"),
     ({"verbose": 2}, "verbose=2")],
)  # fmt: skip
def test_bad_arguments_fail_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.GradualUnfreezing(**arguments)

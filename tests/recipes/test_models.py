"""The default models, and the contract with the user's model function."""

import sys

import keras
import numpy as np
import pytest

from keras_trainkit.recipes import RecipeError, models


@pytest.mark.parametrize("input_shape", [(8, 8, 1), (28, 28, 3), (1, 5, 2), (9, 8, 1)])
def test_images_get_a_convnet_that_gives_logits(input_shape):
    model, _ = models.build(None, input_shape, 4)
    outputs = model(np.random.default_rng(0).normal(size=(3, *input_shape)).astype("float32"))
    assert model.name == "convnet" and tuple(outputs.shape) == (3, 4)
    assert float(keras.ops.min(outputs)) < 0


@pytest.mark.parametrize("input_shape", [(5,), (3, 4)])
def test_other_shapes_get_a_perceptron(input_shape):
    model, _ = models.build(None, input_shape, 1)
    assert model.name == "perceptron" and model.output_shape == (None, 1)


@pytest.mark.parametrize("input_shape", [(8, 8, 1), (5,)])
def test_the_head_stays_in_float32(input_shape):
    keras.config.set_dtype_policy("mixed_float16")
    model, _ = models.build(None, input_shape, 3)
    assert model.layers[-1].compute_dtype == "float32"
    assert {layer.compute_dtype for layer in model.layers if layer.weights} == {"float16", "float32"}


@pytest.mark.parametrize("input_shape", [(8, 8, 1), (5,)])
def test_the_twin_is_the_same_model_without_the_parts_of_the_kit(input_shape):
    model, twin = models.build(None, input_shape, 3)
    model.set_weights([np.random.default_rng(0).normal(size=weight.shape) for weight in model.get_weights()])
    twin.set_weights(model.get_weights())
    x = np.random.default_rng(1).normal(size=(4, *input_shape)).astype("float32")
    np.testing.assert_allclose(model(x, training=False), twin(x, training=False), rtol=1e-5, atol=1e-5)
    assert "keras_trainkit" in model.to_json()
    assert "keras_trainkit" not in twin.to_json()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working directory; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(text, name="user_net"):
        (tmp_path / f"{name}.py").write_text("import keras\n" + text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("user_net"):
            del sys.modules[name]


GOOD = """
def build(input_shape, outputs):
    assert type(input_shape) is tuple and type(outputs) is int
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(outputs)])
not_callable = 3
"""


def test_the_function_is_called_with_shape_and_outputs(module):
    module(GOOD)
    model, _ = models.build("user_net:build", (4, 4, 1), 7)
    assert model.built and tuple(model(np.zeros((1, 4, 4, 1))).shape) == (1, 7)


@pytest.mark.parametrize(
    ("spec", "text", "words"),
    [
        ("user_nett:build", GOOD, ["'user_nett'"]),
        ("user_net.deep:build", GOOD, ["user_net"]),
        ("user_net:biuld", GOOD, ["'biuld'", "'build'"]),
        ("user_net:not_callable", GOOD, ["not a function", "int"]),
        ("user_net:build", "import nothing_like_it", ["user_net", "nothing_like_it", "user_net.py, line 2"]),
        ("user_net:build", "def build(:", ["user_net", "SyntaxError"]),
        ("user_net:build", "def build(input_shape): return 1", ["failed", "TypeError"]),
        ("user_net:build", "def build(s, o):\n    raise KeyError('a\\nb')", ["KeyError", "user_net.py, line 3"]),
        ("user_net:build", "def build(s, o): return None", ["keras.Model", "NoneType"]),
        ("user_net:build", "def build(s, o): return keras.Sequential([keras.layers.Dense(o + 1)])", ["4", "5"]),
        (
            "user_net:build",
            "def build(s, o):\n    i = keras.Input((9,))\n    return keras.Model(i, keras.layers.Dense(o)(i))",
            ["inputs", "('batch', 3)"],
        ),
    ],
)
def test_a_function_that_breaks_the_contract_is_refused_in_one_line(module, spec, text, words):
    module(text)
    with pytest.raises(RecipeError) as caught:
        model = models.from_function(spec, (3,), 4)
        models.twin(model, (3,))
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_twin_has_the_weights_and_none_of_the_rest():
    model = models.perceptron((5,), 2)
    copy = models.twin(model, (5,))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    np.testing.assert_array_equal(model(x), copy(x))
    assert copy is not model and not copy.compiled
    copy.set_weights([weight * 0 for weight in copy.get_weights()])
    assert float(keras.ops.max(keras.ops.abs(model(x)))) > 0


SUBCLASS = """
@keras.saving.register_keras_serializable("user")
class Net(keras.Model):
    def __init__(self, outputs, **options):
        super().__init__(**options)
        self.outputs_ = outputs
        self.dense = keras.layers.Dense(outputs)
    def call(self, x):
        return self.dense(x)
    def get_config(self):
        return {**super().get_config(), "outputs": self.outputs_}
def build(input_shape, outputs):
    return Net(outputs)
"""


def test_a_subclassed_model_needs_get_config(module):
    module(SUBCLASS)
    model = models.from_function("user_net:build", (3,), 4)
    x = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    np.testing.assert_array_equal(models.twin(model, (3,))(x), model(x))

    module(SUBCLASS.replace("def get_config", "def other_name"), name="user_net_2")
    model = models.from_function("user_net_2:build", (3,), 4)
    with pytest.raises(RecipeError, match=r"could not be loaded again after saving.*get_config"):
        models.twin(model, (3,))

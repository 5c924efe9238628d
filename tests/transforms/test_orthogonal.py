"""Muon's parts: layouts, scales, and which variable goes where."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, transforms
from keras_trainkit.testing import reference
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper
from keras_trainkit.transforms.orthogonal import from_matrices, layout_of, matrix_shape, to_matrices

RNG = np.random.default_rng(12)


def steps(optimizer, initial, gradients, **options):
    return Stepper(optimizer, initial, **options).run(gradients)


def muon(rate=0.1, **arguments):
    return optimizers.Muon(rate, **({"head": None} | arguments))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 4), "io"),
        ((3, 4), "oi"),
        ((2, 2, 3, 4), "iiio"),
        ((3, 2, 4), "ioo"),
        ((2, 3, 4), "bio"),
        ((3, 2, 4), "ibo"),
    ],
)
def test_matrices_and_back(shape, layout):
    x = RNG.normal(size=shape)
    stack = to_matrices(ops.convert_to_tensor(x, WIDEST), layout)
    assert tuple(stack.shape[1:]) == matrix_shape(list(shape), layout)
    back = from_matrices(stack, list(shape), layout)
    np.testing.assert_allclose(ops.convert_to_numpy(back), x, rtol=1e-6)


def test_a_stack_holds_the_matrices_one_by_one():
    x = RNG.normal(size=(3, 2, 4))
    stack = ops.convert_to_numpy(to_matrices(ops.convert_to_tensor(x, WIDEST), "ibo"))
    for index in range(2):
        np.testing.assert_allclose(stack[index], x[:, index], rtol=1e-6)


def test_stacked_kernels_equal_the_twin_of_each():
    keras.config.set_floatx(WIDEST)
    initial = [RNG.normal(size=(3, 5, 4))]
    gradients = [[RNG.normal(size=(3, 5, 4))] for _ in range(5)]
    ours = steps(muon(layouts=[["p0", "bio"]]), initial, gradients)
    twin = reference.Twin(lambda: reference.Muon(stacked=True)).run(initial, gradients, 0.1)
    np.testing.assert_allclose(ours[0], twin[0], rtol=100 * EXACT, atol=100 * EXACT)
    flat = steps(muon(), initial, gradients)
    assert np.abs(flat[0] - ours[0]).max() > 0.01


@pytest.mark.parametrize(
    ("scale", "factor"),
    [
        ("original", lambda outputs, inputs: max(1, outputs / inputs) ** 0.5),
        ("rms", lambda outputs, inputs: 0.2 * max(outputs, inputs) ** 0.5),
        ("match_rms_adamw", lambda outputs, inputs: 0.2 * max(outputs, inputs) ** 0.5),
        ("spectral", lambda outputs, inputs: (outputs / inputs) ** 0.5),
    ],
)
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (2, 2, 2, 3)])
def test_scales_take_the_last_axis_for_the_output(scale, factor, shape):
    initial, gradients = [np.zeros(shape)], [[RNG.normal(size=shape)]]
    plain = steps(muon(scale="none"), initial, gradients)[0]
    scaled = steps(muon(scale=scale), initial, gradients)[0]
    outputs = shape[-1]
    inputs = int(np.prod(shape)) // outputs
    np.testing.assert_allclose(scaled, plain * factor(outputs, inputs), rtol=1e-5)


def test_scale_rms_gives_updates_of_the_size_of_adams():
    shape = (96, 24)
    moved = steps(muon(1.0, scale="rms"), [np.zeros(shape)], [[RNG.normal(size=shape)]])[0]
    assert 0.15 < np.sqrt(np.mean(moved**2)) < 0.24  # the paper's 0.2, where all singular values are 1


def test_a_torch_layout_is_the_transpose():
    initial, gradients = [RNG.normal(size=(5, 3))], [[RNG.normal(size=(5, 3))] for _ in range(3)]
    torch = steps(muon(layouts=[[".", "oi"]]), initial, gradients)[0]
    keras_way = steps(muon(), [p.T for p in initial], [[g.T for g in step] for step in gradients])[0]
    np.testing.assert_allclose(torch, keras_way.T, rtol=0, atol=max(EXACT, 1e-9) * 100)


def test_the_update_turns_with_the_problem():
    left, right = np.linalg.qr(RNG.normal(size=(5, 5)))[0], np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    initial, gradients = [RNG.normal(size=(5, 3))], [[RNG.normal(size=(5, 3))] for _ in range(4)]
    plain = steps(muon(), initial, gradients)[0]
    turned = steps(muon(), [left @ initial[0] @ right], [[left @ g @ right for g in step] for step in gradients])[0]
    np.testing.assert_allclose(turned, left @ plain @ right, rtol=0, atol=max(EXACT, 1e-9) * 100)
    scaled = steps(muon(), initial, [[1e3 * g for g in step] for step in gradients])[0]
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=max(EXACT, 1e-9) * 100)


@pytest.mark.parametrize(
    ("path", "shape", "layout"),
    [
        ("dense/kernel", [3, 4], "io"),
        ("block/attention/query/kernel", [8, 2, 4], "ioo"),
        ("block/attention/attention_output/kernel", [2, 4, 8], "iio"),
        ("query/kernel", [8, 4], "io"),
        ("conv1d/kernel", [3, 8, 4], "iio"),
    ],
)
def test_keras_layouts(path, shape, layout):
    assert layout_of(path, shape, []) == layout


def transformer():
    tokens = keras.Input((6,))
    x = keras.layers.Embedding(11, 8, name="tokens_embedding")(tokens)
    attended = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.LayerNormalization(name="norm")(x + attended)
    x = x + keras.layers.Dense(8, name="project")(keras.layers.Dense(16, name="expand")(x))
    return keras.Model(tokens, keras.layers.Dense(11, name="to_vocabulary")(x))


def test_a_transformer_is_shared_out():
    model = transformer()
    optimizer = optimizers.Muon(0.02)
    assert optimizer.routes == {}
    optimizer.build(model.trainable_variables)
    routes = optimizer.routes
    muons = {path for path, route in routes.items() if route == "muon"}
    kernels = ["attention/query", "attention/key", "attention/value", "attention/attention_output", "expand", "project"]
    assert muons == {f"{layer}/kernel" for layer in kernels}
    assert routes["tokens_embedding/embeddings"] == "adamw: an embedding"
    assert routes["to_vocabulary/kernel"] == "adamw: the last matrix"
    assert routes["attention/query/bias"] == routes["norm/gamma"] == "adamw: a vector"
    assert set(routes) == {v.path for v in model.trainable_variables}
    before = model.get_weights()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = RNG.integers(0, 11, (8, 6))
    model.fit(data, data, batch_size=4, verbose=0)
    moved = [np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)]
    assert min(moved) > 0 and all(np.isfinite(w).all() for w in model.get_weights())


def routes_of(variables, **arguments):
    made = [keras.Variable(np.zeros(shape), name="v") for shape in variables.values()]
    named = [Named(path, variable) for path, variable in zip(variables, made, strict=True)]
    rule = optimizers.Muon(0.02, **arguments)._rule
    return rule.routes(named)


class Named:
    """A variable of a chosen path."""

    def __init__(self, path, variable):
        self.path, self.shape = path, variable.shape


BODY = {"a/kernel": (3, 4), "b/kernel": (4, 4)}


@pytest.mark.parametrize("layer", ["head", "lm_head", "head_1", "logits", "predictions", "classifier", "box_head"])
def test_heads_are_known_by_name(layer):
    routes = routes_of({f"net/{layer}/kernel": (4, 2)} | BODY)
    assert routes == {f"net/{layer}/kernel": "a head", "a/kernel": "matrix", "b/kernel": "matrix"}


@pytest.mark.parametrize("path", ["multi_head_attention/query/kernel", "header/kernel", "attention_output/kernel"])
def test_no_heads(path):
    assert routes_of({path: (4, 4)} | BODY)[path] == "matrix"


def test_the_user_changes_the_rule():
    assert routes_of(BODY)["b/kernel"] == "the last matrix"
    assert routes_of(BODY, head=None)["b/kernel"] == "matrix"
    assert routes_of(BODY, head="^a/") == {"a/kernel": "a head", "b/kernel": "matrix"}
    assert routes_of(BODY, head=None, exclude_layers=["^b"])["b/kernel"] == "matches '^b'"
    embedded = {"embedding/embeddings": (9, 4)} | BODY
    assert routes_of(embedded)["embedding/embeddings"] == "an embedding"
    assert routes_of(embedded, exclude_embeddings=False)["embedding/embeddings"] == "matrix"


def test_a_lone_matrix_is_no_head():
    assert routes_of({"dense/kernel": (5, 3), "dense/bias": (3,)})["dense/kernel"] == "matrix"


@pytest.mark.parametrize(
    ("path", "shape", "reason"),
    [
        ("dense/kernel", (5, 1), "a vector"),
        ("token", (1, 1, 7), "a vector"),
        ("query/bias", (2, 4), "a vector"),
        ("norm/gamma", (2, 4), "a vector"),
        ("temperature", (), "a vector"),
        ("depthwise_conv2d/kernel", (3, 3, 8, 1), "depthwise"),
        ("separable/depthwise_kernel", (3, 3, 8, 2), "depthwise"),
        ("patch_embedding/kernel", (4, 4, 3, 8), "an embedding"),
    ],
)
def test_what_is_no_matrix(path, shape, reason):
    assert routes_of({path: shape} | BODY)[path] == reason


def test_variables_of_one_path_share_the_route():
    twice = [Named("w", keras.Variable(np.zeros(shape))) for shape in [(3, 4), (4,)]]
    assert optimizers.Muon()._rule.routes(twice) == {"w": "a vector"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"exclude_layers": ["nowhere"]}, "nowhere"),
        ({"head": "nowhere"}, "nowhere"),
        ({"layouts": [["a/kernel", "bio"]]}, "bio"),
    ],
)
def test_a_rule_that_takes_nothing_is_an_error(arguments, word):
    with pytest.raises(ValueError, match=word):
        routes_of(BODY, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": "orignal"},
        {"coefficients": [1.0, 2.0]},
        {"ns_steps": 0},
        {"ns_dtype": "float16"},
        {"layouts": [["kernel", "xy"]]},
        {"layouts": [["(", "io"]]},
        {"layouts": [["kernel", "oo"]]},
        {"exclude_layers": ["("]},
        {"head": "("},
        {"adam_lr_ratio": 0.0},
        {"momentum": 1.0},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        optimizers.Muon(0.02, **arguments)


def test_lists_survive_the_configuration():
    arguments = {"coefficients": [2.0, -1.5, 0.5], "layouts": [["p0", "oi"]], "exclude_layers": ["p1"], "head": "p2"}
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizers.Muon(**arguments))))
    again = keras.optimizers.deserialize(config)
    assert {name: again.get_config()[name] for name in arguments} == arguments


def test_transforms_stand_alone():
    initial, gradients = [RNG.normal(size=(4, 3))], [[RNG.normal(size=(4, 3))]]
    before = [transforms.AverageGradient(0.95, True), transforms.Orthogonalize()]
    alone = steps(optimizers.SGD(0.1, before=before), initial, gradients)[0]
    np.testing.assert_allclose(alone, steps(muon(), initial, gradients)[0], rtol=1e-6)

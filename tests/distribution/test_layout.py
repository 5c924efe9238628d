"""What `layout_for` proposes, counts and refuses; it needs no devices beyond those there are."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from keras_trainkit import optimizers
from keras_trainkit.distribution import layout_for

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution is for JAX: tox -e jax")
MESH = {"batch": 2, "model": 4}


def stack(*parts, inputs=16):
    """A function that makes a sequential model."""
    return lambda: keras.Sequential([keras.Input((inputs,)), *[make() for make in parts]])


def dense(units, name=None, **options):
    return lambda: layers.Dense(units, name=name, **options)


def chosen(layout):
    return {v.path.partition("/")[2] or v.path: (v.axes, v.rule) for v in layout.variables}


def rules(layout):
    """By layer, the rule of its kernel or embeddings."""
    found = [(v.path.split("/")[-2], v.rule) for v in layout.variables if v.path.endswith(("kernel", "embeddings"))]
    return dict(found)


def attention(heads=4, **options):
    def make():
        stream = keras.Input((6, 8))
        return keras.Model(stream, layers.MultiHeadAttention(heads, 5, name="attention", **options)(stream, stream))

    return make


def test_other_backends_are_refused():
    if keras.backend.backend() == "jax":
        pytest.skip("Keras runs on JAX")
    with pytest.raises(RuntimeError, match=r"needs Keras on JAX .*works on no other backend"):
        layout_for(stack(dense(4)), MESH)


@on_jax
def test_dense_layers_alternate():
    layout = layout_for(stack(dense(32, "a"), dense(16, "b"), dense(32, "c"), dense(8, "d")), MESH)
    assert rules(layout) == {"a": "columns", "b": "rows", "c": "columns", "d": "rows"}
    found = chosen(layout)
    assert found["a/kernel"][0] == (None, "model") and found["a/bias"][0] == ("model",)
    assert found["b/kernel"][0] == ("model", None) and found["b/bias"] == ((None,), "whole")


@on_jax
def test_rows_follow_columns_only_through_what_has_no_weights():
    make = stack(
        dense(16, "a"), lambda: layers.Dropout(0.1), lambda: layers.ReLU(), dense(16, "b"), dense(16, "c"),
        layers.LayerNormalization, dense(16, "d")
    )  # fmt: skip
    assert rules(layout_for(make, MESH)) == {"a": "columns", "b": "rows", "c": "columns", "d": "columns"}


@on_jax
def test_gated_perceptrons_meet_in_rows():
    def make():
        x = keras.Input((8,))
        gate, up = layers.Dense(32, "silu", name="gate")(x), layers.Dense(32, name="up")(x)
        return keras.Model(x, layers.Dense(8, name="down")(gate * up))

    assert rules(layout_for(make, MESH)) == {"gate": "columns", "up": "columns", "down": "rows"}


@on_jax
def test_dense_with_a_layer_as_activation_is_split():
    assert rules(layout_for(stack(dense(8, "a", activation=layers.LeakyReLU())), MESH)) == {"a": "columns"}


@on_jax
def test_layers_inside_of_layers_keep_their_order():
    inner = stack(dense(32, "a"), dense(16, "b"))
    make = stack(inner, lambda: inner(), dense(8, "c"))
    assert rules(layout_for(make, MESH)) == {"a": "columns", "b": "rows", "c": "columns"}


@on_jax
@pytest.mark.parametrize("options", [{}, {"value_dim": 3, "output_shape": (7,), "use_bias": False}])
def test_attention_is_split_by_heads(options):
    found = chosen(layout_for(attention(**options), MESH))
    for part in ("query", "key", "value"):
        assert found[f"{part}/kernel"] == ((None, "model", None), "heads")
        if not options:
            assert found[f"{part}/bias"] == (("model", None), "heads")
    assert found["attention_output/kernel"] == (("model", None, None), "heads")
    if not options:
        assert found["attention_output/bias"] == ((None,), "whole")


@on_jax
def test_grouped_attention_with_fewer_keys_than_devices():
    def make():
        stream = keras.Input((6, 8))
        return keras.Model(stream, layers.GroupQueryAttention(3, 8, 2, name="attention")(stream, stream))

    with pytest.raises(ValueError, match=r"'attention/key/kernel' has 2 heads"):
        layout_for(make, MESH)
    found = rules(layout_for(make, MESH, indivisible="replicate"))
    assert found == {"query": "heads", "key": "whole", "value": "whole", "attention_output": "heads"}


@on_jax
@pytest.mark.parametrize(
    ("size", "width", "axes", "rule"), [(12, 8, ("model", None), "vocabulary"), (13, 8, (None, "model"), "features")]
)
def test_embeddings_by_vocabulary_or_else_features(size, width, axes, rule):
    def make():
        return keras.Sequential([keras.Input((3,)), layers.Embedding(size, width)])

    assert chosen(layout_for(make, MESH))["embedding/embeddings"] == (axes, rule)


@on_jax
def test_the_rest_is_whole():
    def make():
        return keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(8, 3), layers.BatchNormalization()])

    assert {v.rule for v in layout_for(make, MESH).variables} == {"whole"}
    split = layout_for(make, MESH, rules={"conv2d": "column"})
    assert chosen(split)["conv2d/kernel"] == ((None, None, None, "model"), "columns")
    assert chosen(split)["conv2d/bias"] == (("model",), "columns")


@on_jax
def test_rules_of_the_user_come_first():
    make = stack(dense(32, "a"), dense(16, "b"), dense(8, "c"))
    layout = layout_for(make, MESH, rules={"/a/": "row", "b|c": "replicate"})
    assert rules(layout) == {"a": "rows", "b": "whole", "c": "whole"}
    assert rules(layout_for(make, MESH, rules={"/b/": "column"})) == {"a": "columns", "b": "columns", "c": "rows"}
    assert {v.rule for v in layout_for(attention(), MESH, rules={"attention": "replicate"}).variables} == {"whole"}


@on_jax
@pytest.mark.parametrize(
    ("make", "path", "hint"),
    [
        (stack(dense(10, "head")), r"head/kernel' has 10 columns", r'head\': "replicate" or "row"'),
        (attention(6), r"'attention/query/kernel' has 6 heads", r'\'attention/query\': "replicate"\}'),
    ],
)
def test_an_axis_that_does_not_divide_is_an_error_that_says_what_helps(make, path, hint):
    with pytest.raises(ValueError, match=rf"`mesh` must divide .*{path}.*4 devices.*{hint}.*Received"):
        layout_for(make, MESH)
    assert {v.rule for v in layout_for(make, MESH, indivisible="replicate").variables} == {"whole"}


@on_jax
def test_what_the_hint_says_helps():
    make = stack(dense(10, "head"))
    for rule in ("replicate", "row"):
        layout_for(make, MESH, rules={"sequential/head": rule})


@on_jax
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"mesh": {"model": 4}}, ValueError, r"`mesh` must have two axes.*Received"),
        ({"mesh": {"batch": 2, "model": 0}}, ValueError, r"`mesh\['model'\]` must be an integer at least 1"),
        ({"mesh": 8}, ValueError, r"`mesh` must have two axes.*Received: mesh=8"),
        ({"model": 8}, TypeError, r"`model` must be a keras.Model, or a function.*model=8"),
        ({"model": lambda: 8}, TypeError, r"`model` must be a function that returns a keras.Model"),
        ({"model": lambda: keras.Sequential([layers.Dense(4)])}, ValueError, r"`model` must be built"),
        ({"model": lambda: optimizers.SGD(0.1)}, ValueError, r"`model` makes a variable from a value"),
        ({"optimizer": keras.optimizers.Adafactor()}, ValueError, r"`optimizer` makes a variable .*take the kit's"),
        ({"optimizer": "adam"}, TypeError, r"`optimizer` must be an optimizer. Received: optimizer='adam'"),
        ({"rules": {"kernel": "rows"}}, ValueError, r"`rules` must be one of 'column', 'row', 'replicate'"),
        ({"rules": {"nowhere": "row"}}, ValueError, r"'nowhere' is found nowhere"),
        ({"model": attention(), "rules": {"attention": "row"}}, ValueError, r"`rules` can have attention replicated"),
        ({"model": stack(layers.LayerNormalization), "rules": {"norm": "row"}}, ValueError, r"has none"),
        ({"indivisible": "ignore"}, ValueError, r"`indivisible` must be one of 'error', 'replicate'"),
    ],
)  # fmt: skip
def test_refusals(changes, kind, message):
    with pytest.raises(kind, match=message):
        layout_for(**({"model": stack(dense(8)), "mesh": MESH} | changes))


@on_jax
def test_bytes_by_hand():
    make = stack(dense(32, "a"), dense(4, "b"))  # 16 x 32 + 32 by columns, 32 x 4 by rows, 4 whole
    layout = layout_for(make, MESH, optimizer=optimizers.Adam(1e-3, use_ema=True, gradient_accumulation_steps=2))
    split, whole = 4 * ((16 * 32 + 32 + 32 * 4) // 4 + 4), 4 * (16 * 32 + 32 + 32 * 4 + 4)
    here, one = layout.bytes_per_device, layout.bytes_unsplit
    assert (here.parameters, here.gradients, one.parameters, one.gradients) == (split, split, whole, whole)
    # Two moments, the average and the accumulator; a few counters beside them.
    assert 0 < here.slots - 4 * split == one.slots - 4 * whole < 64
    assert here.total == here.parameters + here.gradients + here.slots
    shown = str(layout)
    assert "batch 2 x model 4 = 8 devices" in shown and "slots of Adam" in shown and f"{one.total:,}" in shown
    assert "sequential/a/kernel" in shown and "-, model" in shown


@on_jax
@pytest.mark.parametrize("rate", [lambda: 1e-3, keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)])
def test_rates_that_are_no_numbers(rate):
    layout = layout_for(stack(dense(8)), MESH, optimizer=optimizers.SGD(rate, momentum=0.9))
    assert layout.bytes_per_device.slots > layout.bytes_per_device.parameters


@on_jax
def test_half_precision_and_frozen_layers_count_as_what_they_are():
    make = stack(dense(32, "a", dtype="bfloat16"), dense(4, "b", trainable=False))
    here = layout_for(make, MESH).bytes_per_device
    assert here.parameters == (2 * (16 * 32 + 32) + 4 * 32 * 4) // 4 + 4 * 4
    assert here.gradients == 2 * (16 * 32 + 32) // 4 and here.slots == 0


@on_jax
def test_a_model_on_paper_leaves_no_trace():
    keras.utils.set_random_seed(1)
    make, state = stack(dense(8), lambda: layers.Dropout(0.1)), random.getstate()
    layout = layout_for(make, MESH, optimizer=optimizers.AdamW(1e-3))
    assert random.getstate() == state
    model = make()
    assert [v.path for v in layout.variables] == [v.path for v in model.variables]
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    for ours, theirs in zip(model.get_weights(), make().get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_jax
def test_a_layout_for_more_devices_than_there_are_can_be_printed_alone():
    layout = layout_for(stack(dense(1024)), {"batch": 64, "model": 256})
    assert "16384 devices" in str(layout) and layout.bytes_per_device.parameters == 4 * (16 + 1) * 4
    with pytest.raises(RuntimeError, match=r"for 16384 devices, and JAX has \d+ here"):
        layout.distribution()


@on_jax
def test_a_model_with_other_names_or_made_without_the_distribution_is_told():
    make = stack(dense(8), inputs=4)
    layout = layout_for(make, {"batch": 1, "model": 2})
    model = make()
    with pytest.raises(ValueError, match=r"'sequential/dense/kernel', .* must be made after"):
        layout.check(model)
    with pytest.raises(ValueError, match=r"does not know 'sequential_1/dense_1/kernel'"):
        layout.check(make())
    keras.utils.clear_session()
    keras.distribution.set_distribution(layout.distribution())
    try:
        layout.check(make())
        keras.utils.clear_session()
        keras.distribution.set_distribution(layout.distribution())
        layout.check(stack(dense(8), lambda: layers.Dropout(0.1), inputs=4)())  # seeds are no weights
    finally:
        keras.distribution.set_distribution(None)


@on_jax
def test_it_is_a_layout_map():
    layout = layout_for(stack(dense(8)), {"batch": 1, "model": 2})
    assert keras.distribution.ModelParallel(layout_map=layout).batch_dim_name == "batch"
    assert layout["sequential/dense/kernel"].axes == (None, "model") and layout["other/kernel"] is None
    layout[".*dense/output"] = ("batch", "model")
    assert layout["sequential/dense/output"].axes == ("batch", "model")
    assert len(layout) == 3 and list(layout)[-1] == ".*dense/output"
    assert repr(layout) == "<ModelLayout of 2 variables, 2 of them split, on batch 1 x model 2 = 2 devices>"

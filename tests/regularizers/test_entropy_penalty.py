"""The confidence penalty: values, batches, logits, zeros, and what it does to a classifier."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from slopes import by_differences, compiled, gradient

from keras_trainkit.core import backend
from keras_trainkit.regularizers import EntropyPenalty

RNG = np.random.default_rng(53)


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def entropy(p, axis=-1):
    return -(p * np.log(p)).sum(axis=axis)


def together(of_samples):
    """A sum, which Keras divides by the batch; the mean, where it does not."""
    return of_samples.sum() if backend.divides_activity_penalties() else of_samples.mean()


LOGITS = (2 * RNG.normal(size=(4, 3, 5))).astype("float32")


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("factor", [0.3, -0.2])
def test_the_value_is_a_sum_over_samples_of_means_over_positions(axis, factor):
    p = softmax(LOGITS.astype("float64"), axis)
    expected = -factor * together(entropy(p, axis).mean(axis=1))
    logits, probabilities = (ops.convert_to_tensor(v.astype("float32")) for v in (LOGITS, p))
    assert float(EntropyPenalty(factor, from_logits=True, axis=axis)(logits)) == pytest.approx(expected, rel=1e-5)
    assert float(EntropyPenalty(factor, axis=axis)(probabilities)) == pytest.approx(expected, rel=1e-5)


def test_binary_probabilities_stand_alone():
    p = 1 / (1 + np.exp(-LOGITS.astype("float64")))
    expected = -0.1 * together((-(p * np.log(p)) - (1 - p) * np.log1p(-p)).mean(axis=(1, 2)))
    logits, probabilities = (ops.convert_to_tensor(v.astype("float32")) for v in (LOGITS, p))
    assert float(EntropyPenalty(from_logits=True, binary=True)(logits)) == pytest.approx(expected, rel=1e-5)
    assert float(EntropyPenalty(binary=True)(probabilities)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"from_logits": True}, {"binary": True}, {"from_logits": True, "binary": True}]
)
def test_the_slope_is_that_of_the_twin(options):
    value = LOGITS[:, 0] if options.get("from_logits") else softmax(LOGITS[:, 0])

    def twin(v):
        if options.get("binary"):
            p = 1 / (1 + np.exp(-v)) if "from_logits" in options else v
            return -0.1 * together((-(p * np.log(p)) - (1 - p) * np.log1p(-p)).mean(axis=1))
        return -0.1 * together(entropy(softmax(v) if "from_logits" in options else v))

    np.testing.assert_allclose(gradient(EntropyPenalty(**options), value), by_differences(twin, value), atol=2e-4)


def test_bounds_are_those_of_the_entropy():
    uniform, certain = np.full((1, 7), 1 / 7, "float32"), np.eye(7, dtype="float32")[:1]
    assert float(EntropyPenalty(1.0)(ops.convert_to_tensor(uniform))) == pytest.approx(-np.log(7), rel=1e-6)
    assert float(EntropyPenalty(1.0)(ops.convert_to_tensor(certain))) == 0


@pytest.mark.parametrize(
    "options", [{}, {"from_logits": True}, {"binary": True}, {"from_logits": True, "binary": True}]
)
def test_extremes_have_finite_slopes(options):
    if options.get("from_logits"):
        value = np.array([[1e4, -1e4, 0.0], [3e38, -3e38, 0.0], [0.0, 0.0, 0.0]], "float32")
    else:
        value = np.array([[1.0, 0.0, 0.0], [1.0, 1e-38, 1e-45], [0.5, 0.5, 0.0]], "float32")
    penalty = EntropyPenalty(**options)
    assert np.isfinite(float(penalty(ops.convert_to_tensor(value))))
    assert np.isfinite(gradient(penalty, value)).all()


def test_a_masked_class_counts_nothing():
    value = np.array([[1.0, 2.0, -np.inf]], "float32")
    penalty = EntropyPenalty(from_logits=True)
    expected = float(penalty(ops.convert_to_tensor(value[:, :2])))
    assert float(penalty(ops.convert_to_tensor(value))) == pytest.approx(expected, rel=1e-6)
    slope = gradient(penalty, value)
    assert np.isfinite(slope).all() and slope[0, 2] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    # Each of the 4000 probabilities is 0.00025: in float16 their logarithms would have three digits.
    value = ops.full((2, 4000), 1 / 4096, dtype=dtype)
    found = EntropyPenalty(1.0)(value)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert float(found) == pytest.approx(-together(np.full(2, 4000 / 4096 * np.log(4096))), rel=1e-5)
    assert np.isfinite(gradient(EntropyPenalty(1.0), value)).all()


def test_compiled_by_xla_it_is_the_same():
    for options in ({"from_logits": True}, {"from_logits": True, "binary": True}):
        penalty = EntropyPenalty(**options)
        value = ops.convert_to_tensor(LOGITS)
        assert float(compiled(penalty)(value)) == pytest.approx(float(penalty(value)), rel=1e-5)


def test_in_a_layer_it_does_not_grow_with_the_batch():
    layer = keras.layers.Dense(5, activation="softmax", activity_regularizer=EntropyPenalty(0.1))
    x = RNG.normal(size=(6, 3)).astype("float32")
    y = ops.convert_to_numpy(layer(x)).astype("float64")
    assert float(sum(layer.losses)) == pytest.approx(-0.1 * entropy(y).mean(), rel=1e-5)
    layer(np.tile(x, (7, 1)))
    assert float(sum(layer.losses)) == pytest.approx(-0.1 * entropy(y).mean(), rel=1e-5)


def train(factor, policy="float32", **options):
    keras.utils.set_random_seed(3)
    x = np.random.default_rng(4).normal(size=(128, 4)).astype("float32")
    y = x[:, :3].argmax(axis=1)
    layers = [keras.layers.Dense(16, "relu", dtype=policy)]
    regularizer = EntropyPenalty(factor, from_logits=True) if factor else None
    layers.append(keras.layers.Dense(3, activity_regularizer=regularizer, dtype=policy))
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, **options)
    model.fit(x, y, epochs=20, batch_size=32, verbose=0)
    logits = ops.convert_to_numpy(ops.cast(model(x), "float32")).astype("float64")
    accuracy = (logits.argmax(axis=1) == y).mean()
    return entropy(np.maximum(softmax(logits), 1e-300)).mean(), accuracy


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_classifier_keeps_some_doubt(policy):
    without, _ = train(0.0, policy)
    doubt, accuracy = train(0.5, policy)
    sure, _ = train(-0.5, policy)
    assert doubt > 2 * without > 2 * sure and accuracy > 0.9


@pytest.mark.tensorflow
def test_a_classifier_keeps_some_doubt_under_xla():
    assert train(0.5, jit_compile=True)[0] == pytest.approx(train(0.5)[0], rel=0.02)


def test_it_is_saved_with_the_layer(tmp_path):
    penalty = EntropyPenalty(0.2, from_logits=True, axis=1, binary=True)
    config = json.loads(json.dumps(keras.regularizers.serialize(penalty)))
    assert keras.regularizers.get(config).get_config() == penalty.get_config()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activity_regularizer=EntropyPenalty(0.2))])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].activity_regularizer.get_config() == EntropyPenalty(0.2).get_config()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"factor": "0.1"}, TypeError, "`factor` must be a number"),
        ({"factor": float("inf")}, ValueError, "`factor` must be a number"),
        ({"from_logits": 1}, TypeError, "`from_logits` must be True or False"),
        ({"axis": None}, TypeError, "`axis` must be an integer"),
        ({"binary": "yes"}, TypeError, "`binary` must be True or False"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, error, words):
    with pytest.raises(error) as caught:
        EntropyPenalty(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(("axis", "shape"), [(0, (2, 3)), (-2, (2, 3)), (2, (2, 3)), (-1, (3,))])
def test_classes_along_the_samples_are_an_error(axis, shape):
    with pytest.raises(ValueError, match="`axis` must be an axis of the activations behind that of the samples"):
        EntropyPenalty(axis=axis)(ops.ones(shape))

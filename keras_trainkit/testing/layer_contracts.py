"""The contracts that every layer keeps. A third party's layer can be put through them, too.

>>> import keras
>>> from keras_trainkit.testing import layer_contracts
>>> case = layer_contracts.LayerCase("dropout", lambda: keras.layers.Dropout(0.5, seed=1), (6,), random=True)
>>> layer_contracts.keeps_configuration(case)
>>> layer_contracts.knows_its_shape(case)
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

BATCH = 8
CALLS = 8  # so many draws are not all alike by chance, even of a layer that draws one number for the whole batch


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """A layer and what it promises.

    Attributes:
        name: of the test.
        make: makes the layer; seeds are given, so that two of them draw alike.
        shape: of one sample.
        random: it draws in training.
        trains_otherwise: in training it gives something else than outside; that goes for all that are random.
        masks: a mask (batch, steps) of inputs (batch, steps, ...) passes through it: "same" unchanged, "own" as one
            that fits its output; None if it takes no mask.
        any_size: the inner axes of the input may be unknown when the model is made.
        open_shape: in training the output may be smaller than outside.
        gradient: some of the gradient is not 0, and some of that of each weight.
    """

    name: str
    make: Callable[[], keras.layers.Layer]
    shape: Sequence[int]
    random: bool = False
    trains_otherwise: bool | None = None
    masks: str | None = "same"
    any_size: bool = True
    open_shape: bool = False
    gradient: bool = True

    @property
    def differs(self) -> bool:
        """Whether training gives something else than inference."""
        return self.random if self.trains_otherwise is None else self.trains_otherwise

    def inputs(self, batch: int = BATCH) -> np.ndarray:
        """A batch of normal numbers, the same at every call."""
        return np.random.default_rng(7).normal(size=(batch, *self.shape)).astype("float32")


# ---------------------------------------------------------------------------------------------------- configuration


def keeps_configuration(case: LayerCase) -> None:
    """The configuration survives JSON, with name and dtype policy, and gives a layer that computes the same."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = case.make()
    keras.config.set_dtype_policy("float32")
    config = json.loads(json.dumps(keras.layers.serialize(layer)))
    again = keras.layers.deserialize(config)
    assert type(again) is type(layer)
    assert json.dumps(again.get_config(), sort_keys=True) == json.dumps(layer.get_config(), sort_keys=True)
    assert again.name == layer.name and again.dtype_policy.name == "mixed_bfloat16"
    x = case.inputs()
    for each in (layer, again):
        each(x)
    again.set_weights(layer.get_weights())
    for training in (False, True):
        _same(again(x, training=training), layer(x, training=training))


def survives_saving(case: LayerCase, folder: pathlib.Path) -> None:
    """A `.keras` file and weights alone bring back all state: what comes next in training is bit for bit the same."""
    x = case.inputs()
    model = _model(case)
    for _ in range(3):
        model(x, training=True)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    others = [keras.models.load_model(folder / "model.keras"), _model(case)]
    others[1].load_weights(folder / "model.weights.h5")
    modes = [False, *[True] * CALLS]
    expected = [model(x, training=training) for training in modes]
    assert not case.random or _vary(expected[1:]), "each call drew the same"
    for other in others:
        for training, value in zip(modes, expected, strict=True):
            _same(other(x, training=training), value)


# ---------------------------------------------------------------------------------------------- shapes, dtypes, masks


def knows_its_shape(case: LayerCase) -> None:
    """`compute_output_shape` and a symbolic call say what a call gives, with the batch and other axes unknown, too."""
    x = case.inputs()
    layer = case.make()
    found = [layer(x, training=training) for training in (False, True)]
    promised = layer.compute_output_shape(x.shape)
    assert isinstance(promised, tuple)
    unknown = [case.shape, (*[None] * (len(case.shape) - 1), case.shape[-1])] if case.any_size else [case.shape]
    symbolic = [case.make()(keras.Input(shape)) for shape in unknown]
    for value, training in zip(found, (False, True), strict=True):
        for shape in (promised, *(one.shape for one in symbolic)):
            fits = len(shape) == len(value.shape) and all(
                a is None or a == b for a, b in zip(shape, value.shape, strict=True)
            )
            assert fits, f"promised {shape}, got {value.shape} with training={training}"
        assert all(_dtype(one) == _dtype(value) for one in symbolic)
    assert case.open_shape or None not in promised
    assert symbolic[0].shape[0] is None
    for shape, batch in zip(unknown, (1, 5), strict=False):
        model = keras.Sequential([keras.Input(shape), case.make()])
        assert model(case.inputs(batch), training=True).shape[0] == batch


def keeps_dtypes(case: LayerCase) -> None:
    """Outputs have the compute dtype, weights the variables' dtype; half precision is finite and near to float32."""
    x = case.inputs()
    full = {training: _numpy(_weighted(case)(x, training=training)) for training in (False, True)}
    for policy, tolerance in [("mixed_float16", 0.01), ("mixed_bfloat16", 0.08), ("bfloat16", 0.1)]:
        keras.config.set_dtype_policy(policy)
        layer = _weighted(case)
        for training, expected in full.items():
            out = layer(x, training=training)
            assert _dtype(out) == layer.compute_dtype, policy
            difference = np.abs(_numpy(out) - expected).max()
            assert difference <= tolerance * max(1.0, np.abs(expected).max()), f"{policy}: {difference} off"
        floats = [v for v in layer.weights if "int" not in _dtype(v)]
        assert all(_dtype(v) in (layer.variable_dtype, "float32") for v in floats)
    keras.config.set_dtype_policy("float32")


def passes_masks(case: LayerCase) -> None:
    """A mask reaches the layer behind, as the case says."""
    x = case.inputs()
    valid = np.ones(x.shape[:2], bool)
    valid[::2, x.shape[1] // 2 :] = False
    found: list[Any] = []

    class Look(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.supports_masking = True

        def call(self, inputs: Any, mask: Any = None) -> Any:
            found.append((inputs, mask))
            return inputs

    class Put(keras.layers.Layer):
        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return ops.convert_to_tensor(valid)

        def call(self, inputs: Any) -> Any:
            return inputs

        supports_masking = True

    put, layer, look = Put(), case.make(), Look()
    for training in (False, True):
        look(layer(put(x), training=training))
        inputs, mask = found[-1]
        if case.masks is None:
            assert mask is None
        elif case.masks == "same":
            np.testing.assert_array_equal(np.array(mask), valid)
        else:
            assert tuple(mask.shape) == tuple(inputs.shape[:2])


# --------------------------------------------------------------------------------------------------------- training


def trains_when_told(case: LayerCase) -> None:
    """`training` absent, None and False give inference; inside of another layer it is decided as for `Dropout`."""
    x = case.inputs()
    layer = _weighted(case)
    expected = _numpy(layer(x, training=False))
    for keywords in ({}, {"training": None}, {"training": False}):
        _same(layer(x, **keywords), expected)

    class Outer(keras.layers.Layer):
        def __init__(self, inner: Any, keywords: dict[str, Any]) -> None:
            super().__init__()
            self.inner, self.keywords = inner, keywords

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self.inner(inputs, **self.keywords)

    ones = np.ones((64,), "float32")
    for keywords in ({}, {"training": None}, {"training": True}, {"training": False}):
        for outer in (False, True):
            drops = 0.0 in _numpy(Outer(keras.layers.Dropout(0.5, seed=1), keywords)(ones, training=outer))
            should = drops and case.differs
            for _ in range(CALLS if should else 1):
                outside = _numpy(layer(x, training=False))  # of the state as it is now
                found = _numpy(Outer(layer, keywords)(x, training=outer))
                differs = found.shape != outside.shape or not np.allclose(found, outside, atol=1e-6)
                if differs:
                    break
            assert differs == should, f"training={outer} outside, {keywords} inside"


def has_finite_gradients(case: LayerCase) -> None:
    """No gradient with regard to inputs and weights is NaN or infinite, in float32 and half precision, also at 0; and
    each trainable weight has one that is not 0."""
    for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        layer = _weighted(case)
        for x in (case.inputs(), np.zeros_like(case.inputs())):
            found = gradients(layer, x)
            assert all(np.isfinite(g).all() for g in found), policy
            if case.gradient and x.any():
                assert any(g.any() for g in found), f"{policy}: all gradients are 0"
                idle = [v.path for v, g in zip(layer.trainable_variables, found[1:], strict=True) if not g.any()]
                assert not idle, f"{policy}: the gradients of {idle} are 0"
    keras.config.set_dtype_policy("float32")


def compiles(case: LayerCase) -> None:
    """The train step runs with XLA. Steps of one trace draw anew; where nothing is drawn they are those without XLA."""
    x = case.inputs()
    results = []
    for compiled in [True] if case.random else [False, True]:
        model = _model(case)
        model.compile(keras.optimizers.SGD(0.0 if case.random else 0.01), _mean_square, jit_compile=compiled)
        losses = [float(model.train_on_batch(x, np.zeros(BATCH))) for _ in range(CALLS)]
        assert np.isfinite(losses).all()
        assert not case.random or _vary(losses), "each step drew the same"
        results.append((losses, model.get_weights()))
    if not case.random:
        (plain, first), (fast, second) = results
        np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-6)
        for one, other in zip(first, second, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def run_on_replicas(cases: Sequence[LayerCase], strategy: Any) -> None:
    """`fit` under a strategy is finite; after `separate_seeds` each replica draws its own numbers. All in one model."""
    from keras_trainkit import distribution

    with strategy.scope():
        inputs = [keras.Input(case.shape) for case in cases]
        made = [case.make()(x) for case, x in zip(cases, inputs, strict=True)]
        model = keras.Model(inputs, made)
        model.compile(keras.optimizers.SGD(0.01), [_mean_square] * len(made))
    x = [case.inputs(2 * BATCH) for case in cases]
    history = model.fit(x, [np.zeros(2 * BATCH)] * len(x), batch_size=BATCH, epochs=2, verbose=0).history
    bad = [name for name, losses in history.items() if not np.isfinite(losses).all()]
    assert not bad, f"not finite: {bad}"
    distribution.separate_seeds(model)
    same = [ops.convert_to_tensor(case.inputs()) for case in cases]
    random = {case.name for case in cases if case.random}
    different: set[str] = set()
    for _ in range(CALLS):
        values = strategy.run(lambda: model(same, training=True))
        pairs = [strategy.experimental_local_results(value) for value in values]
        different |= {case.name for case, pair in zip(cases, pairs, strict=True) if _vary(pair)}
        if different >= random:
            break
    assert different >= random, f"replicas draw alike after `separate_seeds`: {sorted(random - different)}"
    assert different <= random, f"replicas differ without drawing: {sorted(different - random)}"


def gradients(layer: Any, x: Any) -> list[np.ndarray]:
    """The gradients of the output's mean square in training, with regard to the inputs and to each weight."""
    x = ops.convert_to_tensor(x)
    layer(x)
    if keras.backend.backend() == "jax":
        import jax

        variables = layer.trainable_variables

        def loss(weights: Any, inputs: Any) -> Any:
            with keras.StatelessScope(list(zip(variables, weights, strict=True))):
                out = layer(inputs, training=True)
            return ops.mean(ops.square(ops.cast(out, "float32")))

        of_weights, of_inputs = jax.grad(loss, argnums=(0, 1))([v.value for v in variables], x)
        return [np.array(g) for g in [of_inputs, *of_weights]]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        total = ops.mean(ops.square(ops.cast(layer(x, training=True), "float32")))
    # None is what an output that does not depend on it has.
    sources = [x, *(v.value for v in layer.trainable_variables)]
    return [g.numpy() for g in tape.gradient(total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)]


# ------------------------------------------------------------------------------------------------------------- parts


def _model(case: LayerCase) -> Any:
    inputs = keras.Input(case.shape)
    model = keras.Model(inputs, case.make()(inputs))
    model.set_weights([_ramp(w) for w in model.get_weights()])
    return model


def _weighted(case: LayerCase) -> Any:
    """The layer, built, with weights that no random initializer made."""
    layer = case.make()
    layer.build((None, *case.shape))
    layer.set_weights([_ramp(w) for w in layer.get_weights()])
    return layer


def _ramp(weight: np.ndarray) -> np.ndarray:
    """Numbers from 0.5 to 1.5 in the weight's place; a whole number stays."""
    if weight.dtype.kind in "iu":
        return weight
    return np.linspace(0.5, 1.5, weight.size).reshape(weight.shape).astype(weight.dtype)


def _mean_square(y: Any, prediction: Any) -> Any:
    axes = tuple(range(1, len(prediction.shape)))
    return ops.mean(ops.square(ops.cast(prediction, "float32") - 0.1), axis=axes)


def _numpy(value: Any) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(value, "float32"))


def _dtype(value: Any) -> str:
    return keras.backend.standardize_dtype(value.dtype)


def _vary(values: Sequence[Any]) -> bool:
    return any(not np.array_equal(_numpy(values[0]), _numpy(value)) for value in values[1:])


def _same(first: Any, second: Any) -> None:
    np.testing.assert_allclose(_numpy(first), _numpy(second), rtol=1e-6, atol=1e-6)

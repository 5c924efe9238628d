"""Slots that follow from step and rate alone: one for all variables, moved once an update, saved and checked."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import core, optimizers, transforms
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

RNG = np.random.default_rng(52)
SHAPES = [(3,), (2, 2), (4,)]
INITIAL = [RNG.normal(size=shape) for shape in SHAPES]
GRADIENTS = [[RNG.normal(size=shape) for shape in SHAPES] for _ in range(4)]


def products(optimizer):
    return {name: float(ops.convert_to_numpy(v)) for name, v in optimizer._slots.named_common()}


def scheduled(beta_1, momentum_decay=4e-3, steps=4):
    return np.prod([beta_1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in range(1, steps + 1)])


def test_there_is_one_for_all_variables_and_an_update_moves_it_once():
    optimizer = optimizers.NAdam(0.1)
    Stepper(optimizer, INITIAL).run(GRADIENTS)
    assert products(optimizer) == {"product": pytest.approx(scheduled(0.9), rel=1e-6)}
    assert sum(v.path.endswith("product") for v in optimizer.variables) == 1


def test_each_transform_of_a_partition_has_its_own():
    def chained(beta_1):
        return core.chain(transforms.ScaleByNAdam(beta_1), transforms.ScaleByLearningRate())

    optimizer = core.TransformOptimizer(0.1, core.partition([["p1", chained(0.5)]], default=chained(0.9)))
    found = Stepper(optimizer, INITIAL).run(GRADIENTS)
    assert sorted(products(optimizer).values()) == pytest.approx(sorted([scheduled(0.5), scheduled(0.9)]), rel=1e-6)
    assert list(products(optimizer)) == ["product", "product_1"]
    for i, beta_1 in enumerate([0.9, 0.5, 0.9]):
        alone = Stepper(optimizers.NAdam(0.1, beta_1=beta_1), [INITIAL[i]]).run([[g[i]] for g in GRADIENTS])
        np.testing.assert_allclose(found[i], alone[0], rtol=EXACT, atol=EXACT)


def test_it_moves_with_an_update_of_any_variable():
    optimizer = optimizers.NAdam(0.1)
    step = Stepper(optimizer, INITIAL)
    for gradients in GRADIENTS:
        given = [None if i == 0 else ops.convert_to_tensor(g, WIDEST) for i, g in enumerate(gradients)]
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply(given, step.variables)
    assert products(optimizer) == {"product": pytest.approx(scheduled(0.9), rel=1e-6)}


def test_it_does_not_move_with_a_step_that_a_guard_refuses():
    optimizer = optimizers.NAdam(0.1, before=[transforms.SkipNonfinite()])
    step = Stepper(optimizer, INITIAL)
    for gradients in (GRADIENTS[0], [np.full(shape, np.nan) for shape in SHAPES], GRADIENTS[1]):
        step(gradients)
    assert products(optimizer) == {"product": pytest.approx(scheduled(0.9, steps=2), rel=1e-6)}


def test_it_comes_back_from_a_file():
    one, other = optimizers.NAdam(0.1), optimizers.NAdam(0.1)
    step = Stepper(one, INITIAL)
    step.run(GRADIENTS)
    store = {}
    one.save_own_variables(store)
    assert [key for key in store if "product" in key] == ["common.product"]
    target = Stepper(other, step.parameters())
    other.build(target.variables)
    other.load_own_variables(store)
    assert products(other) == products(one)
    for stepper in (step, target):
        stepper(GRADIENTS[0])
    for a, b in zip(step.parameters(), target.parameters(), strict=True):
        np.testing.assert_array_equal(a, b)
    del store["common.product"]
    with pytest.raises(ValueError, match="the file lacks slot `product` of all variables"):
        other.load_own_variables(store)


def test_variables_of_other_dtypes_share_it():
    wide = keras.Variable(INITIAL[0], dtype=WIDEST, name="wide")
    half = keras.Variable(INITIAL[0], dtype="bfloat16", name="half")
    optimizer = optimizers.NAdam(0.1)
    optimizer.build([wide, half])
    for gradients in GRADIENTS:
        optimizer.apply([ops.convert_to_tensor(gradients[0], v.dtype) for v in (wide, half)], [wide, half])
    alone = Stepper(optimizers.NAdam(0.1), [INITIAL[0]]).run([[g[0]] for g in GRADIENTS])[0]
    np.testing.assert_allclose(ops.convert_to_numpy(wide), alone, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(ops.convert_to_numpy(ops.cast(half, "float32")), alone, rtol=0.02, atol=0.02)

"""Transforms one by one: against their NumPy twins, at their edges, and their arguments."""

import keras
import numpy as np
import pytest

from keras_trainkit import core, optimizers, transforms
from keras_trainkit.testing import reference
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

RNG = np.random.default_rng(4)
INITIAL = [RNG.normal(size=(3, 3, 2, 4)), RNG.normal(size=(5, 2)), RNG.normal(size=4), np.array(1.5)]
GRADIENTS = [[RNG.normal(size=p.shape) for p in INITIAL] for _ in range(9)]


def run(before=(), after=(), **options):
    keras.config.set_floatx(WIDEST)
    return Stepper(optimizers.SGD(0.1, before=list(before), after=list(after), **options), INITIAL).run(GRADIENTS)


def twin(**options):
    return reference.Twin(reference.GradientDescent, **options).run(INITIAL, GRADIENTS, 0.1)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT)


def test_centralize_on_every_rank():
    assert_same(run(before=[transforms.Centralize()]), twin(before=[reference.centralize]))


@pytest.mark.parametrize("factor", [0.01, 0.3, 100.0])
def test_adaptive_clip_on_every_rank(factor):
    ours = run(before=[transforms.AdaptiveClip(factor)])
    assert_same(ours, twin(before=[lambda p, g: reference.adaptive_clip(p, g, factor)]))


def test_adaptive_clip_lets_zero_weights_start():
    step = Stepper(optimizers.SGD(1.0, before=[transforms.AdaptiveClip(0.1, epsilon=0.5)]), [np.zeros((2, 2))])
    step([np.array([[3.0, 0.0], [4.0, 0.0]])])
    np.testing.assert_allclose(step.parameters()[0], [[-0.03, 0.0], [-0.04, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(("period", "size"), [(1, 0.5), (4, 0.8), (3, 1.0)])
def test_lookahead(period, size):
    assert_same(run(after=[transforms.Lookahead(period, size)]), twin(lookahead=(period, size)))


def test_lookahead_of_full_size_is_no_lookahead():
    assert_same(run(after=[transforms.Lookahead(2, 1.0)]), run())


def test_cautious():
    ours = Stepper(optimizers.Adam(0.1, after=[transforms.Cautious()]), INITIAL).run(GRADIENTS)
    theirs = reference.Twin(reference.Adam, cautious_mask=True).run(INITIAL, GRADIENTS, 0.1)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_cautious_displacements_go_downhill():
    momentum = Stepper(optimizers.SGD(0.1, momentum=0.9, after=[transforms.Cautious()]), INITIAL)
    for step in GRADIENTS:
        before = momentum.parameters()
        momentum(step)
        for old, new, gradient in zip(before, momentum.parameters(), step, strict=True):
            assert ((new - old) * gradient <= 0).all()


def test_global_clip_bounds_the_joint_norm_and_leaves_short_gradients():
    clipped = run(global_clipnorm=2.0)
    assert_same(clipped, twin(global_clipnorm=2.0))
    assert_same(run(before=[transforms.ClipByGlobalNorm(2.0)]), clipped)
    assert_same(run(global_clipnorm=1e6), run())


def test_clip_by_norm_bounds_each_variable_by_itself():
    expected = list(INITIAL)
    for step in GRADIENTS:
        expected = [p - 0.1 * g * min(1, 1.5 / np.linalg.norm(g)) for p, g in zip(expected, step, strict=True)]
    assert_same(run(clipnorm=1.5), expected)
    assert_same(run(before=[transforms.ClipByNorm(1.5)]), expected)


def test_clipping_of_zero_gradients_is_finite():
    for option in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"before": [transforms.AdaptiveClip()]}):
        step = Stepper(optimizers.SGD(0.1, **option), [np.zeros((2, 2))])
        assert_same(step.run([[np.zeros((2, 2))]]), [np.zeros((2, 2))])


def test_order_is_clip_before_algorithm_after():
    ours = run(before=[transforms.ClipByValue(0.1)], clipvalue=0.5, after=[transforms.ClipByValue(0.005)])
    expected = [p - 0.1 * 0 for p in INITIAL]
    for step in GRADIENTS:
        for i, gradient in enumerate(step):
            edited = np.clip(np.clip(gradient, -0.5, 0.5), -0.1, 0.1)
            expected[i] = expected[i] + np.clip(-0.1 * edited, -0.005, 0.005)
    assert_same(ours, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.AdaptiveClip(0), "`clip_factor` must be a number above 0. Received: clip_factor=0"),
        (lambda: transforms.AdaptiveClip(0.1, epsilon=0), "`epsilon`"),
        (lambda: transforms.Lookahead(0), "`sync_period` must be an integer at least 1. Received: sync_period=0"),
        (lambda: transforms.Lookahead(2.5), "`sync_period`"),
        (lambda: transforms.Lookahead(2, 1.5), "`slow_step_size` must be a number above 0 and at most 1"),
        (lambda: transforms.ClipByValue(-1), "`limit`"),
        (lambda: transforms.ClipByNorm(0), "`max_norm`"),
        (lambda: transforms.ClipByGlobalNorm("1"), "`max_norm`"),
        (lambda: transforms.Momentum(1.5), "`momentum`"),
        (lambda: transforms.ScaleByAdam(beta_2=1.0), "`beta_2` must be a number at least 0 and below 1"),
        (lambda: transforms.ScaleByRAdam(threshold=3), "`threshold` must be a number at least 4"),
        (lambda: transforms.ScaleByRms(rho=-0.1), "`rho`"),
    ],
)
def test_arguments_are_checked_at_construction(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("name", transforms.__all__)
def test_every_transform_survives_saving(name):
    required = {"ClipByValue": [0.3], "ClipByNorm": [0.3], "ClipByGlobalNorm": [0.3]}
    required |= {"AddDecay": [0.1, ["bias"]], "ProximalDecay": [0.1, ["bias"]]}
    required |= {"Scale": [0.5], "DecoupledDecay": [0.1, ["bias"]], "CorrectedDecay": [0.1, 0.01, ["kernel"], ["bias"]]}
    required |= {"LayerwiseDecay": [0.5, ["a", "b"]], "ScaleByPath": [[["a", 0.5]]]}
    required |= {"DecoupledL1": [0.1, ["bias"]], "DecoupledGroupLasso": [0.1, [0, -1]]}
    required |= {"ScaleByVariable": [[["a", [2, 3], 0.5]]]}
    kind = getattr(transforms, name)
    made = kind(*required.get(name, []))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert again == made and type(again) is kind


def test_rectification_starts_at_the_sixth_step():
    # rho is 4.996 at step 5 and 5.994 at step 6; float32 arithmetic must not blur the threshold.
    optimizer = optimizers.RAdam(1.0)
    step = Stepper(optimizer, [np.zeros(1)], dtype="float32")
    moves = []
    for _ in range(6):
        before = step.parameters()[0]
        step([np.full(1, 1e-3)])
        moves.append(float((before - step.parameters()[0])[0]))
    np.testing.assert_allclose(moves[:5], 1e-3, rtol=1e-5)
    assert moves[5] == pytest.approx(0.0269, rel=0.05)


@pytest.mark.parametrize(("kind", "expected"), [("AddDecay", 1.0), ("ProximalDecay", None)])
def test_decay_transforms_leave_excluded_paths_alone(kind, expected):
    decay = getattr(transforms, kind)(0.5, ["p1"])
    if kind == "AddDecay":
        made = optimizers.SGD(0.1, before=[decay])
    else:
        made = optimizers.SGD(0.1, after=[decay])
    step = Stepper(made, [np.array([2.0]), np.array([2.0])])
    kept = step.run([[np.array([0.0]), np.array([0.0])]])
    np.testing.assert_allclose(kept[0], 2.0 - 0.1 * 0.5 * 2.0 if expected else 2.0 / 1.05, rtol=1e-6)
    assert kept[1][0] == 2.0


def test_trust_ratio_scales_to_the_weights_and_rests_at_zero():
    made = core.TransformOptimizer(1.0, core.chain(transforms.ScaleByTrustRatio(), transforms.ScaleByLearningRate()))
    step = Stepper(made, [np.array([3.0, 4.0]), np.array([0.0]), np.array([2.0])])
    after = step.run([[np.array([0.0, 0.1]), np.array([0.5]), np.array([0.0])]])
    np.testing.assert_allclose(after[0], [3.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(after[1], [-0.5], rtol=1e-6)
    np.testing.assert_allclose(after[2], [2.0], rtol=1e-6)

"""Noise, decay with its own schedule, corrected decay, learning rates by path: twins, contracts, reports, errors."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

from keras_trainkit import core, optimizers, schedules, transforms
from keras_trainkit.core import randomness
from keras_trainkit.testing import contracts, reference
from keras_trainkit.testing.contracts import Case, assert_close, fit, small_model
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

RNG = np.random.default_rng(24)
INITIAL = [RNG.normal(size=(3, 4)), RNG.normal(size=4), RNG.normal(size=(2, 2, 1, 3)), np.array(0.7)]
GRADIENTS = [[RNG.normal(size=p.shape) for p in INITIAL] for _ in range(50)]


SCHEDULED = 2e-5  # Keras's schedules compute in float32


def run(rate=0.05, kind=optimizers.Adam, gradients=GRADIENTS, **options):
    keras.config.set_floatx(WIDEST)
    return Stepper(kind(rate, **options), INITIAL).run(gradients)


def assert_same(ours, theirs, tolerance=10 * EXACT):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------- decay


def test_decoupled_decay_equals_twin_with_its_own_schedule():
    ours = run(after=[transforms.DecoupledDecay(PolynomialDecay(0.02, 40, 0.001), exclude=["p1"])])
    edit = reference.decoupled_decay(lambda done: 0.02 + (0.001 - 0.02) * min(done, 40) / 40)

    def but_p1(step, index, parameter, move):
        return move if index == 1 else edit(step, index, parameter, move)

    assert_same(ours, reference.Twin(reference.Adam, after=[but_p1]).run(INITIAL, GRADIENTS, 0.05), SCHEDULED)


def test_decoupled_decay_knows_no_learning_rate():
    decayed = run(0.0, after=[transforms.DecoupledDecay(0.1)], gradients=GRADIENTS[:3])
    assert_same(decayed, [p * 0.9**3 for p in INITIAL])


def test_decay_that_follows_the_rate_is_the_optimizers_own():
    rate = PolynomialDecay(0.05, 30, 0.01)
    as_link = run(rate, after=[transforms.DecoupledDecay(0.2, ["p0"], follow_learning_rate=True)])
    assert_same(as_link, run(rate, weight_decay=0.2, weight_decay_exclude=["p0"]), SCHEDULED)


def test_corrected_decay_equals_twin():
    def rates(done):
        return 0.05 + (0.001 - 0.05) * min(done, 40) / 40

    decay = transforms.CorrectedDecay(0.3, 0.05, normalized=["p0", "p2"], exclude=["p3"])
    edit = reference.corrected_decay(0.3, rates, 0.05, [0, 2])

    def but_p3(step, index, parameter, move):
        return move if index == 3 else edit(step, index, parameter, move)

    ours = run(PolynomialDecay(0.05, 40, 0.001), after=[decay])
    assert_same(ours, reference.Twin(reference.Adam, after=[but_p3]).run(INITIAL, GRADIENTS, rates), SCHEDULED)
    variables = [keras.Variable(p, name=f"p{i}") for i, p in enumerate(INITIAL)]
    assert [row[1] for row in decay.matched(variables)] == ["corrected", "plain", "corrected", "none"]
    assert decay.report(variables).splitlines()[4] == "p3        none"


def test_sparsifying_steps_equal_twins():
    def rates(done):
        return 0.05 + (0.001 - 0.05) * min(done, 40) / 40

    def strengths(done):
        return 0.2 + (0.4 - 0.2) * min(done, 30) / 30

    rate, strength = PolynomialDecay(0.05, 40, 0.001), PolynomialDecay(0.2, 30, 0.4)
    links = [transforms.DecoupledL1(strength, ["p1"]), transforms.DecoupledGroupLasso(0.1, axis=0)]
    single, groups = reference.decoupled_l1(strengths, rates), reference.decoupled_group_lasso(0.1, rates, axis=0)

    def but_p1(step, index, parameter, move):
        return move if index == 1 else single(step, index, parameter, move)

    ours = run(rate, after=links, weight_decay=0.1)
    twin = reference.Twin(reference.Adam, weight_decay=0.1, after=[but_p1, groups])
    assert_same(ours, twin.run(INITIAL, GRADIENTS, rates), SCHEDULED)
    assert any((p == 0).any() for p in ours) and all((p != 0).any() for p in ours[:2])


# ----------------------------------------------------------------------------------------------------------- rates


def test_factors_by_path_equal_twin():
    link = transforms.ScaleByPath([["p0$", 0.3], ["p[13]", 0.0]], default=2.0)
    ours = run(kind=optimizers.SGD, momentum=0.9, after=[link])
    edit = reference.factors([0.3, 0.0, 2.0, 0.0])
    twin = reference.Twin(lambda: reference.GradientDescent(0.9), after=[edit])
    assert_same(ours, twin.run(INITIAL, GRADIENTS, 0.05))


def test_factor_with_followed_decay_is_a_parameter_group():
    # torch's AdamW with a rate and a decay for each group: each array alone, with its own rate.
    factors = [0.25, 0.5, 1.0, 1.0]
    decay = transforms.DecoupledDecay(0.2, follow_learning_rate=True)
    rules = transforms.LayerwiseDecay(0.5, ["p0", "p1", "p2|p3"])
    ours = run(after=[decay, rules])
    for i, factor in enumerate(factors):
        alone = reference.Twin(reference.Adam, weight_decay=0.2)
        expected = alone.run(INITIAL[i : i + 1], [g[i : i + 1] for g in GRADIENTS], 0.05 * factor)
        assert_same(ours[i : i + 1], expected)
    unscaled = run(after=[rules, decay])
    own = run(after=[rules], weight_decay=0.2)
    assert_same(unscaled, own)
    assert np.abs(ours[0] - own[0]).max() > 1e-3


def named(*paths):
    class Named:
        def __init__(self, path):
            self.path = path

    return [Named(path) for path in paths]


def test_layers_are_numbered_from_the_top():
    link = transforms.LayerwiseDecay(0.5, ["^embed", r"block_(\d+)/", ""])
    variables = named(
        "embed/table", "block_10/kernel", "block_9/kernel", "block_9/bias", "block_12/kernel", "norm/gamma", "head/bias"
    )
    rows = {row[0]: row[1:] for row in link.matched(variables)}
    assert rows["norm/gamma"] == ["", 5, 1.0] and rows["head/bias"] == ["", 5, 1.0]
    assert rows["block_12/kernel"][1:] == [4, 0.5]
    assert rows["block_10/kernel"][1:] == [2, 0.125]  # block 11 has no variables here, but it is a layer
    assert rows["block_9/bias"][1:] == rows["block_9/kernel"][1:] == [1, 0.0625]
    assert rows["embed/table"] == ["^embed", 0, 0.03125]
    lines = link.report(variables).splitlines()
    assert lines[0].split() == ["variable", "rule", "layer", "factor"]
    assert lines[2].split() == ["block_10/kernel", r"block_(\d+)/", "2", "0.125"]
    link.check_variables(variables)
    fitted = link.fitted(variables)
    assert [row[2] for row in fitted.matched(variables)] == [row[3] for row in link.matched(variables)]


def test_layers_keep_their_place_when_one_has_no_gradient():
    keras.config.set_floatx(WIDEST)
    variables = [keras.Variable(p, name=f"p{i}") for i, p in enumerate(INITIAL)]
    optimizer = optimizers.SGD(1.0, after=[transforms.LayerwiseDecay(0.5, [r"p(\d)"])])
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([ops.convert_to_tensor(np.ones_like(p)) for p in INITIAL[:3]] + [None], variables)
    for i, factor in enumerate([0.125, 0.25, 0.5, 0.0]):
        np.testing.assert_allclose(ops.convert_to_numpy(variables[i]), INITIAL[i] - factor, rtol=1e-6, atol=1e-6)


def test_partition_says_what_takes_what():
    rules = core.partition([["p0", transforms.ScaleByLion()]], default=transforms.ScaleByAdam())
    variables = named("p0", "p1")
    assert rules.matched(variables) == [["p0", "p0", "ScaleByLion"], ["p1", None, "ScaleByAdam"]]
    assert rules.report(variables).splitlines()[2].split() == ["p1", "None", "ScaleByAdam"]


def test_layerwise_decay_inside_a_mask_and_a_chain():
    inner = core.chain(transforms.LayerwiseDecay(0.5, ["p0", "p1"]), transforms.ClipByValue(10.0))
    ours = run(kind=optimizers.SGD, after=[core.masked(inner, "p0|p1")], gradients=GRADIENTS[:5])
    twin = reference.Twin(reference.GradientDescent, after=[reference.factors([0.5, 1.0, 1.0, 1.0])])
    assert_same(ours, twin.run(INITIAL, GRADIENTS[:5], 0.05))
    parts = core.partition([["p0|p1", inner]], default=transforms.ScaleByPath([["p2", 3.0]]))
    ours = run(kind=optimizers.SGD, after=[parts], gradients=GRADIENTS[:5])
    twin = reference.Twin(reference.GradientDescent, after=[reference.factors([0.5, 1.0, 3.0, 1.0])])
    assert_same(ours, twin.run(INITIAL, GRADIENTS[:5], 0.05))


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (lambda: transforms.ScaleByPath([["q", 0.5]]), "takes no variable. Received: pattern='q'"),
        (lambda: transforms.ScaleByPath([["p", 0.5], ["p1", 0.1]]), "takes no variable. Received: pattern='p1'"),
        (lambda: transforms.LayerwiseDecay(0.5, ["p0", "p1"]), "Unmatched: `p2`, `p3`"),
        (lambda: transforms.LayerwiseDecay(0.5, ["x", "p"]), "takes no variable. Received: pattern='x'"),
        (lambda: transforms.LayerwiseDecay(0.5, ["(p)"]), "captures 'p' in `p0`"),
        (lambda: transforms.CorrectedDecay(0.1, 0.1, ["kernel"]), "`normalized` holds a pattern that takes no"),
    ],
)
def test_rules_that_do_not_fit_the_model_are_errors_at_build(link, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        run(after=[link()])


# ----------------------------------------------------------------------------------------------------------- noise


def noise(step, position, shape, eta, gamma, seed):
    unit = ops.convert_to_numpy(randomness.normal(list(shape), seed, step, position, WIDEST))
    return np.sqrt(eta / step**gamma) * unit


def test_noise_equals_twin():
    seen = {"step": 0}

    def edit(index):
        def add(parameter, gradient):
            return gradient + noise(seen["step"], index, gradient.shape, 0.3, 0.55, 9)

        return add

    ours = run(before=[transforms.GradientNoise(0.3, 0.55, seed=9)], gradients=GRADIENTS[:20])
    for i in range(len(INITIAL)):
        twin, parameters = reference.Adam(), INITIAL[i]
        for step, gradients in enumerate(GRADIENTS[:20], 1):
            seen["step"] = step
            parameters = parameters + twin.displacement(parameters, edit(i)(parameters, gradients[i]), 0.05)
        assert_same([ours[i]], [parameters])


def test_noise_has_the_papers_variance_and_is_another_in_each_step_and_variable():
    start = [np.zeros(20000), np.zeros(20000)]
    stepper = Stepper(optimizers.SGD(1.0, before=[transforms.GradientNoise(0.3, 0.55, seed=1)]), start)
    moves, before = [], stepper.parameters()
    for _ in range(4):
        stepper([np.zeros(20000)] * 2)
        moves += [a - b for a, b in zip(stepper.parameters(), before, strict=True)]
        before = stepper.parameters()
    for i, move in enumerate(moves):
        assert move.var() == pytest.approx(0.3 / (1 + i // 2) ** 0.55, rel=0.04)
        assert abs(move.mean()) < 0.02
        for other in moves[:i]:
            assert abs(np.corrcoef(move, other)[0, 1]) < 0.04


def test_noise_of_a_variable_does_not_depend_on_the_others_gradients():
    keras.config.set_floatx(WIDEST)
    ends = []
    for missing in (False, True):
        variables = [keras.Variable(np.zeros(3), name=f"v{i}") for i in range(2)]
        optimizer = optimizers.SGD(1.0, before=[transforms.GradientNoise(seed=4)])
        optimizer.build(variables)
        gradients = [None if missing else ops.zeros(3, WIDEST), ops.zeros(3, WIDEST)]
        if missing:
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                optimizer.apply(gradients, variables)
        else:
            optimizer.apply(gradients, variables)
        ends.append(ops.convert_to_numpy(variables[1]))
    np.testing.assert_array_equal(*ends)
    assert np.abs(ends[0]).max() > 0


def test_noise_goes_on_in_a_model_whose_layers_have_other_names(tmp_path):
    def made():
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(3)])
        model.compile(optimizers.Adam(0.05, before=[transforms.GradientNoise(0.5)]), "mse")
        return model

    whole, other = made(), made()
    assert whole.variables[0].path != other.variables[0].path
    fit(whole, epochs=1)
    fit(other, epochs=1)
    assert_close(other.get_weights(), whole.get_weights(), 0.0)


# ------------------------------------------------------------------------------------------------------- contracts


def case(name, **options):
    return Case(name, optimizers.Adam, lambda: None, {}, 8, arguments=lambda: {k: v() for k, v in options.items()})


CASES = [
    case("noise", before=lambda: [transforms.GradientNoise(0.1, seed=3)]),
    case(
        "rates",
        after=lambda: [
            transforms.DecoupledDecay(schedules.Cosine(0.1, 20), ["p1", "bias"], follow_learning_rate=True),
            transforms.LayerwiseDecay(0.5, ["p0|hidden", "p1|p2|head"]),
        ],
    ),
    case("sparse", after=lambda: [transforms.DecoupledL1(0.05, ["p1|bias"])]),
    case(
        "sparse groups",
        after=lambda: [
            transforms.DecoupledL1(schedules.Linear(0.0, 20, 0.05), ["bias"]),
            transforms.DecoupledGroupLasso(0.02, exclude=["p2|head"]),
        ],
    ),
    case("corrected", after=lambda: [transforms.CorrectedDecay(0.5, 0.05, ["p0|kernel"], ["bias"])]),
]
every_case = pytest.mark.parametrize("option", CASES, ids=lambda option: option.name)


@every_case
def test_configuration_survives(option):
    contracts.keeps_configuration(option)


@every_case
def test_micro_batches_equal_big_ones(option):
    contracts.micro_batches_equal_big_ones(option)


@every_case
def test_resumes_exactly(option, tmp_path):
    contracts.resumes_exactly(option, tmp_path)


@every_case
@pytest.mark.tensorflow
def test_replicas_agree(option, two_replicas):
    contracts.replicas_agree(option, two_replicas, updates=20)


@every_case
@pytest.mark.tensorflow
def test_compiled_equals_graph(option):
    contracts.compiled_equals_graph(option)


@every_case
def test_keeps_dtypes_and_state_size(option):
    contracts.keeps_dtypes(option)


def test_schedule_of_the_decay_survives_json():
    optimizer = optimizers.Adam(0.05, after=[transforms.DecoupledDecay(PolynomialDecay(0.1, 10, 0.01), ["bias"])])
    again = keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))
    assert isinstance(again.after[0].rate, PolynomialDecay)
    assert again.after[0].rate.get_config() == optimizer.after[0].rate.get_config()
    model = small_model(again)
    assert model.optimizer.after[0].exclude == ["bias"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.GradientNoise(-1.0), "`eta` must be a number at least 0"),
        (lambda: transforms.GradientNoise(gamma=-1.0), "`gamma`"),
        (lambda: transforms.GradientNoise(seed=0.5), "`seed` must be an integer"),
        (lambda: transforms.DecoupledDecay(-0.1), "`rate` must be a number at least 0"),
        (lambda: transforms.DecoupledDecay("0.1"), "`rate`"),
        (lambda: transforms.DecoupledDecay(0.1, ["("]), "`exclude` must be a regular expression"),
        (lambda: transforms.DecoupledDecay(0.1, follow_learning_rate=1), "`follow_learning_rate`"),
        (lambda: transforms.CorrectedDecay(0.1, 0.0, ["a"]), "`peak_rate` must be a number above 0"),
        (lambda: transforms.CorrectedDecay(-1, 0.1, ["a"]), "`weight_decay`"),
        (lambda: transforms.CorrectedDecay(0.1, 0.1, "kernel"), "`normalized` must be a list"),
        (lambda: transforms.ScaleByPath([]), "at least one"),
        (lambda: transforms.ScaleByPath([["a", -1.0]]), "`rules` must be a number at least 0"),
        (lambda: transforms.ScaleByPath([["(", 1.0]]), "regular expression"),
        (lambda: transforms.ScaleByPath([["a", 1.0]], default=-1), "`default`"),
        (lambda: transforms.LayerwiseDecay(1.5, ["a"]), "`decay` must be a number above 0 and at most 1"),
        (lambda: transforms.LayerwiseDecay(0.5, []), "`layers` must hold at least one"),
        (lambda: transforms.LayerwiseDecay(0.5, ["(a)(b)"]), "at most one group"),
    ],
)
def test_arguments_are_checked_at_construction(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

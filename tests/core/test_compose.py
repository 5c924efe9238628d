"""`chain`, `partition` and `masked`: who gets what, and what is refused."""

import keras
import numpy as np
import pytest

from keras_trainkit import core, transforms
from keras_trainkit.testing import reference
from keras_trainkit.testing.problems import EXACT, WIDEST, Stepper

RNG = np.random.default_rng(1)
INITIAL = [RNG.normal(size=(2, 3)), RNG.normal(size=3)]
GRADIENTS = [[RNG.normal(size=(2, 3)), RNG.normal(size=3)] for _ in range(6)]


@core.register_transform
class Same(core.Transform):
    """Changes nothing, and has no scope: a chain with it computes all variables together, op by op."""

    def leaf(self, update, parameter, state, context):
        return update, state


def run(*links, **options):
    keras.config.set_floatx(WIDEST)
    optimizer = core.TransformOptimizer(0.1, core.chain(*links, transforms.ScaleByLearningRate()), **options)
    return Stepper(optimizer, INITIAL).run(GRADIENTS)


def twin(algorithm, index):
    return reference.Twin(algorithm).run(INITIAL[index : index + 1], [g[index : index + 1] for g in GRADIENTS], 0.1)[0]


def test_partition_gives_each_variable_to_its_first_rule():
    result = run(core.partition([["p0", transforms.ScaleByAdam()], ["p", transforms.ScaleByLion()]]))
    np.testing.assert_allclose(result[0], twin(reference.Adam, 0), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(result[1], twin(reference.Lion, 1), rtol=EXACT, atol=EXACT)


def test_partition_default_takes_the_rest():
    result = run(core.partition([["p1", transforms.ScaleByLion()]], default=transforms.ScaleByAdam()))
    np.testing.assert_allclose(result[0], twin(reference.Adam, 0), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(result[1], twin(reference.Lion, 1), rtol=EXACT, atol=EXACT)


def test_masked_leaves_the_others_alone():
    result = run(core.masked(transforms.ScaleByAdam(), "p1"))
    np.testing.assert_allclose(result[0], twin(reference.GradientDescent, 0), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(result[1], twin(reference.Adam, 1), rtol=EXACT, atol=EXACT)
    inverted = run(core.masked(transforms.ScaleByAdam(), "p0", invert=True))
    np.testing.assert_array_equal(inverted[1], result[1])


def test_patterns_are_looked_for_in_the_whole_path():
    variables = [keras.Variable(np.zeros((2, 2)), name=name) for name in ("kernel", "bias")]
    with keras.name_scope("block"):
        variables += [keras.Variable(np.zeros((2, 2)), name=name) for name in ("kernel", "bias")]
    masked = core.masked(transforms.ScaleByLion(), "ock/kernel$")
    assert [bool(masked.slots(v)) for v in variables] == [False, False, True, False]
    rules = core.partition([["ock/b", transforms.ScaleByLion()]], default=transforms.ScaleByAdam())
    adam, lion = {"1": ["momentum", "velocity"]}, {"0": ["momentum"]}
    found = [{rule: sorted(slots) for rule, slots in rules.slots(v).items()} for v in variables]
    assert found == [adam, adam, adam, lion]


def test_variables_outside_a_mask_have_no_state():
    optimizer = core.TransformOptimizer(0.1, core.masked(transforms.ScaleByAdam(), "p1"))
    Stepper(optimizer, INITIAL)
    assert [v.path.split("/")[-1] for v in optimizer.variables if len(v.shape)] == ["p1_momentum", "p1_velocity"]


def test_a_part_of_the_model_sees_its_own_gradients_and_paths():
    @core.register_transform
    class Told(core.Transform):
        def leaf(self, update, parameter, state, context):
            return (context.gradient if context.path == "p1" else update * np.nan), state

    plain = run()
    for part in (core.masked(Told(), "p1"), core.partition([["p1", Told()]], default=core.chain())):
        for ours, expected in zip(run(Same(), part), plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_part_without_gradients_rests():
    @core.register_transform
    class Largest(core.Transform):
        def update(self, updates, parameters, states, context):
            longest = max(len(u) for u in updates)
            return [u / longest for u in updates], states

    algorithms = [core.masked(Largest(), "p1"), core.partition([["p1", Largest()]], default=core.chain())]
    for algorithm in algorithms:
        variables = [keras.Variable(np.zeros(2, "float32"), name=f"p{i}") for i in range(2)]
        optimizer = core.TransformOptimizer(1.0, core.chain(Same(), algorithm, transforms.ScaleByLearningRate()))
        optimizer.build(variables)
        optimizer.apply([keras.ops.ones(2), None], variables)
        assert [float(keras.ops.convert_to_numpy(v)[0]) for v in variables] == [-1.0, 0.0]


def test_two_links_with_the_same_slot_name_keep_apart():
    result = run(transforms.Momentum(0.5), transforms.Momentum(0.9))
    one, two, expected = 0.0, 0.0, INITIAL[0]
    for step in GRADIENTS:
        one = 0.5 * one + step[0]
        two = 0.9 * two + one
        expected = expected - 0.1 * two
    np.testing.assert_allclose(result[0], expected, rtol=EXACT, atol=EXACT)


def test_whole_model_transforms_inside_a_partition_see_their_part_only():
    result = run(core.partition([["p0", transforms.ClipByGlobalNorm(0.1)]], default=transforms.ClipByGlobalNorm(1e9)))
    clipped = INITIAL[0] - 0.1 * sum(g[0] * min(1, 0.1 / np.linalg.norm(g[0])) for g in GRADIENTS)
    np.testing.assert_allclose(result[0], clipped, rtol=1e-5)
    np.testing.assert_allclose(result[1], INITIAL[1] - 0.1 * sum(g[1] for g in GRADIENTS), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (lambda: core.partition([["p0", transforms.ScaleByLion()]]), "Unmatched: `p1`"),
        (
            lambda: core.partition([["q", transforms.ScaleByLion()]], default=transforms.ScaleByLion()),
            "takes no variable. Received: pattern='q', with the variables `p0`, `p1`",
        ),
        (
            lambda: core.partition([["p", transforms.ScaleByLion()], ["p1", transforms.ScaleByLion()]]),
            "takes no variable. Received: pattern='p1'",
        ),
        (lambda: core.masked(transforms.ScaleByLion(), "nothing"), "leaves no variable to transform"),
        (
            lambda: core.partition([["p0", core.masked(transforms.ScaleByLion(), "p1")]], default=core.chain()),
            "leaves no variable to transform. Received: pattern='p1' on `p0`",
        ),
        (
            lambda: core.chain(core.masked(core.masked(transforms.ScaleByLion(), "p0"), "p1")),
            "leaves no variable to transform",
        ),
    ],
)
def test_rules_that_do_not_fit_the_model_are_errors_at_build(algorithm, message):
    with pytest.raises(ValueError, match=message):
        run(algorithm())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: core.partition([]), "at least one"),
        (lambda: core.partition([["p0"]]), "pairs"),
        (lambda: core.partition([["(", transforms.ScaleByLion()]]), "regular expression"),
        (lambda: core.partition([["p", "lion"]]), "must hold transforms"),
        (lambda: core.masked(transforms.ScaleByLion(), 3), "regular expression"),
        (lambda: core.chain("adam"), "must hold transforms"),
    ],
)
def test_malformed_rules_are_errors_at_construction(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_chains_in_chains_are_one_chain():
    links = [transforms.ScaleByLion(), transforms.Momentum(0.5), transforms.ScaleByLearningRate()]
    assert core.chain(core.chain(links[0], core.chain(links[1])), links[2]).links == links


def test_tuples_become_lists_so_that_saving_keeps_equality():
    rules = (("p0", transforms.ScaleByLion()), ("p1", transforms.ScaleByAdam()))
    made = core.partition(rules)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert made == again and isinstance(again.rules[0], list)

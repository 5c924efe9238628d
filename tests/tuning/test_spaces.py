"""Hyperparameters of KerasTuner as distributions of Optuna, there and back."""

import keras_tuner
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

import optuna
from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed, Float, Int

from keras_trainkit.tuning import spaces

ALL = [
    Choice("words", ["a", "b"]),
    Choice("numbers", [16, 64, 256]),
    Boolean("flag"),
    Int("linear", 3, 9),
    Int("stepped", 6, 13, step=3),
    Int("doubled", 2, 33, step=2, sampling="log"),
    Int("log", 1, 1000, sampling="log"),
    Int("reverse", 1, 100, sampling="reverse_log"),
    Float("float", -1.0, 2.0),
    Float("float_step", 0.0, 1.0, step=0.25),
    Float("float_log", 1e-5, 1e-1, sampling="log"),
    Float("decades", 1e-3, 10.0, step=10, sampling="log"),
    Float("float_reverse", 0.01, 1.0, sampling="reverse_log"),
    Float("one", 2.0, 2.0),
]


def draw(space, seed=0, count=40):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    names = {index: spaces.study_name(parameter) for index, parameter in enumerate(space)}
    return [spaces.suggest(study.ask(), space, names) for _ in range(count)]


@pytest.mark.parametrize("parameter", ALL, ids=lambda parameter: parameter.name)
def test_values_are_in_range_and_come_back_from_what_optuna_drew(parameter):
    for values in draw([parameter]):
        value = values[parameter.name]
        drawn = spaces.to_study(parameter, value)
        assert spaces.from_study(parameter, drawn) == pytest.approx(value)
        assert type(value) is type(parameter.default)
        if hasattr(parameter, "min_value"):
            assert parameter.min_value <= value <= parameter.max_value


def test_stepped_ranges_take_exactly_the_values_of_keras_tuner():
    assert {v["stepped"] for v in draw([ALL[4]])} == {6, 9, 12}
    assert {v["doubled"] for v in draw([ALL[5]], count=80)} == {2, 4, 8, 16, 32}
    assert sorted({v["decades"] for v in draw([ALL[11]], count=80)}) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0])


def test_a_choice_of_numbers_is_an_index_and_of_words_is_not():
    assert spaces.distribution(ALL[1]) == optuna.distributions.IntDistribution(0, 2)
    assert spaces.distribution(ALL[0]) == optuna.distributions.CategoricalDistribution(["a", "b"])


def test_reverse_log_is_dense_at_the_upper_end():
    values = sorted(v["float_reverse"] for v in draw([ALL[12]], count=200))
    assert values[100] > 0.8


def conditional():
    hp = keras_tuner.HyperParameters()
    for kind in ("a", "b"):
        hp.values["kind"] = kind
        hp.Choice("kind", ["a", "b"])
        for branch in ("a", "b"):
            with hp.conditional_scope("kind", [branch]):
                hp.Int("units", 1 if branch == "a" else 10, 2 if branch == "a" else 11)
    hp.Fixed("fixed", 7)
    return hp.space


def test_only_active_values_and_one_name_may_have_two_meanings():
    found = draw(conditional())
    assert {(v["kind"], v["units"], v["fixed"]) for v in found} == {
        ("a", 1, 7),
        ("a", 2, 7),
        ("b", 10, 7),
        ("b", 11, 7),
    }
    assert len({spaces.study_name(parameter) for parameter in conditional()}) == 4


def test_points_of_a_finite_space_are_all_of_it_once():
    listed = list(spaces.points(conditional()))
    assert sorted((v["kind"], v["units"]) for v in listed) == [("a", 1), ("a", 2), ("b", 10), ("b", 11)]
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Int("deep", 1, 3)
    assert list(spaces.points(hp.space)) == [
        {"kind": "a"}, {"kind": "b", "deep": 1}, {"kind": "b", "deep": 2}, {"kind": "b", "deep": 3},
    ]  # fmt: skip


def test_a_range_without_step_has_no_points_but_ten_in_a_grid():
    assert spaces.points([ALL[10]]) is None
    rates = [v["float_log"] for v in spaces.points([ALL[10]], grid=True)]
    assert len(rates) == 10 and rates == sorted(rates)
    assert rates[1] / rates[0] == pytest.approx(rates[9] / rates[8])


@pytest.mark.parametrize(("parameter", "value"), [(ALL[0], "c"), (ALL[1], 17), (ALL[3], 10), (ALL[4], 7), (ALL[4], 7.5),
                                                   (ALL[8], "x"), (ALL[12], 2.0), (Fixed("f", 1), 1)])  # fmt: skip
def test_values_outside_are_refused(parameter, value):
    with pytest.raises(ValueError, match=f"`{parameter.name}` must be a value of"):
        spaces.to_study(parameter, value)


def test_a_moved_limit_means_the_same_and_other_values_of_a_choice_do_not():
    wide, narrow = Float("x", 0.0, 2.0), Float("x", 0.0, 1.0)
    assert spaces.means_the_same(spaces.describe(wide), spaces.describe(narrow))
    other = Choice("numbers", [16, 64, 512])
    assert not spaces.means_the_same(spaces.describe(ALL[1]), spaces.describe(other))
    assert not spaces.means_the_same(spaces.describe(wide), spaces.describe(Float("x", 0.1, 2.0, sampling="log")))

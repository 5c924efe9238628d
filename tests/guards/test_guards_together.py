"""Each guard beside the others and beside callbacks that reach into the step, too, in any order."""

import itertools

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, optimizers

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(8)
GUARDS = {
    "nonfinite": lambda path: callbacks.NonFiniteGuard(path / "bad", "continue"),
    "spike": lambda path: callbacks.SpikeGuard(action="rollback", rate_factor=0.5, warmup=8, verbose=0),
    "preflight": lambda path: callbacks.PreflightCheck(overfit_steps=0, save=False),
}
OTHERS = {
    "monitor": lambda path: callbacks.TrainingMonitor(path / "log", tensorboard=False),
    "pruning": lambda path: callbacks.MagnitudePruning(0.5, begin_step=4, end_step=12, frequency=4),
    "plateau": lambda path: callbacks.ReduceOnPlateau("loss", patience=1),
}
ALL = GUARDS | OTHERS
PAIRS = [
    pytest.param(pair, marks=[pytest.mark.slow] if "plateau" in pair or pair == ("preflight", "pruning") else [])
    for pair in itertools.combinations(ALL, 2)
    if pair[0] in GUARDS
]


def train(listed, bad=None, model=None, optimizer=None):
    keras.utils.set_random_seed(1)
    if model is None:
        layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((5,)), *layers])
        model.compile(optimizer or optimizers.Adam(0.01), "mse")
    RNG.bit_generator.state = np.random.default_rng(8).bit_generator.state
    x = RNG.normal(size=(128, 5)).astype("float32")
    if bad is not None:
        x[bad] = np.nan
    model.fit(x, x[:, :1] * 0 + 1, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=listed)
    left = getattr(vars(model).get("train_step"), "watched", None)
    assert left is None or not left.watchers  # what stood around it when it ended put it back empty
    return [keras.ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def same(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_the_order_of_two_makes_no_difference(pair, tmp_path):
    ends = []
    for number, names in enumerate((pair, pair[::-1])):
        listed = {name: ALL[name](tmp_path / str(number)) for name in names}
        ends.append(train(list(listed.values())))
        assert all(callback.events == [] for callback in listed.values() if hasattr(callback, "events"))
    same(*ends)
    if "preflight" in pair:
        same(ends[0], train([ALL[next(name for name in pair if name != "preflight")](tmp_path / "alone")]))


def test_guards_change_nothing_when_all_is_well(tmp_path):
    """The same bits as without them; a rate that may be cut is computed, so it is left as it is here."""
    quiet = [callbacks.NonFiniteGuard(tmp_path), callbacks.SpikeGuard(warmup=8)]
    same(train(quiet), train([]))
    same(train([callbacks.NonFiniteGuard(tmp_path)], optimizer=keras.optimizers.Adam(0.01)),
         train([], optimizer=keras.optimizers.Adam(0.01)))  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_both_see_the_same_batch_and_the_weights_stay_whole(tmp_path, order):
    guards = [GUARDS["nonfinite"](tmp_path), callbacks.SpikeGuard(warmup=8, verbose=0)]
    end = train(guards[::order], bad=50)
    assert [event["iterations"] for event in guards[0].events] == [6]
    assert [event["iterations"] for event in guards[1].events] == [6, 21]  # in both epochs
    assert all(np.isfinite(value).all() for value in end)


@pytest.mark.slow
def test_all_together_on_two_replicas(tmp_path, two_replicas):
    with two_replicas.scope():
        layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((5,)), *layers])
        model.compile(optimizers.Adam(0.01, gradient_accumulation_steps=2), "mse")
    # PreflightCheck would not let these data in.
    listed = {name: make(tmp_path) for name, make in ALL.items() if name not in ("plateau", "preflight")}
    train(list(listed.values()), bad=50, model=model)
    assert [event["iterations"] for event in listed["nonfinite"].events] == [3]
    assert len(listed["spike"].events) == 2

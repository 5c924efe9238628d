"""Any two callbacks of the kit in one `fit`, in both orders: neither is in the other's way.

Those that change nothing must leave the weights of a run without them, bit for bit, and so each pair of which one does
has the weights of the other one alone. Of two that change training the order must not matter. In the middle of an epoch
the state of each is taken and put back, which must change nothing.
"""

import copy
import functools
import io
import itertools
import math
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_trainkit import averaging, callbacks, optimizers, schedules, transforms
from keras_trainkit.core import evaluation

pytestmark = pytest.mark.tensorflow
_RNG = np.random.default_rng(5)
X = _RNG.normal(size=(32, 4)).astype("float32")
Y = np.tanh(X[:, :2] - X[:, 2:]).astype("float32")
EPOCHS, BATCH = 2, 4  # 8 batches an epoch, 4 updates


class Lines(callbacks.Sink):
    """A sink that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def write(self, kind, step, epoch, values):
        self.lines.append((kind, step))


def stopped(callback):
    """A budget whose clock stands still."""
    callback.clock = lambda: 7.0
    return callback


QUIET = {
    "accumulation": lambda path: callbacks.AccumulationSchedule({0: 2}),
    "averaging": lambda path: callbacks.WeightAveraging(averaging.EMA(0.9)),
    "budget": lambda path: stopped(callbacks.TimeBudget("1h")),
    "cooldown": lambda path: callbacks.StartCooldown(4, file=path / "cool"),
    "evaluation": lambda path: callbacks.EvaluationWeights(),
    "flush": lambda path: callbacks.FlushAccumulation(),
    "live": lambda path: callbacks.LivePlot(),
    "monitor": lambda path: callbacks.TrainingMonitor(
        path / "log", every=2, layers_every=4, noise_scale=True, histograms_every=1, sinks=[Lines()]
    ),
    "nonfinite": lambda path: callbacks.NonFiniteGuard(path / "bad", "continue"),
    "plateau": lambda path: callbacks.ReduceOnPlateau("loss", patience=90),
    "preflight": lambda path: callbacks.PreflightCheck(overfit_steps=0, save=False),
    "progress": lambda path: callbacks.Progress(Console(file=io.StringIO())),
    "resumable": lambda path: callbacks.ResumableTraining(path / "resume", every=3),
    "spans": lambda path: callbacks.ResolveSpans(),
    "spikes": lambda path: callbacks.SpikeGuard(action="rollback", warmup=99, snapshot_every=2, verbose=0),
    "threshold": lambda path: callbacks.Threshold("loss", -1.0),
}
ACTIVE = {
    "finder": lambda path: callbacks.LearningRateFinder(minimum=1e-4, maximum=0.1, steps=10),
    "hyperparameters": lambda path: callbacks.HyperparameterSchedule(
        beta_1=schedules.Linear(0.9, 8, 0.6), dropout=schedules.Linear(0.3, 8, 0.1)
    ),
    "pruning": lambda path: callbacks.MagnitudePruning(0.5, begin_step=1, end_step=5, frequency=2),
    "unfreezing": lambda path: callbacks.GradualUnfreezing(at=3),
}
ALL = QUIET | ACTIVE
SWAPS = {"averaging", "evaluation"}
PAIRS = list(itertools.combinations(ALL, 2))


class BackAndForth(keras.callbacks.Callback):
    """Takes the states of other callbacks, and puts them back, in the middle of an epoch."""

    def __init__(self, others):
        super().__init__()
        self.others, self.done = [one for one in others if hasattr(one, "get_state")], 0

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 5:
            states = [copy.deepcopy(one.get_state()) for one in self.others]
            for one, state in zip(self.others, states, strict=True):
                one.set_state(copy.deepcopy(state))
            for one, state in zip(self.others, states, strict=True):
                same_state(one.get_state(), state)
            self.done += 1


def same_state(one, other):
    """Equal but for what a clock has in it."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key not in ("meter", "elapsed"):
                same_state(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same_state(a, b)
    else:
        np.testing.assert_array_equal(one, other)


def trained(listed, use_ema=False):
    """What training has come to, whatever stands in for it at its end, with seeds and updates; and what it said."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(6, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    optimizer = optimizers.Adam(
        schedules.Cosine(0.05, 20), gradient_accumulation_steps=2, use_ema=use_ema,
        after=[transforms.CountOwnUpdates()],
    )  # fmt: skip
    model.compile(optimizer, "mse", metrics=["mae"], jit_compile=False)
    probe = BackAndForth(listed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(
            X, Y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[*listed, probe],
            validation_data=(X[:8], Y[:8]),
        ).history  # fmt: skip
    # What stood around the step when another one went off put that one back, empty.
    assert not getattr(getattr(vars(model).get("train_step"), "watched", None), "watchers", [])
    if evaluation.held(optimizer):
        evaluation.put_back(optimizer)
    assert probe.done == EPOCHS
    values = [*model.weights, optimizer.iterations]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in values], history


@functools.cache
def alone(name):
    with tempfile.TemporaryDirectory() as folder:
        return trained([] if name is None else [ALL[name](Path(folder))])[0]


def assert_pair(pair, folder):
    use_ema = "evaluation" in pair
    ends = []
    for names in (pair, pair[::-1]):
        listed = {name: ALL[name](folder / " and ".join(names)) for name in names}
        if set(pair) == SWAPS:
            with pytest.raises(ValueError, match="one callback that puts weights in"):
                trained(list(listed.values()))
            continue
        ends.append(trained(list(listed.values()), use_ema))
        assert all(math.isfinite(value) for name in ends[-1][1] for value in ends[-1][1][name])
        assert all(one.events == [] for name, one in listed.items() if name in ("nonfinite", "spikes"))
    for one, other in itertools.pairwise([values for values, _ in ends]):
        same(one, other)
    quiet = [name for name in pair if name in QUIET]
    for values, _ in ends[:1] if quiet else []:
        (other,) = [name for name in pair if name != quiet[0]]
        same(values, alone(None if other in QUIET else other))


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_callback_of_the_kit_is_here(tmp_path):
    classes = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), keras.callbacks.Callback)}
    assert classes == {type(make(tmp_path)).__name__ for make in ALL.values()}


# A covering choice: each callback once with another, far from it in the list.
COVERING = list(zip(list(ALL)[: len(ALL) // 2], list(ALL)[len(ALL) // 2 :], strict=True))


SOME = [pytest.param(p, marks=[] if i % 4 == 0 else [pytest.mark.slow]) for i, p in enumerate(COVERING)]


@pytest.mark.parametrize("pair", SOME, ids=" and ".join)
def test_each_with_another(pair, tmp_path):
    assert_pair(pair, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.parametrize("active", [None, *ACTIVE])
def test_all_quiet_ones_at_once(active, step, tmp_path):
    """In the order of their names and the other way round, and with one that changes training among them."""
    names = sorted([*QUIET, *([] if active is None else [active])])
    names = [name for name in names[::step] if name != "evaluation"]
    values, history = trained([ALL[name](tmp_path) for name in names])
    same(values, alone(active))
    assert all(math.isfinite(value) for name in history for value in history[name])


@pytest.mark.thorough
@pytest.mark.parametrize("first", ALL)
def test_all_pairs_of(first, tmp_path):
    for pair in PAIRS:
        if pair[0] == first and pair not in COVERING:
            assert_pair(pair, tmp_path)

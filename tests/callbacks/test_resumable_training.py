"""ResumableTraining in one process: runs that an exception cuts at many moments end with the bits of a whole one."""

import contextlib
import json
import os
import re
import signal
import sys

import keras
import numpy as np
import pytest

from keras_trainkit import callbacks, data, distribution, optimizers, precision, resuming
from keras_trainkit.callbacks import resumable_training

sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir, "resuming"))
from cutting import Cut, Moments, Witness, watch_writing

TENSORFLOW = pytest.mark.tensorflow
RNG = np.random.default_rng(11)
ROWS, BATCH, EPOCHS = 26, 8, 3
X = RNG.normal(size=(ROWS, 5)).astype("float32")
Y = (X[:, :1] - X[:, 1:2] ** 2).astype("float32")


def anew(optimizer, **arguments):
    """The model as a new process has it: older versions of Keras keep their generator when a seed is set."""
    keras.utils.clear_session()
    return make_model(optimizer, **arguments)


def make_model(optimizer, eager=True, **compile_arguments):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(6, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=eager, **compile_arguments)
    return model


def batches(**options):
    return {"x": data.Batches(X, Y, batch_size=BATCH, seed=5, **options)}


def stream():
    def read(epoch):
        order = np.random.default_rng(epoch).permutation(ROWS)
        for start in range(0, ROWS, BATCH):
            rows = order[start : start + BATCH]
            yield X[rows], Y[rows]

    return {"x": data.StreamBatches(read)}


def arrays():
    return {"x": X, "y": Y, "batch_size": BATCH}


def repeated():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(ROWS, seed=2).batch(BATCH).repeat()
    return {"x": dataset, "steps_per_epoch": 5}


def reshuffled():
    import tensorflow as tf

    return {"x": tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(ROWS, seed=2).batch(BATCH)}


def plain_adam():
    return keras.optimizers.Adam(0.02, global_clipnorm=1.0)


def accumulating():
    return optimizers.AdamW(0.02, gradient_accumulation_steps=3, use_ema=True, global_clipnorm=0.5)


def scaled_schedule_free():
    return precision.LossScaleOptimizer(optimizers.ScheduleFreeAdamW(0.05), dynamic_growth_steps=3)


def scheduled():
    return optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, 15), momentum=0.9)


def of_keras():
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=0.5, factor=0.5),
    ]


def of_the_kit():
    return [callbacks.ReduceOnPlateau("val_loss", patience=1, min_delta=0.5, factor=0.5), callbacks.FlushAccumulation()]


def averaged():
    return [callbacks.EvaluationWeights()]


def cooling():
    return [callbacks.StartCooldown(4, file=os.devnull, stop=True)]


CASES = {
    "keras": (plain_adam, batches, of_keras),
    "accumulation": (accumulating, batches, of_the_kit),
    "schedule-free": (scaled_schedule_free, stream, averaged),
    "endless": (scheduled, lambda: {**batches(endless=True), "steps_per_epoch": 5}, cooling),
    "arrays": (plain_adam, arrays, list),
    "repeated": (plain_adam, repeated, list),
    "reshuffled": (plain_adam, reshuffled, list),
}


def train(case, saved=(), moments=None, model=None, **fit_arguments):
    """One `fit` of a case: all that must be the same."""
    optimizer, source, others = CASES[case]
    model = model or anew(optimizer())
    witness = Witness(moments or Moments(None))
    listed = [*others(), *saved, witness]
    history = model.fit(
        **source(), epochs=EPOCHS, verbose=0, callbacks=listed, validation_data=(X[:10], Y[:10]), **fit_arguments
    )
    variables = [*model.variables, *model.optimizer.variables]
    return {
        "values": [np.array(keras.ops.convert_to_numpy(v)) for v in variables],
        "history": history.history,
        "epochs": history.epoch,
        "calls": witness.calls,
    }


def assert_same(one, other):
    for left, right in zip(one["values"], other["values"], strict=True):
        np.testing.assert_array_equal(left, right, strict=True)
    assert one["history"] == other["history"] and one["epochs"] == other["epochs"]
    assert one["calls"] == other["calls"]


def interrupted(case, directory, lives, every=1, make=None, **options):
    """The case in as many lives as it takes, each of a random number of moments; how many there were, and the end."""
    rng, count = np.random.default_rng(lives), 0

    def end():
        raise Cut

    moments = Moments(end)
    with pytest.MonkeyPatch.context() as patch:
        watch_writing(moments, patch.setattr)
        while True:
            count += 1
            moments.start(int(rng.integers(12, 30)) if count < lives else None)
            try:
                saving = callbacks.ResumableTraining(directory, every=every, **options)
                return count, train(case, [saving], moments, make and make())
            except Cut:
                continue


@TENSORFLOW
@pytest.mark.shows(
    "resuming",
    "killed in the middle of an epoch, saved every few batches",
    kit="ends with the bits of the uninterrupted run",
)
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in ("accumulation", "arrays") else pytest.mark.slow) for c in CASES]
)
def test_cut_runs_end_as_whole_ones(tmp_path, case):
    whole = train(case)
    count, end = interrupted(case, tmp_path, lives=7)
    assert count >= 2  # while the disk is slow, fewer states are saved, and fewer moments pass
    assert_same(end, whole)


@TENSORFLOW
@pytest.mark.slow
def test_two_replicas_get_their_own_values_back(tmp_path, two_replicas):
    def make():
        with two_replicas.scope():
            return distribution.separate_seeds(make_model(accumulating(), eager=False))

    whole = train("accumulation", model=make())
    count, end = interrupted("accumulation", tmp_path, lives=3, every=1, make=make)
    assert count == 3
    assert_same(end, whole)
    facts = resuming.saved_states(tmp_path)[0].facts["variables"]
    own = [about for group in facts.values() for about in group if about["copies"] == 2 and not about.get("equal")]
    assert own  # what each replica had of its own


@TENSORFLOW
@pytest.mark.slow
def test_several_steps_at_once_and_xla(tmp_path):
    def make():
        return make_model(scheduled(), eager=False, steps_per_execution=2, jit_compile=True)

    whole = train("endless", model=make())
    count, end = interrupted("endless", tmp_path, lives=3, make=make)
    assert count == 3
    assert_same(end, whole)


def test_a_run_of_either_backend_goes_on(tmp_path):
    def make():
        return anew(keras.optimizers.Adam(0.02), eager=False)

    whole = train("keras", model=make())
    count, end = interrupted("keras", tmp_path, lives=3, make=make)
    assert count == 3
    assert_same(end, whole)


# --------------------------------------------------------------------------------------------- what others have written


def steps_and_epochs(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not OF_THE_MACHINE.search(name)} for line in lines]


OF_THE_MACHINE = re.compile("^time$|second|memory")


def watched():
    rate = keras.optimizers.schedules.CosineDecay(0.05, 15)
    return optimizers.SGD(rate, momentum=0.9, gradient_accumulation_steps=2)


@TENSORFLOW
def test_logs_go_on_where_the_state_was_saved(tmp_path, monkeypatch):
    def logging(folder):
        monitor = callbacks.TrainingMonitor(folder, every=2, layers_every=4, noise_scale=True)
        table = keras.callbacks.CSVLogger(folder / "log.csv")
        best = keras.callbacks.ModelCheckpoint(folder / "best.weights.h5", save_best_only=True, save_weights_only=True)
        return [monitor, table, best]

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    monkeypatch.setitem(CASES, "logged", (watched, batches, lambda: logging(tmp_path / "whole")))
    whole = train("logged")
    monkeypatch.setitem(CASES, "logged", (watched, batches, lambda: logging(tmp_path / "cut")))
    # Saved seldom, so that lines are written that are written again.
    count, end = interrupted("logged", tmp_path / "resume", lives=5, every=3)
    assert count == 5
    assert_same(end, whole)
    lines = steps_and_epochs(tmp_path / "cut")
    assert lines == steps_and_epochs(tmp_path / "whole")
    assert {"step", "layers", "epoch"} == {line["kind"] for line in lines}
    assert any("noise_to_batch_ratio" in line for line in lines)
    assert (tmp_path / "cut" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    assert points(tmp_path / "cut") == points(tmp_path / "whole")


def points(directory):
    """What TensorBoard shows: by tag the steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in ("train", "validation"):
        events = EventAccumulator(str(directory / "tensorboard" / run), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not OF_THE_MACHINE.search(tag):
                found[run, tag] = [(point.step, point.value) for point in events.Scalars(tag)]
    return found


# ------------------------------------------------------------------------------------------------------- ends of a run


class StopAt(keras.callbacks.Callback):
    def __init__(self, batch, action):
        super().__init__()
        self.batch, self.action, self.seen = batch, action, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.batch:
            self.action()


def fit(directory, *others, epochs=2, model=None, **options):
    saving = callbacks.ResumableTraining(directory, **options)
    model = model or make_model(keras.optimizers.SGD(0.01))
    history = model.fit(**batches(), epochs=epochs, verbose=0, callbacks=[*others, saving])
    return model, history, saving


@pytest.fixture
def another_process(monkeypatch):
    """Forgets which directories this process has trained to the end with."""
    monkeypatch.setattr(resumable_training, "_ended", set())


@TENSORFLOW
def test_a_run_that_has_ended_trains_on_nothing_and_may_get_more_epochs(tmp_path, another_process):
    model, history, _ = fit(tmp_path)
    with pytest.raises(ValueError, match="`directory` must be of one `fit` alone"):
        fit(tmp_path)
    resumable_training._ended.clear()
    again, same, saving = fit(tmp_path)
    assert saving.resumed_from == {"epoch": 2, "batch": 0} and same.history == history.history
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    resumable_training._ended.clear()
    longer, more, _ = fit(tmp_path, epochs=3)
    resumable_training._ended.clear()
    whole, at_once, _ = fit(tmp_path / "other", epochs=3)
    assert more.history == at_once.history and more.epoch == [0, 1, 2]
    for one, other in zip(longer.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@TENSORFLOW
@pytest.mark.parametrize("seen, batch", [(6, 2), (4, 0)], ids=["inside", "last of an epoch"])
def test_sigterm_saves_and_exits_with_zero(tmp_path, capsys, seen, batch):
    before = signal.getsignal(signal.SIGTERM)
    stop = StopAt(seen, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, stop)
    assert left.value.code == 0
    assert f"SIGTERM came: the state is saved (epoch 2, batch {batch})" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    _, history, saving = fit(tmp_path)
    assert saving.resumed_from == {"epoch": 1, "batch": batch} and len(history.history["loss"]) == 2
    assert "resuming from" in capsys.readouterr().err


@TENSORFLOW
def test_two_runs_on_one_directory(tmp_path):
    def another():
        with pytest.raises(RuntimeError, match="two runs cannot save their states in one place"):
            fit(tmp_path)

    fit(tmp_path, StopAt(2, another))


@TENSORFLOW
def test_an_error_of_the_writer_ends_fit(tmp_path, monkeypatch):
    def fail():
        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(resuming.bundle, "open_to_write", full)

    with pytest.raises(OSError, match="No space left on device.*ones before it are whole"):
        fit(tmp_path, StopAt(3, fail), every=1)
    assert resuming.saved_states(tmp_path)


@TENSORFLOW
def test_a_damaged_newest_state(tmp_path, another_process):
    whole, _, _ = fit(tmp_path / "other")
    fit(tmp_path, every=3)
    newest, before = resuming.saved_states(tmp_path)
    newest.path.write_bytes(newest.path.read_bytes()[:-200])
    resumable_training._ended.clear()
    with pytest.warns(UserWarning, match="damaged"):
        model, _, saving = fit(tmp_path, every=3)
    assert before.facts["inside"]
    assert saving.resumed_from == {name: before.facts[name] for name in ("epoch", "batch")}
    for one, other in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@TENSORFLOW
def test_early_stopping_stays_stopped(tmp_path, another_process):
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100.0)
    _, history, _ = fit(tmp_path, stop, epochs=8)
    assert len(history.epoch) == 2
    resumable_training._ended.clear()
    _, again, _ = fit(tmp_path, keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100.0), epochs=8)
    assert again.history == history.history


# ----------------------------------------------------------------------------------------------- what does not fit


@TENSORFLOW
def test_another_model_is_told_apart_by_names_and_shapes(tmp_path, another_process):
    fit(tmp_path)
    resumable_training._ended.clear()
    other = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7, name="wide"), keras.layers.Dense(1)])
    other.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ValueError, match=r"does not fit this model: .*wide/kernel` \(float32 of shape \(5, 7\)\)"):
        fit(tmp_path, model=other)
    with pytest.raises(ValueError, match="the optimizer has .*momentum.*which the state lacks"):
        fit(tmp_path, model=make_model(keras.optimizers.SGD(0.01, momentum=0.9)))


@TENSORFLOW
def test_other_versions_are_told(tmp_path, another_process, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(keras, "__version__", "3.9.9")
        fit(tmp_path)
    resumable_training._ended.clear()
    with pytest.warns(UserWarning, match=f"saved by other versions: Keras 3.9.9, here {keras.__version__}"):
        fit(tmp_path)


@TENSORFLOW
def test_other_data_are_refused(tmp_path, another_process):
    fit(tmp_path)
    resumable_training._ended.clear()
    saving = callbacks.ResumableTraining(tmp_path)
    with pytest.raises(ValueError, match="`seed` is 6"):
        make_model(keras.optimizers.SGD(0.01)).fit(data.Batches(X, Y, batch_size=BATCH, seed=6), callbacks=[saving])
    with pytest.raises(ValueError, match="on the kit's data; here they are others"):
        make_model(keras.optimizers.SGD(0.01)).fit(X, Y, callbacks=[callbacks.ResumableTraining(tmp_path)])


class Counter(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs_seen, self.patience = 0, 3

    def on_epoch_end(self, epoch, logs=None):
        self.epochs_seen += 1


@TENSORFLOW
def test_callbacks_that_would_forget_are_named(tmp_path):
    with pytest.warns(UserWarning, match=r"Counter changes in training \(epochs_seen\).*get_state") as warned:
        fit(tmp_path, Counter())
    assert len([one for one in warned if "Counter" in str(one.message)]) == 1


@TENSORFLOW
def test_callbacks_that_came_and_went_are_named(tmp_path, another_process):
    fit(tmp_path, keras.callbacks.EarlyStopping("loss"))
    resumable_training._ended.clear()
    with pytest.warns(UserWarning, match="EarlyStopping#0 is gone; ReduceLROnPlateau#0 is new and begins anew"):
        fit(tmp_path, keras.callbacks.ReduceLROnPlateau("loss"))


@TENSORFLOW
def test_what_cannot_be_resumed_is_refused_at_the_start(tmp_path):
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    unbuilt.compile("sgd", "mse")
    with pytest.raises(ValueError, match="needs a model whose variables are there before training"):
        fit(tmp_path, model=unbuilt)
    with pytest.raises(ValueError, match="one callback that restores"):
        fit(tmp_path, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    for arguments, message in [
        ({"keep": 0}, "`keep`"), ({"keep_best": -1}, "`keep_best`"), ({"every": "often"}, "`every`"),
        ({"mode": "high"}, "`mode`"), ({"signals": ["SIGNAL"]}, "`signals`"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            callbacks.ResumableTraining(tmp_path, **arguments)
    config = callbacks.ResumableTraining(tmp_path, every=7, keep_best=2).get_config()
    assert callbacks.ResumableTraining.from_config(config).get_config() == config


# ------------------------------------------------------------------------------------------------------ plain Keras


@TENSORFLOW
@pytest.mark.shows(
    "resuming",
    "killed in the middle of an epoch, saved every few batches",
    keras="`BackupAndRestore` begins the epoch anew, from weights of the middle of it",
)
def test_keras_begins_the_epoch_anew_from_weights_in_the_middle_of_it(tmp_path):
    def run(cut):
        def end():
            raise Cut

        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=2)
        stop = keras.callbacks.EarlyStopping("loss", patience=2)
        seen = StopAt(cut, end)
        model = make_model(keras.optimizers.Adam(0.02))
        with contextlib.suppress(Cut):
            model.fit(X, Y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[backup, stop, seen])
        return model, seen

    whole, _ = run(cut=-1)
    run(cut=8)  # in the second epoch of 4 batches, of which 6 batches were saved
    resumed, seen = run(cut=-1)
    assert seen.seen == 4 * EPOCHS - 4  # Keras trains on the epoch's first two batches twice
    assert int(resumed.optimizer.iterations) == 4 * EPOCHS + 2
    assert not np.array_equal(whole.get_weights()[0], resumed.get_weights()[0])

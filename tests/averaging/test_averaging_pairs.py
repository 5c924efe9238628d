"""`WeightAveraging` with other callbacks, before and behind them; what Keras's own averages do there."""

import keras
import numpy as np
import pytest
from averaged_models import (
    Record,
    X,
    Y,
    assert_bits,
    assert_near,
    innermost,
    loss_at,
    small_model,
    train,
    trajectory,
    weights_of,
)
from averaging_twin import averaged
from keras import ops

from keras_trainkit import averaging, callbacks, optimizers, pruning
from keras_trainkit.callbacks import WeightAveraging
from keras_trainkit.core import backend, evaluation

EMA, LAWA = averaging.EMA(0.8), averaging.LAWA(3, every=2)
KERAS = lambda **options: keras.optimizers.Adam(0.03, **options)  # noqa: E731
KIT = lambda **options: optimizers.AdamW(0.03, **options)  # noqa: E731
both_orders = pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
each_in_one_order = pytest.mark.parametrize(
    ("make", "first"), [(KERAS, True), (KIT, False)], ids=["Keras, before", "kit, behind"]
)
OPPOSITE = {"validation_data": (X, -Y)}  # the more it learns, the worse


def ordered(first, mine, *others):
    return [mine, *others] if first else [*others, mine]


@each_in_one_order
@pytest.mark.shows(
    "averages", "`EarlyStopping(restore_best_weights=True)`", kit="restores the weights whose metric it recorded"
)
def test_early_stopping_restores_the_average_that_it_measured(make, first):
    model = small_model(make())
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = train(model, *ordered(first, WeightAveraging(EMA), stop), epochs=30, **OPPOSITE)["val_loss"]
    assert len(history) == 3 and min(history) == history[0]
    assert model.evaluate(X, -Y, batch_size=16, verbose=0) == pytest.approx(history[0], rel=1e-5)
    assert_near(weights_of(model), averaged(EMA, trajectory(small_model(make()), epochs=1)))


@pytest.mark.tensorflow
@each_in_one_order
def test_the_best_checkpoint_is_the_average_that_was_measured(make, first, tmp_path):
    model, path = small_model(make()), tmp_path / "best.keras"
    saver = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    history = train(model, *ordered(first, WeightAveraging(LAWA), saver), epochs=3, **OPPOSITE)["val_loss"]
    best = keras.models.load_model(path)
    assert best.evaluate(X, -Y, batch_size=16, verbose=0) == pytest.approx(min(history), rel=1e-5)


@pytest.mark.tensorflow
@both_orders
def test_a_checkpoint_of_the_kits_optimizer_trains_on_to_the_same_bits(first, tmp_path):
    """Without validation, so that nothing but the end of the epoch puts the average in."""
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole, half = small_model(KIT()), small_model(KIT())
    train(whole, WeightAveraging(LAWA), epochs=4)
    train(half, *ordered(first, WeightAveraging(LAWA), saver), epochs=2)
    resumed = keras.models.load_model(tmp_path / "2.keras")
    assert_bits(weights_of(resumed), weights_of(half))
    train(resumed, WeightAveraging(LAWA), epochs=2)
    assert_bits(weights_of(resumed), weights_of(whole))
    with pytest.warns(UserWarning, match="The saved averages are of another kind or size"):
        train(keras.models.load_model(tmp_path / "2.keras"), WeightAveraging(EMA), epochs=1)


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.at, self.epoch = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at and batch == 1:
            raise KeyboardInterrupt


@pytest.mark.tensorflow
@each_in_one_order
def test_backup_and_restore_is_exact(make, first, tmp_path):
    def both():
        return ordered(first, WeightAveraging(EMA), keras.callbacks.BackupAndRestore(tmp_path / "backup"))

    whole, broken, resumed = (small_model(make()) for _ in range(3))
    train(whole, WeightAveraging(EMA), epochs=4, validate=True)
    with pytest.raises(KeyboardInterrupt):
        train(broken, *both(), Stop(2), epochs=4, validate=True)
    train(resumed, *both(), epochs=4, validate=True)
    assert_bits(weights_of(resumed), weights_of(whole))


@pytest.mark.parametrize(
    ("make", "first", "average"),
    [(KERAS, True, EMA), (KERAS, False, LAWA), (KIT, False, EMA), (KIT, True, LAWA)][
        :: 1 if backend.ON_TENSORFLOW else 3
    ],
)
def test_resumed_runs_end_with_the_same_bits(make, first, average, tmp_path):
    def all_of(folder, *more):
        return ordered(
            first, WeightAveraging(average), callbacks.ResumableTraining(tmp_path / folder, every=1),
            keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True), *more,
        )  # fmt: skip

    whole, resumed = small_model(make()), small_model(make())
    expected = train(whole, *all_of("whole"), epochs=4, validate=True)
    for epoch in (1, 2):  # in the middle of an epoch, twice
        with pytest.raises(KeyboardInterrupt):
            train(resumed, *all_of("cut", Stop(epoch)), epochs=4, validate=True)
        resumed = small_model(make())
    history = train(resumed, *all_of("cut"), epochs=4, validate=True)
    assert history["val_loss"] == expected["val_loss"]
    assert_bits(weights_of(resumed), weights_of(whole))
    for model in (resumed, whole):
        evaluation.put_back(innermost(model))
    assert_bits(weights_of(resumed), weights_of(whole))


@each_in_one_order
def test_with_the_other_callbacks_of_the_kit(make, first, tmp_path):
    """The monitor's lines, and a rate that falls on a plateau of the average's loss, change nothing."""

    def others(folder):
        plateau = callbacks.ReduceOnPlateau("val_loss", factor=0.1, patience=1, min_delta=10.0)
        return [callbacks.TrainingMonitor(tmp_path / folder, every=2, tensorboard=False), plateau]

    plain, record = small_model(make()), Record()
    train(plain, *others("plain"), record, epochs=3, validate=True)
    model = small_model(make())
    history = train(model, *ordered(first, WeightAveraging(EMA), *others("mine")), epochs=3, validate=True)
    assert_near(weights_of(model), averaged(EMA, record.after))
    assert history["rate_multiplier"] == pytest.approx([1.0, 0.1, 0.01])


@pytest.mark.tensorflow
@each_in_one_order
def test_pruned_weights_have_pruned_averages(make, first):
    model = small_model(make())
    prune = callbacks.MagnitudePruning(0.5, begin_step=2, end_step=6, frequency=1)
    train(model, *ordered(first, WeightAveraging(averaging.EMA(0.5)), prune), epochs=3)
    gone = ops.convert_to_numpy(pruning.strip(model).layers[0].kernel) == 0
    assert gone.mean() == pytest.approx(0.5, abs=0.02)
    assert "train_step" not in vars(model)


# ------------------------------------------------------------------------------------- what Keras's own averages do


def keras_average(**options):
    return small_model(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, **options))


@pytest.mark.shows(
    "averages",
    "`predict` with the callback",
    keras="leaves the average in the model, and training goes on from it",
    kit="leaves the model as it was, bit for bit",
)
@pytest.mark.tensorflow
def test_prediction_leaves_the_average_in_the_model():
    theirs, ours = keras_average(), small_model(keras.optimizers.SGD(0.1))
    record = Record()
    train(theirs, record, epochs=1)
    for variable, value in zip(theirs.trainable_variables, record.after[-1], strict=True):
        variable.assign(value)
    theirs.predict(X, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
    assert np.abs(weights_of(theirs)[0] - record.after[-1][0]).max() > 1e-3
    train(ours, WeightAveraging(EMA), epochs=1)
    evaluation.put_back(ours.optimizer)
    before = weights_of(ours)
    ours.predict(X, verbose=0, callbacks=[WeightAveraging(EMA)])
    assert_bits(weights_of(ours), before)


@pytest.mark.shows(
    "averages",
    "`EarlyStopping(restore_best_weights=True)`",
    keras="restores the trained weights, of which the metric was not",
)
@pytest.mark.tensorflow
def test_keras_restores_other_weights_than_it_measured():
    theirs = keras_average()
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = train(theirs, keras.callbacks.SwapEMAWeights(), stop, epochs=30, **OPPOSITE)["val_loss"]
    restored = theirs.evaluate(X, -Y, batch_size=16, verbose=0)
    assert abs(restored - min(history)) > 0.02


@pytest.mark.shows(
    "averages",
    "an epoch's swap and back",
    keras="sums and differences: the trained weights lose bits",
    kit="values change places: a run trains as one without averages",
)
@pytest.mark.tensorflow
def test_a_swap_by_arithmetic_loses_bits():
    records = [Record() for _ in range(4)]
    train(keras_average(), records[0], validate=True)
    train(keras_average(), keras.callbacks.SwapEMAWeights(), records[1], validate=True)
    assert any((a != b).any() for a, b in zip(records[0].after[-1], records[1].after[-1], strict=True))
    train(small_model(keras.optimizers.SGD(0.1)), records[2], validate=True)
    train(small_model(keras.optimizers.SGD(0.1)), WeightAveraging(EMA), records[3], validate=True)
    for one, other in zip(records[2].after, records[3].after, strict=True):
        assert_bits(one, other)


@pytest.mark.shows(
    "averages",
    "`swap_on_epoch=True` and an early stop",
    keras="ends on other weights than were saved at the last epoch's end",
    kit="ends on the average, which was saved",
)
@pytest.mark.tensorflow
def test_an_early_stop_ends_on_other_weights():
    class Last(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.saved = weights_of(self.model)
            self.model.stop_training = epoch == 1

    last = Last()
    theirs = keras_average()
    train(theirs, keras.callbacks.SwapEMAWeights(swap_on_epoch=True), last, epochs=5)
    assert np.abs(weights_of(theirs)[0] - last.saved[0]).max() > 1e-3
    ours = small_model(keras.optimizers.SGD(0.1))
    train(ours, WeightAveraging(EMA), last, epochs=5)
    assert_bits(weights_of(ours), last.saved)


@pytest.mark.tensorflow
@pytest.mark.shows(
    "averages",
    "gradient accumulation on one device",
    keras="the average moves with each micro-batch",
    kit="the average moves with each update",
)
@pytest.mark.tensorflow
def test_micro_batches_count_as_updates_for_keras():
    theirs = keras_average(gradient_accumulation_steps=2)
    train(theirs, epochs=3)
    path = trajectory(small_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)), epochs=3)
    right = averaged(averaging.EMA(0.9, dynamic=False), path)
    assert np.abs(weights_of(theirs)[0] - right[0]).max() > 1e-3
    ours = small_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    train(ours, WeightAveraging(averaging.EMA(0.9, dynamic=False)), epochs=3)
    assert_near(weights_of(ours), right)


def test_losses_of_the_history_are_of_the_average():
    model = small_model(KERAS())
    history = train(model, WeightAveraging(EMA), epochs=2, validate=True)
    assert history["val_loss"][-1] == pytest.approx(loss_at(weights_of(model)), rel=1e-5)

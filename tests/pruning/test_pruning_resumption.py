"""Several fits, files, resumption, errors."""

import keras
import numpy as np
import pytest
from pruned_models import X, Y, assert_held, assert_same, fit, kernels, masks, model_of, pruned, whole_run

from keras_trainkit import callbacks, optimizers, pruning
from keras_trainkit.callbacks import AccumulationSchedule, MagnitudePruning

MAKERS = {
    "the kit": lambda: optimizers.AdamW(1e-2, use_ema=True),
    "Schedule-Free": lambda: optimizers.ScheduleFreeAdamW(1e-2),
    "Keras": lambda: keras.optimizers.Adam(1e-2),
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_loaded_model_goes_on_bit_for_bit(name, tmp_path):
    # The average goes in when `fit` ends, and would be trained on: EvaluationWeights brings the trained weights back.
    more = [] if name == "Keras" else [callbacks.EvaluationWeights()]
    whole = model_of(MAKERS[name]())
    fit(whole, *more, pruned())
    half = model_of(MAKERS[name]())
    fit(half, *more, pruned(), epochs=2)
    assert 0 < pruning.summary(half).sparsity < pruning.summary(whole).sparsity
    half.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    assert_same(half, loaded)
    fit(loaded, *([] if name == "Keras" else [callbacks.EvaluationWeights()]), pruned(), epochs=4, initial_epoch=2)
    assert_same(whole, loaded)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["the kit", "Keras"])
def test_living_zeros_are_told_from_those_that_have_gone(name, tmp_path):
    model = model_of(MAKERS[name]())
    fit(model, pruned(), epochs=2)
    layer = model.get_layer("one")
    value = kernels(model)[0].copy()
    living = tuple(np.argwhere(masks(model)[0])[0])
    value[living] = 0
    layer.kernel.assign(value)
    before = masks(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, pruned(end_step=10_000, begin_step=10_000), epochs=3, initial_epoch=2)
    np.testing.assert_array_equal(masks(loaded)[0], before[0])
    assert kernels(loaded)[0][living] != 0


@keras.saving.register_keras_serializable("tests")
class Plain(keras.layers.Layer):
    """A layer whose configuration can name no constraint."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 6), name="kernel")

    def call(self, x):
        return keras.ops.tanh(x @ self.kernel)


@pytest.mark.tensorflow
def test_where_the_file_holds_no_mask_the_zeros_tell(tmp_path):
    def make():
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((8,)), Plain(), keras.layers.Dense(3)])
        model.compile(optimizers.SGD(0.1, momentum=0.9), "mse")
        return model

    whole, half = make(), make()
    fit(whole, pruned())
    fit(half, pruned(), epochs=2)
    half.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    assert not masks(loaded)
    fit(loaded, pruned(), epochs=4, initial_epoch=2)
    assert_same(whole, loaded)


@pytest.mark.tensorflow
@pytest.mark.parametrize(("name", "first"), [("the kit", True), ("Keras", False)], ids=["before it", "behind it"])
def test_backup_and_restore(name, first, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def in_order():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return [pruned(), backup] if first else [backup, pruned()]

    def make():
        return optimizers.AdamW(1e-2) if name == "the kit" else keras.optimizers.Adam(1e-2)

    whole = whole_run(name == "Keras")
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(make()), *in_order(), Stop())
    resumed = model_of(make())
    fit(resumed, *in_order())
    assert_same(whole, resumed)


def test_trained_on_without_the_callback_it_stays_sparse():
    model = model_of(optimizers.ScheduleFreeAdamW(1e-2))
    fit(model, pruned())
    before = masks(model)
    fit(model, epochs=2)
    assert_held(model)
    model.optimizer.to_evaluation()
    assert_held(model)
    np.testing.assert_array_equal(masks(model)[0], before[0])


@pytest.mark.tensorflow
def test_a_second_fit_goes_on_and_another_callback_prunes_further():
    parts = model_of(optimizers.AdamW(1e-2))
    callback = pruned()
    fit(parts, callback, epochs=2)
    fit(parts, callback, epochs=2)
    assert_same(parts, whole_run(False))
    before = masks(parts)
    fit(parts, pruned(final_sparsity=0.9, begin_step=0, end_step=0), epochs=1)
    assert_held(parts, 0.9)
    assert not any((after & ~old).any() for after, old in zip(masks(parts), before, strict=True))
    fit(parts, pruned(final_sparsity=0.5, begin_step=0, end_step=0), epochs=1)
    assert_held(parts, 0.9)  # what has gone stays gone


@pytest.mark.tensorflow
def test_weights_of_an_epoch_that_was_less_sparse_are_masked_at_the_end():
    model = model_of(optimizers.AdamW(1e-2))
    first = model.get_weights()

    class Restore(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.model.set_weights(first)

    fit(model, Restore(), pruned())
    assert_held(model)


@pytest.mark.tensorflow
def test_an_error_in_fit_leaves_a_model_that_can_be_fitted_again():
    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("on purpose")

    model, callback = model_of(optimizers.AdamW(1e-2)), pruned()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, callback, Fail())
    fit(model, callback, epochs=3)
    assert_held(model)
    assert "train_step" not in vars(model)


@pytest.mark.tensorflow
def test_spans_of_the_run_and_unknown_lengths():
    model = model_of(optimizers.AdamW(1e-2, gradient_accumulation_steps=2))
    callback = pruned(begin_step="1ep", end_step="0.5run", frequency="0.5ep")
    fit(model, callback)
    assert callback.schedule.stages() == [4, 6, 8]
    assert_held(model)
    callback = pruned(begin_step="1ep", end_step="2ep", frequency=2)  # epochs of 8 batches
    growing = AccumulationSchedule({0: 1, 1: 2})
    fit(model_of(optimizers.AdamW(1e-2, gradient_accumulation_steps=2)), callback, growing)
    assert callback.schedule.stages() == [8, 10, 12]

    def endless():
        while True:
            yield X[:8], Y[:8]

    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        model_of("sgd").fit(endless(), callbacks=[pruned(begin_step="1ep", end_step="2ep")], verbose=0)


@pytest.mark.tensorflow
def test_a_constraint_of_the_users_stays_in_force(tmp_path):
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(6, kernel_constraint="non_neg", name="one"), keras.layers.Dense(3)]
    )
    model.compile(optimizers.SGD(0.1), "mse")
    fit(model, pruned())
    kernel = model.get_layer("one").kernel
    assert keras.ops.convert_to_numpy(kernel).min() == 0
    model.save(tmp_path / "model.keras")
    loaded = pruning.strip(keras.models.load_model(tmp_path / "model.keras"))
    assert isinstance(loaded.get_layer("one").kernel.constraint, keras.constraints.NonNeg)
    assert isinstance(loaded.get_layer("one").kernel_constraint, keras.constraints.NonNeg)


@pytest.mark.tensorflow
def test_rows_of_embeddings_that_are_updated_alone_cannot_be_pruned():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten()])
    model.compile(optimizers.LazyAdam(), "mse")
    ids = np.zeros((8, 2), "int32")
    with pytest.raises(ValueError, match="updates single rows"):
        model.fit(ids, np.zeros((8, 8)), callbacks=[pruned(layers=["embeddings"])], verbose=0)
    model.compile(optimizers.Adam(), "mse")
    model.fit(ids, np.zeros((8, 8)), callbacks=[pruned(layers=["embeddings"], begin_step=0, end_step=0)], verbose=0)
    assert (model.get_weights()[0] == 0).sum() == 27


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "`final_sparsity` must be given"),
        ({"final_sparsity": 0.6, "structure": "2:4"}, "is 0.5"),
        ({"final_sparsity": 0.6, "structure": "block"}, "`structure` must be"),
        ({"final_sparsity": 0.6, "epochs": 0}, "`epochs`"),
        ({"final_sparsity": 0.6, "norm": "l3"}, "`norm`"),
        ({"final_sparsity": 1.2}, "Received: final_sparsity=1.2"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        MagnitudePruning(**arguments)
    with pytest.raises(TypeError, match="`layers`"):
        MagnitudePruning(0.5, layers="dense")


def test_the_callback_survives_its_configuration():
    made = pruned(structure="filters", norm="l1", layers=["one"], begin_step="1ep")
    config = keras.saving.serialize_keras_object(made)
    assert keras.saving.deserialize_keras_object(config).get_config() == made.get_config()

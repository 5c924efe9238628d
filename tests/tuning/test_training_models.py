"""What trains in a training search: recipes on their data, and a user's models with a recipe's parts."""

import keras
import keras_tuner
import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `tuning` is not installed")

from keras_trainkit import data, optimizers, recipes, tuning
from keras_trainkit.recipes import Recipe
from keras_trainkit.tuning import RecipeModel, TrainingModel, TrainingSpace

pytestmark = pytest.mark.tensorflow

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(96, 4)).astype("float32")
LABELS = (X[:, 0] > 0).astype("int64")
NUMBERS = X.sum(axis=1, keepdims=True)


def build(hp):
    units = hp.Choice("units", [4, 8])
    hidden = keras.layers.Dense(units, "relu")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dropout(0.5), keras.layers.Dense(1)])


def classifier(hp):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])


def point(model, **values):
    hp = keras_tuner.HyperParameters()
    model.declare_hyperparameters(hp)
    hp.values.update(values)
    return hp


@pytest.fixture
def easy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("easy.npz", x_train=X, y_train=LABELS, x_test=X, y_test=LABELS)
    return Recipe(data="easy.npz", epochs=3, batch_size=16)


def test_a_trial_is_the_run_of_its_recipe_to_the_last_bit(easy):
    space = TrainingSpace(optimizer=["adamw", "schedulefreeadamw"], learning_rate="auto")
    model = RecipeModel(easy, space, data.load("easy.npz", seed=0))
    for optimizer in ("adamw", "schedulefreeadamw"):  # the second is measured with other weights than it trains
        hp = point(model, optimizer=optimizer, learning_rate=0.01)
        history = model.fit(hp, model.build(hp)).history
        result = recipes.run(model.recipe_of(hp), optimizer, progress=False)
        accuracies = history["val_accuracy"]
        assert result.best["value"] == max(accuracies)
        assert history["val_loss"][result.best["epoch"] - 1] == min(
            loss for loss, accuracy in zip(history["val_loss"], accuracies, strict=True) if accuracy == max(accuracies)
        )
        measured = recipes.evaluation.Evaluator(model._job.twin, model.dataset)("test")
        if result.best["epoch"] == 3:
            assert measured == result.test


def test_fewer_epochs_are_the_first_ones_of_the_run(easy):
    model = RecipeModel(easy, TrainingSpace(learning_rate="auto"), data.load("easy.npz", seed=0))
    hp = point(model)
    whole = model.fit(hp, model.build(hp)).history["val_loss"]
    assert model.fit(hp, model.build(hp), epochs=2).history["val_loss"] == whole[:2]
    assert len(model.fit(hp, model.build(hp), epochs=9).history["val_loss"]) == 3


def test_precision_is_that_of_the_trial_and_not_of_the_process(easy):
    model = RecipeModel(easy, TrainingSpace(precision=["mixed_bfloat16", "float32"]), data.load("easy.npz", seed=0))
    built = model.build(point(model, precision="mixed_bfloat16"))
    assert {layer.compute_dtype for layer in built.layers} >= {"bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


def test_a_users_model_gets_optimizer_schedule_and_dropout():
    space = TrainingSpace(optimizer=["lion", "sgd"], learning_rate=[0.5], schedule=["linear"], dropout=[0.1],
                          regularizer=["l2"], regularizer_strength=[0.25], arguments={"momentum": [0.75]})  # fmt: skip
    model = TrainingModel(build, space, loss="mse", recipe=Recipe(warmup=0.25, weight_decay=0.0, epochs=4))
    hp = point(model, optimizer="sgd", momentum=0.75)
    built = model.build(hp)
    assert isinstance(built.optimizer, optimizers.SGD) and built.optimizer.momentum == 0.75
    assert built.layers[1].rate == 0.1 and built.layers[0].kernel.regularizer.l2 == 0.25
    seen = []
    rates = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(built.optimizer.learning_rate))
    )
    model.fit(hp, built, X, NUMBERS, callbacks=[rates], verbose=0)
    steps = 4 * 3  # of 32 rows each
    after = np.arange(1, steps + 1)
    ramp = 0.005 + (0.5 - 0.005) * after / 3
    assert np.allclose(seen, np.where(after < 3, ramp, 0.5 * (1 - (after - 3) / 9)), atol=1e-6)


@pytest.mark.parametrize("schedule", recipes.rates.SCHEDULES)
def test_schedules_for_a_run_of_any_length_are_those_of_a_known_one(schedule):
    from keras_trainkit import schedules

    known = recipes.rates.build(schedule, 0.1, 200, 20, 10.0)
    open_ended = schedules.resolve(recipes.rates.in_spans(schedule, 0.1, 0.1), 10.0, 20.0)
    for step in (0, 25, 60, 110, 163, 190, 199):
        if step >= 20 or schedule in recipes.rates.WITH_OWN_WARMUP:  # the ramps begin at other rates
            assert float(open_ended(step)) == pytest.approx(float(known(step)), rel=2e-2, abs=1e-3)


def test_a_search_over_a_users_model(tmp_path):
    space = TrainingSpace(optimizer=["adamw", "lion"], learning_rate="auto", batch_size=[16, 32])
    model = TrainingModel(build, space, loss="mse", recipe=Recipe(epochs=2))
    tuner = tuning.RandomSearch(model, "val_loss", max_trials=2, seed=0, directory=tmp_path)
    names = {parameter.name for parameter in tuner.oracle.get_space().space}
    assert names == {"optimizer", "learning_rate", "batch_size", "units"}
    tuner.search(X, NUMBERS, validation_split=0.25, verbose=0)
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 2
    assert tuner.get_best_models()[0].predict(X[:2], verbose=0).shape == (2, 1)


def test_classes_are_mixed_and_smoothed():
    space = TrainingSpace(augmentation=["mixup"], label_smoothing=[0.1], learning_rate=[0.1], batch_size=[8])
    model = TrainingModel(
        classifier, space, loss="categorical_crossentropy", metrics=["accuracy"], classes=2, recipe=Recipe(epochs=6)
    )
    hp = point(model)
    history = model.fit(hp, model.build(hp), X, LABELS, validation_split=0.25, verbose=0).history
    assert history["val_accuracy"][-1] > 0.85 and history["loss"][-1] > 0.2  # targets are never 0 or 1
    plain = TrainingModel(classifier, TrainingSpace(learning_rate=[0.1]), loss="categorical_crossentropy", classes=2)
    hp = point(plain)
    got = plain.fit(hp, plain.build(hp), X, LABELS, validation_data=(X, LABELS), epochs=1, verbose=0).history
    assert "val_loss" in got


def test_what_cannot_be_searched_without_arrays(tmp_path):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((X, NUMBERS)).batch(32)
    model = TrainingModel(build, TrainingSpace(batch_size=[16, 32]), loss="mse")
    hp = point(model)
    with pytest.raises(keras_tuner.errors.FatalValueError, match="`batch_size` can be searched with arrays alone"):
        model.fit(hp, model.build(hp), batches)
    free = TrainingModel(build, TrainingSpace(learning_rate="auto"), loss="mse", recipe=Recipe(epochs=1))
    hp = point(free)
    assert len(free.fit(hp, free.build(hp), batches, verbose=0).history["loss"]) == 1


def test_models_that_are_compiled_or_not_built_and_warm_ups_in_updates():
    space = TrainingSpace(learning_rate="auto")

    def compiled(hp):
        model = classifier(hp)
        model.compile("sgd", "mse")
        return model

    for wrong, words in [(compiled, "that is compiled"), (lambda hp: keras.Sequential([]), "that is not built")]:
        model = TrainingModel(wrong, space, loss="mse")
        with pytest.raises(ValueError, match=words):
            model.build(point(model))
    with pytest.raises(ValueError, match="warm-up that is a share of the run, below 1.*warmup=50"):
        TrainingModel(build, space, loss="mse", recipe=Recipe(warmup=50))

"""`recipes.run`: the run directory, for completed, interrupted and failed runs, on one and two replicas."""

import json
import os
import signal
import sys

import keras
import numpy as np
import pytest

from keras_trainkit import recipes, reporting
from keras_trainkit.data import DataError
from keras_trainkit.recipes import Recipe, RecipeError, preparation
from keras_trainkit.recipes.evaluation import Evaluator

pytestmark = pytest.mark.tensorflow

JSON = {"recipe.json", "environment.json", "metrics.jsonl", "result.json"}
FILES = JSON | {"tensorboard", "model.keras", "report.html", "resume"}
NET = """
import keras

def small(input_shape, outputs):
    layers = keras.layers
    return keras.Sequential([layers.Flatten(), layers.Dense(8, activation="relu"), layers.Dense(outputs)])

def endless(input_shape, outputs):
    image = keras.Input(input_shape)
    x = keras.layers.Rescaling(1e30)(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(outputs)(keras.ops.square(x)))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory with a module of two models and a data set that is quickly learnt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "runner_net.py").write_text(NET)
    random = np.random.default_rng(0)
    x = random.normal(size=(260, 3)).astype("float32")
    y = (x @ [1.0, -2.0, 0.5] > 0).astype("int64")
    np.savez(tmp_path / "easy.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    rows = "\n".join(f"{a},{'red' if b > 0 else 'blue'},{3 * a + b + 100}" for a, b, _ in x)
    (tmp_path / "table.csv").write_text("size,colour,price\n" + rows + "\n")
    yield tmp_path
    sys.modules.pop("runner_net", None)


@pytest.fixture
def real_report():
    """For tests of the report's content; drawing takes longer than the small runs here."""


@pytest.fixture(autouse=True)
def quick_report(request, monkeypatch):
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(reporting, "report", lambda path: (path / "report.html").write_text("quick"))


EASY = Recipe(data="easy.npz", model="runner_net:small", learning_rate=0.1, epochs=4, batch_size=16)


def change(recipe, **values):
    return Recipe.from_dict({**recipe.to_dict(), **values})


def read(path, name):
    return json.loads((path / name).read_text())


def test_a_run_leaves_everything_it_promises(here, real_report):
    result = recipes.run(EASY, progress=False)
    path = here / "runs" / "easy-1"
    assert {child.name for child in path.iterdir()} == FILES
    assert result.run_directory == os.path.join("runs", "easy-1")
    assert read(path, "result.json") == json.loads(json.dumps(result.to_dict()))
    assert (result.status, result.epochs_completed, result.updates) == ("completed", 4, 4 * 11)
    assert result.test["accuracy"] > 0.9
    assert result.best["metric"] == "val_accuracy" and 1 <= result.best["epoch"] <= 4
    assert (result.train_examples, result.test_examples) == (180, 60)
    assert result.samples_per_second > 0 and result.seconds > result.train_seconds > 0

    written = read(path, "recipe.json")
    assert Recipe.from_file(path / "recipe.json") == EASY
    assert written["resolved"]["updates"] == 44 and written["resolved"]["data"]["splits"]["test"] == 60
    environment = read(path, "environment.json")
    assert environment["versions"]["keras"] == keras.__version__ and environment["started"] <= environment["ended"]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(epochs[0])
    assert {line["step"] for line in lines if line["kind"] == "step"} == {10, 20, 30, 40}
    assert max(line["val_accuracy"] for line in epochs) == result.best["value"]
    assert "val" in (path / "report.html").read_text()


def test_a_run_against_overfitting_learns_from_rows_of_probabilities(here):
    keys = {"augmentation": "mixup", "label_smoothing": 0.1, "regularizer": "l2", "initializer": "orthogonal"}
    job = preparation.prepare(change(EASY, **keys))
    _, y = next(iter(job.batches()))
    assert y.shape == (16, 2) and 0.05 <= np.min(y) < np.max(y) <= 0.95  # smoothed, and some mixed
    assert len(np.unique(np.round(y, 4))) > 4
    result = recipes.run(change(EASY, **keys), "mixed", progress=False)
    assert result.test["accuracy"] > 0.85
    assert Recipe.from_file(here / "mixed" / "recipe.json").augmentation == "mixup"


def test_the_saved_model_predicts_from_raw_values_as_the_test_says(here):
    result = recipes.run(EASY, "run", progress=False)
    model = keras.models.load_model(here / "run" / "model.keras")
    with np.load("easy.npz") as data:
        probabilities = model.predict(data["x_test"], verbose=0)
        assert float((probabilities.argmax(axis=1) == data["y_test"]).mean()) == result.test["accuracy"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_not_the_last_epoch_is_tested_and_saved_but_the_best(here):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                self.model.set_weights([-10 * weight for weight in self.model.get_weights()])

    result = recipes.run(EASY, "run", callbacks=[Spoil()], progress=False)
    assert result.best["epoch"] < 4 and result.test["accuracy"] > 0.85
    with np.load("easy.npz") as data:
        scores = keras.models.load_model(here / "run" / "model.keras").predict(data["x_test"], verbose=0)
        assert float((scores.argmax(axis=1) == data["y_test"]).mean()) == result.test["accuracy"]
        np.testing.assert_allclose(
            -np.log(scores[np.arange(60), data["y_test"]]).mean(), result.test["loss"], rtol=1e-4
        )


def test_regression_reports_original_units_and_predicts_from_raw_columns(here):
    recipe = Recipe(data="table.csv", target="price", epochs=40, batch_size=16, learning_rate=0.01)
    result = recipes.run(recipe, "run", progress=False)
    assert result.task == "regression" and result.best["metric"] == "val_loss"
    assert result.test["r2"] > 0.8
    model = keras.models.load_model(here / "run" / "model.keras")
    columns = {"size": np.array([1.0, -1.0]), "colour": np.array(["red", "blue"], dtype=object)}
    high, low = model.predict(columns, verbose=0)[:, 0]
    assert 101 < high < 107 and 93 < low < 99


def test_one_seed_gives_one_model_and_another_seed_another():
    losses = [recipes.run(change(EASY, seed=seed), progress=False).test["loss"] for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("precision", ["mixed_float16", "bfloat16", "float64"])
def test_precisions(here, precision):
    result = recipes.run(change(EASY, precision=precision), "run", progress=False)
    assert result.test["accuracy"] > 0.85
    lines = (here / "run" / "metrics.jsonl").read_text()
    assert ('"loss_scale"' in lines) == (precision == "mixed_float16")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_two_replicas_train_as_one_does(precision):
    one = recipes.run(change(EASY, precision=precision), "one", progress=False)
    two = recipes.run(change(EASY, precision=precision, replicas=2), "two", progress=False)
    assert two.updates == one.updates
    tolerance = 1e-4 if precision == "float32" else 2e-2
    assert two.test["loss"] == pytest.approx(one.test["loss"], rel=tolerance)


def test_accumulation_makes_the_big_batch():
    big = recipes.run(change(EASY, batch_size=30, epochs=2), "big", progress=False)
    parts = recipes.run(change(EASY, batch_size=10, accumulation=3, epochs=2), "parts", progress=False)
    assert parts.updates == big.updates == 12
    assert parts.test["loss"] == pytest.approx(big.test["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "runner_net:smal"}, ["'smal'", "'small'"]),
        ({"optimizer": {"name": "adam", "beta1": 0.9}}, ["`optimizer`", "`beta1`", "'beta_1'"]),
        ({"optimizer": {"name": "adam", "beta_1": 2}}, ["`optimizer`", "`beta_1`", "2"]),
        ({"batch_size": 200}, ["200 examples", "180"]),
        ({"warmup": 44}, ["`warmup`", "44 updates"]),
        ({"replicas": 5, "batch_size": 15}, ["replicas=5"]),
    ],
)
def test_bad_recipes_write_nothing(here, changes, words):
    before = sorted(here.rglob("*"))
    with pytest.raises(RecipeError) as caught:
        recipes.run(change(EASY, **changes), progress=False)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []
    assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts] == before


def test_bad_data_writes_nothing(here):
    with pytest.raises(DataError):
        recipes.run(change(EASY, data="none.npz"), "run", progress=False)
    assert not (here / "run").exists()


def test_overwriting_replaces_the_run_only_after_the_new_one_is_checked(here):
    first = recipes.run(EASY, "run", progress=False)
    (here / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="exists"):
        recipes.run(EASY, "run", progress=False)
    with pytest.raises(RecipeError):
        recipes.run(change(EASY, model="runner_net:smal"), "run", progress=False, overwrite=True)
    assert read(here / "run", "result.json")["seconds"] == first.seconds
    recipes.run(change(EASY, epochs=1), "run", progress=False, overwrite=True)
    assert {child.name for child in (here / "run").iterdir()} == FILES | {"notes.txt"}
    assert len([line for line in (here / "run" / "metrics.jsonl").read_text().splitlines() if "epoch" in line]) < 4


class Press(keras.callbacks.Callback):
    """Presses Ctrl-C in a step of an epoch."""

    def __init__(self, epoch, batch, times=1):
        super().__init__()
        self.at, self.times = (epoch, batch), times

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_what_was_reached(here, real_report):
    result = recipes.run(EASY, "run", callbacks=[Press(epoch=2, batch=3)], progress=False)
    assert (result.status, result.epochs_completed, result.epochs) == ("interrupted", 2, 4)
    assert result.updates == 2 * 11 + 4
    assert {child.name for child in (here / "run").iterdir()} == FILES
    assert read(here / "run", "result.json")["status"] == "interrupted"
    assert [json.loads(line)["epoch"] for line in (here / "run" / "metrics.jsonl").read_text().splitlines()
            if '"epoch", ' in line] == [1, 2]  # fmt: skip
    with np.load("easy.npz") as data:
        model = keras.models.load_model(here / "run" / "model.keras")
        accuracy = float((model.predict(data["x_test"], verbose=0).argmax(axis=1) == data["y_test"]).mean())
    assert accuracy == result.test["accuracy"]
    assert "interrupted" in (here / "run" / "report.html").read_text()


def test_ctrl_c_in_the_first_epoch_leaves_no_model(here, real_report):
    result = recipes.run(EASY, "run", callbacks=[Press(epoch=0, batch=2)], progress=False)
    assert (result.status, result.epochs_completed, result.best, result.test) == ("interrupted", 0, None, None)
    assert {child.name for child in (here / "run").iterdir()} == FILES - {"model.keras"}


def test_a_second_ctrl_c_does_not_wait_for_the_step(here):
    reached = []
    later = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: reached.append(batch))
    result = recipes.run(EASY, "run", callbacks=[Press(epoch=1, batch=2, times=2), later], progress=False)
    assert (result.status, result.epochs_completed) == ("interrupted", 1)
    assert reached == [*range(11), 0, 1]
    assert {child.name for child in (here / "run").iterdir()} == FILES


def test_ctrl_c_while_the_end_is_written_leaves_a_result(here, monkeypatch):
    measure = Evaluator.__call__

    def pressed_in_the_test(self, part):
        if part == "test":
            raise KeyboardInterrupt
        return measure(self, part)

    monkeypatch.setattr(Evaluator, "__call__", pressed_in_the_test)
    with pytest.raises(KeyboardInterrupt):
        recipes.run(EASY, "run", progress=False)
    result = read(here / "run", "result.json")
    assert (result["status"], result["epochs_completed"], result["test"]) == ("interrupted", 4, None)


def test_a_crash_inside_training_is_told_in_the_result(here):
    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("disk\non fire")

    with pytest.raises(RuntimeError, match="on fire"):
        recipes.run(EASY, "run", callbacks=[Crash()], progress=False)
    result = read(here / "run", "result.json")
    assert (result["status"], result["error"]) == ("failed", "RuntimeError: disk on fire")
    assert read(here / "run", "environment.json")["ended"]
    assert (here / "run" / "model.keras").exists()


def test_a_loss_that_is_not_finite_ends_the_run_as_failed(here, real_report):
    result = recipes.run(change(EASY, model="runner_net:endless"), "run", progress=False)
    assert result.status == "failed" and result.epochs_completed == 1
    assert "diverged" in result.error and "epoch 1" in result.error
    assert result.test is None and (here / "run" / "report.html").exists()


def test_the_schedule_spans_the_run_and_no_update_has_rate_zero():
    recipe = Recipe(learning_rate=0.1, warmup=4)
    rates = [float(preparation.make_schedule(recipe, updates=20, warmup=4)(step)) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.02, 0.04, 0.06, 0.08, 0.1], rtol=1e-5)
    assert min(rates) > 0 and rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] < 0.002
    given = Recipe(learning_rate=0.1, warmup=4, epochs=4, schedule={"name": "Cosine_Restarts", "first_period": "1ep"})
    assert Recipe.from_dict(given.to_dict()) == given and given.schedule_name == "cosinerestarts"
    periods = preparation.make_schedule(given, updates=20, warmup=4).schedule
    assert (periods.first_period, periods.period_factor) == (5, 2.0)
    with pytest.raises(RecipeError, match="`schedule`: .*alpha"):
        preparation.make_schedule(Recipe(schedule={"name": "cosine", "alpha": 3}), updates=20, warmup=4)
    flat = preparation.make_schedule(Recipe(learning_rate=0.1, schedule="constant", warmup=0), updates=5, warmup=0)
    np.testing.assert_allclose([float(flat(step)) for step in range(5)], 0.1, rtol=1e-6)


def test_biases_and_scales_do_not_decay():
    recipe = Recipe(learning_rate=0.1, warmup=0, schedule="constant", weight_decay=0.5, optimizer="sgd")
    optimizer = preparation.make_optimizer(recipe, updates=10, warmup=0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, bias_initializer="ones"),
                              keras.layers.LayerNormalization()])  # fmt: skip
    before = {variable.path: variable.numpy() for variable in model.trainable_variables}
    optimizer.build(model.trainable_variables)
    optimizer.apply([keras.ops.zeros_like(variable) for variable in model.trainable_variables])
    ratios = {v.path.rpartition("/")[2]: float((v.numpy() / before[v.path]).mean()) for v in model.trainable_variables
              if v.path.rpartition("/")[2] != "beta"}  # fmt: skip
    assert ratios == pytest.approx({"kernel": 0.95, "bias": 1.0, "gamma": 1.0})


def test_another_backend_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RecipeError, match="KERAS_BACKEND=tensorflow"):
        preparation.prepare(Recipe())


class NotesWeights(keras.callbacks.Callback):
    """At each epoch's end: whether the evaluation weights are in, and the trained model's weights."""

    def __init__(self):
        super().__init__()
        self.held, self.weights = [], []

    def on_epoch_end(self, epoch, logs=None):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        self.held.append(optimizer.holds_evaluation())
        self.weights.append(self.model.get_weights())


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_schedule_free_run_measures_and_keeps_its_evaluation_weights(here, policy):
    notes = NotesWeights()
    recipe = Recipe(
        data="easy.npz", model="runner_net:small", optimizer="schedulefreeadamw", epochs=2, precision=policy
    )
    recipes.run(recipe, here / "run", callbacks=[notes], progress=False)
    assert notes.held == [True, True]
    kept = keras.models.load_model(here / "run" / "model.keras").get_weights()
    kernels = [w for w in kept if w.shape == (3, 8)]
    assert len(kernels) == 1
    assert any((kernels[0] == w).all() for weights in notes.weights for w in weights if w.shape == (3, 8))


def test_a_run_without_evaluation_weights_needs_none(here):
    notes = NotesWeights()
    recipes.run(
        Recipe(data="easy.npz", model="runner_net:small", epochs=1), here / "run", callbacks=[notes], progress=False
    )
    assert notes.held == [False]

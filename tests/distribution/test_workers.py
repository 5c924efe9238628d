"""Several workers in real processes on the loopback address: equal to one device, files by one, and what if one dies.

Every process here ends: those that hang are killed when their test does.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from pairs import LONGEST, QUIET, Pair

from keras_trainkit import distribution
from keras_trainkit.distribution.lost import find_lost

pytestmark = pytest.mark.tensorflow

HERE = Path(__file__).parent


# ------------------------------------------------------------------------------------------------- equal to one device

CASES = ["sequential", "functional", "subclassed", "compiled", "muon"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the cases of worker_program.py gave: on one device, on worker 0, on worker 1."""
    folder = tmp_path_factory.mktemp("workers")
    program = [str(HERE / "worker_program.py"), str(folder)]
    with Pair(folder, *program) as pair:
        for index in (0, 1):
            code, output = pair.ended(index)
            assert code == 0, output[-3000:]
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | QUIET
    alone = subprocess.run(
        [sys.executable, *program], env=variables, cwd=folder, capture_output=True, text=True, timeout=LONGEST
    )
    assert alone.returncode == 0, alone.stderr[-3000:]

    def read(case):
        return [dict(np.load(folder / f"{case}-{who}.npz")) for who in ("alone", 0, 1)]

    read.folder = folder
    return read


@pytest.mark.slow
@pytest.mark.shows(
    "several-machines", "`fit` and `evaluate`", kit="run; weights, metrics, predictions equal one device"
)
@pytest.mark.shows("several-machines", "`clipnorm` and its kind", kit="clip the sum")
@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one_device(results, case):
    alone, *workers = results(case)
    # With a result of its own Keras logs the last batch, where R2 is an average of the workers'.
    skipped = {"programs"} | ({"history/r2"} if case == "subclassed" else set())
    assert np.abs(alone["weights"]).max() > 0.1 and "predict" in alone and "history/val_mae" in alone
    for name in alone.keys() - skipped:
        np.testing.assert_array_equal(workers[0][name], workers[1][name], err_msg=name)
        np.testing.assert_allclose(workers[0][name], alone[name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert workers[0]["predict"].shape == (11, 2)


@pytest.mark.slow
def test_the_update_is_compiled_on_workers_too(results):
    assert all(run["programs"] > 0 for run in results("compiled"))


@pytest.mark.slow
@pytest.mark.shows(
    "several-machines",
    "an overflow on one worker",
    kit="all skip the step and halve the scale once, with `precision.LossScaleOptimizer` and with Keras's",
)
@pytest.mark.parametrize("case", ["overflow", "overflow in Keras's"])
def test_an_overflow_on_one_worker_skips_the_step_on_all(results, case):
    alone, *workers = results(case)
    steps = [[64, 1], [64, 2], [32, 2], [32, 3], [32, 4], [32, 5]]  # scale, updates
    for run in (alone, *workers):
        np.testing.assert_array_equal(run["seen"], steps)
        assert run["skipped"] == 1 and np.isfinite(run["weights"]).all()
    np.testing.assert_array_equal(workers[0]["weights"], workers[1]["weights"])
    np.testing.assert_allclose(workers[0]["weights"], alone["weights"], atol=1e-4)


@pytest.mark.slow
def test_workers_draw_different_masks(results):
    alone, *workers = results("masks")
    np.testing.assert_array_equal(workers[0]["plain"], workers[1]["plain"])
    assert (workers[0]["separate"] != workers[1]["separate"]).any()
    np.testing.assert_array_equal(workers[0]["separate"], alone["plain"])


@pytest.mark.slow
@pytest.mark.shows("several-machines", "`ModelCheckpoint` on one path", kit="the chief writes it")
def test_only_the_chief_writes(results):
    _, *workers = results("files")
    assert [bool(run["chief"]) for run in workers] == [True, False]
    assert all(run["class"] for run in workers)
    for run in workers:  # the other worker reads what the chief wrote: `fit` ends when all is written
        np.testing.assert_array_equal(run["loaded"], workers[0]["weights"])
    folder = results.folder / "workers"
    assert {path.name for path in folder.iterdir()} == {
        "best.keras", "last.keras", "backup", "events", "log.csv", "chief.csv", "monitor"
    }  # fmt: skip
    assert len((folder / "log.csv").read_text().splitlines()) == 3
    lines = [json.loads(line) for line in (folder / "monitor" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("epoch") == 2 and all("loss" in line for line in lines)
    assert len(list((folder / "events" / "train").glob("events*"))) == 1
    # Nothing of the temporary folders is left, and the files load as the class they are.
    loaded = keras.models.load_model(folder / "last.keras")
    assert type(loaded).__module__.startswith("keras.")
    np.testing.assert_array_equal(np.concatenate([w.ravel() for w in loaded.get_weights()]), workers[0]["weights"])


@pytest.mark.slow
def test_workers_without_a_seed_get_one_in_common(results):
    _, *workers = results("seed")
    np.testing.assert_array_equal(workers[0]["draw"], workers[1]["draw"])


# ---------------------------------------------------------------------------------------------------------- the faults

PLAIN = """
import os, signal
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
index = strategy.cluster_resolver.task_id
x = np.ones((8, 3), "float32")
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    variable = keras.Variable(np.zeros(1, "float32"))
    clipped = keras.optimizers.SGD(1.0, clipnorm=1.0)
    clipped.build([variable])
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    scaled.build([variable])
def attempt(name):
    for method in (model.fit, model.evaluate):
        try:
            method(x, x[:, :1], batch_size=4, verbose=0)
            print(name, method.__name__, "works", flush=True)
        except Exception as error:
            print(name, method.__name__, type(error).__name__, str(error).splitlines()[0], flush=True)
def apply(optimizer, gradient):
    tf.function(lambda: strategy.run(lambda: optimizer.apply([tf.constant([gradient])], [variable])))()
attempt("plain")
model._symbolic_build(data_batch=(x[:2], x[:2, :1]))
model._maybe_symbolic_build = lambda **_: None
attempt("built")
checkpoint = keras.callbacks.ModelCheckpoint(f"written-by-{index}.keras")
checkpoint.set_model(model)
checkpoint.on_epoch_end(0, {})
apply(clipped, 8.0)
print("moved", -variable.numpy()[0], flush=True)
from keras_trainkit import distribution
del vars(model)["_maybe_symbolic_build"]
distribution.enable_workers(model)
attempt("enabled")
os.kill(os.getpid(), signal.SIGTERM)
print("outlives SIGTERM", flush=True)
apply(scaled, np.inf if index else 1.0)
print("goes on after an overflow", flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.shows(
    "several-machines",
    "`fit` and `evaluate`",
    keras="stop with `Attempt to convert a value (PerReplica...`, and once built at `Invalid reduction dimension 0`",
)
@pytest.mark.shows("several-machines", "`clipnorm` and its kind", keras="clip before the sum: twice the bound")
@pytest.mark.shows("several-machines", "`ModelCheckpoint` on one path", keras="each worker writes it")
@pytest.mark.shows(
    "several-machines",
    "an overflow on one worker",
    keras="that one skips the step, and the others wait for it in theirs until it ends",
)
@pytest.mark.shows("several-machines", "a worker that ends", keras="`UnavailableError` on the others, of an exchange")
@pytest.mark.shows("several-machines", "SIGTERM", keras="swallowed by TensorFlow")
def test_what_plain_keras_does_there(tmp_path):
    """When Keras mends one of these, this fails, and `enable_workers` may do less."""
    with Pair(tmp_path, "-c", PLAIN) as pair:
        ends = [pair.ended(index) for index in (1, 0)][::-1]
    for _, output in ends:
        lines = output.splitlines()
        for method in ("fit", "evaluate"):
            for words in ("plain {} ValueError Attempt to convert a value (PerReplica",
                          "built {} ValueError Invalid reduction dimension 0", "enabled {} works"):  # fmt: skip
                assert any(line.startswith(words.format(method)) for line in lines), output
        assert "outlives SIGTERM" in lines, output
        assert "moved 2.0" in lines, output  # asked for 1
    assert {path.name for path in tmp_path.glob("*.keras")} == {"written-by-0.keras", "written-by-1.keras"}
    (first, waited), (second, skipped) = ends
    assert second == 0 and "goes on after an overflow" in skipped
    assert first == 1 and "goes on after an overflow" not in waited and "UnavailableError" in waited


# -------------------------------------------------------------------------------------------------- if one is lost

TRAINING = """
import os, signal, sys
import keras, numpy as np
from keras_trainkit import distribution, optimizers
strategy = distribution.workers(timeout=20, start_timeout=120)
keras.utils.set_random_seed(1)
x = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    model.compile(optimizers.Adam(0.05, global_clipnorm=0.5), "mse")
distribution.enable_workers(model)
class Progress(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        if epoch == VICTIM_EPOCH and not distribution.is_chief() and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
backup = keras.callbacks.BackupAndRestore("backup", double_checkpoint=True)
model.fit(x, x[:, :1], batch_size=8, epochs=EPOCHS, shuffle=False, callbacks=[backup, Progress()])
if distribution.is_chief():
    np.save("weights.npy", np.concatenate([np.ravel(w) for w in model.get_weights()]))
"""


@pytest.mark.slow
@pytest.mark.shows(
    "several-machines", "a worker that ends", kit="`WorkerLost` on the others, with its number and address"
)
@pytest.mark.shows("several-machines", "SIGTERM", kit="ends the worker")
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_killed_worker_ends_the_job_and_is_named(tmp_path, victim, number):
    (tmp_path / "train.py").write_text(TRAINING.replace("VICTIM_EPOCH", "-1").replace("EPOCHS", "100000"))
    other = 1 - victim
    with Pair(tmp_path, "train.py") as pair:
        pair.wait_for(other, "epoch 2")
        pair.processes[victim].send_signal(number)
        assert pair.ended(victim)[0] == -number  # TensorFlow would swallow SIGTERM
        code, output = pair.ended(other)
        assert code == 1
        assert f"worker {victim} ({pair.clusters[0].workers[victim]}) is lost" in output
        assert f"This is worker {other} of 2." in output


@pytest.mark.slow
def test_a_worker_that_falls_silent_is_named_after_the_timeout(tmp_path):
    program = TRAINING.replace("VICTIM_EPOCH", "-1").replace("EPOCHS", "100000").replace("timeout=20", "timeout=5", 1)
    (tmp_path / "train.py").write_text(program)
    with Pair(tmp_path, "train.py") as pair:
        pair.wait_for(0, "epoch 2")
        pair.processes[1].send_signal(signal.SIGSTOP)
        code, output = pair.ended(0)
        assert code == 1
        assert f"worker 1 ({pair.clusters[0].workers[1]}) is lost" in output and "This is worker 0 of 2." in output


@pytest.mark.slow
def test_the_job_restarts_from_its_last_checkpoint(tmp_path):
    """Worker 1 is killed as epoch 2 begins; started again, the job ends with the weights of one that never fell."""
    command = [sys.executable, "-m", "keras_trainkit", "launch", "--workers", "2", "--restarts", "1", "train.py"]
    weights, outputs = [], []
    for name, epoch in (("falls", "2"), ("stands", "-1")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.py").write_text(TRAINING.replace("VICTIM_EPOCH", epoch).replace("EPOCHS", "4"))
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=LONGEST
        )
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(np.load(folder / "weights.npy"))
        outputs.append(done)
    np.testing.assert_array_equal(weights[0], weights[1])
    epochs = [line for line in outputs[0].stdout.splitlines() if line.startswith("[1] epoch")]
    assert epochs == [f"[1] epoch {number}" for number in (0, 1, 2, 2, 3)]
    assert "worker 1 of 2" in outputs[0].stderr and "was killed by SIGKILL" in outputs[0].stderr
    assert "restart 1 of 1" in outputs[0].stderr


# --------------------------------------------------------------------------------------------------------------- alone


def test_a_script_without_a_cluster_runs_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TF_CONFIG", "JOB_COMPLETION"))]:
        monkeypatch.delenv(name)
    strategy = distribution.workers()
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    before = dict(vars(model))
    assert distribution.enable_workers(model) is model
    assert vars(model).keys() == before.keys()
    assert distribution.is_chief() and distribution.chief_path("a/b.keras") == "a/b.keras"


def test_a_model_is_asked_for():
    with pytest.raises(TypeError, match="`model` must be a Keras model. Received: model='net'"):
        distribution.enable_workers("net")


@pytest.mark.parametrize("argument", ["timeout", "start_timeout"])
def test_a_timeout_is_a_positive_number(argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be a number above 0. Received: {argument}=0"):
        distribution.workers(**{argument: 0})


def test_other_backends_have_no_workers(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert isinstance(distribution.workers(), distribution.SingleDevice)
    with pytest.raises(ValueError, match="Several workers need Keras on TensorFlow"):
        distribution.workers(cluster=distribution.Cluster(["a:1", "b:1"], 0))


def test_the_lost_are_those_that_do_not_listen_then_those_that_are_silent():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as there:
        listening = f"127.0.0.1:{there.getsockname()[1]}"
        cluster = distribution.Cluster(["127.0.0.1:1", listening, "127.0.0.1:2"], 2)
        assert find_lost(cluster, "") == [0]
        frozen = distribution.Cluster([listening, "127.0.0.1:2"], 1)
        text = "tasks are unhealthy (stopped sending heartbeats):\n/job:worker/replica:0/task:0\nThe tasks have crashed"
        assert find_lost(frozen, text) == [0]
        assert find_lost(frozen, "from remote target /job:worker/replica:0/task:0") == []

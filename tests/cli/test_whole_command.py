"""The command as a user starts it, in fresh processes: the default run, Ctrl-C, and the saved model afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]

COMMAND = [sys.executable, "-m", "keras_trainkit"]
# What a user's shell has: nothing that the tests set for themselves.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")}
PREDICT = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
from sklearn.datasets import load_digits
digits = load_digits()
scores = model.predict(digits.images.astype("float32"), verbose=0)
assert "keras_trainkit" not in sys.modules
print(json.dumps(float((scores.argmax(axis=1) == digits.target).mean())))
"""


def run(folder, *arguments):
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


# Convolutions in float16 on a processor: 900 examples a second with TensorFlow 2.21, 30 with 2.18.
SLOW_HALVES = tuple(int(part) for part in metadata.version("tensorflow").split(".")[:2]) < (2, 21)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--replicas", "2"),
        pytest.param(
            ("--precision", "mixed_float16"),
            marks=pytest.mark.skipif(
                SLOW_HALVES, reason="float16 on a processor takes 13 minutes before TensorFlow 2.21"
            ),
        ),
    ],
    ids=" ".join,
)
def test_the_default_run_reaches_its_accuracy(tmp_path, options):
    done = run(tmp_path, "train", "--json", "--run-dir", "out", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "completed" and result["test"]["accuracy"] >= 0.98
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "recipe.json", "environment.json", "metrics.jsonl", "tensorboard", "model.keras", "result.json", "report.html",
        "resume",
    }  # fmt: skip
    # Progress alone: TensorFlow, Keras and the kit had nothing to say.
    assert [
        line for line in done.stderr.splitlines() if not line.startswith(("epoch ", "digits: ", "convnet of "))
    ] == []
    if not options:
        loaded = subprocess.run(
            [sys.executable, "-c", PREDICT, "out/model.keras"], cwd=tmp_path, capture_output=True, text=True
        )
        assert loaded.returncode == 0, loaded.stderr
        assert json.loads(loaded.stdout) >= 0.98


def test_ctrl_c_says_how_far_it_came_and_keeps_it(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "train", "--epochs", "500", "--run-dir", "out"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.exists() and '"kind": "epoch"' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    assert process.returncode == 130
    assert error == ""
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "interrupted" and 1 <= result["epochs_completed"] < 500
    assert f"digits: interrupted after {result['epochs_completed']} of 500 epochs" in out
    assert "the best model so far is kept" in out and "Test accuracy" in out
    epochs = [json.loads(line) for line in metrics.read_text().splitlines() if '"kind": "epoch"' in line]
    assert [line["epoch"] for line in epochs] == [*range(1, result["epochs_completed"] + 1)]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    loaded = subprocess.run(
        [sys.executable, "-c", PREDICT, "out/model.keras"], cwd=tmp_path, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr


def test_bad_input_in_a_fresh_process(tmp_path):
    (tmp_path / "net.py").write_text("def build(input_shape, outputs):\n    raise RuntimeError('no idea')\n")
    done = run(tmp_path, "train", "--model", "net:build", "--quiet")
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "keras-trainkit: error: the model function net:build failed: RuntimeError: no idea (net.py, line 2)\n"
    )
    assert not (tmp_path / "runs").exists()

"""Processes that are killed for good, at random moments, some of them while a state is being written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_trainkit import resuming
from keras_trainkit.resuming import bundle

RNG = np.random.default_rng(30)
PROGRAM = Path(__file__).with_name("killed_program.py")
DEADLINE = 900
OF_THE_MACHINE = (
    "time",
    "samples_per_second",
    "step_seconds",
    "data_wait",
    "compute_seconds",
    "host_memory",
    "device_memory",
)


def start(folder, epochs, moment=None):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(PROGRAM), str(folder), str(epochs), *([] if moment is None else [str(moment)])]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=quiet)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


def lines(folder):
    found = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(OF_THE_MACHINE)} for line in found]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    kills, epochs, shortest, longest = 30, 25, 20, 60  # a life has so many moments
    assert start(tmp_path / "whole", epochs)
    killed, torn = 0, 0
    while killed < kills:
        ended = start(tmp_path / "killed", epochs, int(RNG.integers(shortest, longest)))
        assert not ended, "the run ended before it was killed so often"
        killed += 1
        torn += any((tmp_path / "killed" / "resume").glob(f"*{bundle.PARTIAL}"))
        # Each life leaves a state that is whole.
        assert resuming.saved_states(tmp_path / "killed" / "resume")
    assert start(tmp_path / "killed", epochs)
    with np.load(tmp_path / "whole" / "end.npz") as whole, np.load(tmp_path / "killed" / "end.npz") as end:
        assert whole.files == end.files
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], end[name], strict=True)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert torn > 3  # some of the kills came in the middle of a write

"""A budget of time over the lives of a run: its plan and its time go on where they were."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("budget_program.py")


def live(folder, *last):
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=quiet)
    assert done.returncode == (-signal.SIGKILL if last else 0), done.stderr
    lines = [json.loads(line) for line in (folder / "lives.jsonl").read_text().splitlines()]
    return [line[1:] for line in lines if line[0] == lines[-1][0]]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_killed_run_has_the_time_that_was_left(tmp_path):
    """Of 400 updates of a second each there is time for 100, and the schedule is to end with them."""
    first = live(tmp_path, 37)
    second = live(tmp_path)
    assert [line[0] for line in first] == list(range(37)) and [line[1] for line in first] == list(range(37))
    # The thread that writes may have been some batches behind.
    begin = second[0][0]
    assert 20 < begin <= 37 and second[0][1] == begin
    assert second[0][2] == first[begin - 1][2] > 3
    updates, elapsed, _, rates = map(np.array, zip(*first[:begin], *second, strict=True))
    np.testing.assert_array_equal(updates, np.arange(len(updates)))
    np.testing.assert_array_equal(elapsed, np.arange(len(updates)))
    assert 90 <= len(updates) <= 100
    assert rates[0] == pytest.approx(1e-2) and (np.diff(rates) <= 0).all()
    assert rates[-1] < 1e-3
    # Spread over all that was trained, not crammed into what came after the kill.
    assert np.abs(np.diff(rates)[10:]).max() < 3e-4

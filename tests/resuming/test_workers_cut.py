"""Two workers whose run is cut and started again: bit for bit the run that nobody cut."""

import re
from pathlib import Path

import numpy as np
import pytest
from pairs import Pair

from keras_trainkit.resuming.store import numbered, saved_states
from keras_trainkit.resuming.together import Alone

pytestmark = pytest.mark.tensorflow

PROGRAM = str(Path(__file__).parent / "workers_program.py")


def life(folder, *arguments):
    """The exit codes and the outputs of one start of both workers."""
    with Pair(folder, PROGRAM, str(folder), *map(str, arguments)) as pair:
        ends = [pair.ended(index) for index in (1, 0)]
    return ends[::-1]


def end(folder, worker):
    with np.load(folder / f"end-{worker}.npz") as file:
        return {name: file[name] for name in file.files}


def moments(folder, worker):
    return [saved.facts["moment"] for saved in saved_states(folder / "resume" / f"worker-{worker}")]


@pytest.mark.slow
def test_killed_and_terminated_workers_end_as_if_nobody_had_cut_them(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    assert [code for code, _ in life(whole, "never")] == [0, 0]

    # Killed inside of a window of three batches, in the second epoch of eleven.
    (chief, lost), (other, _) = life(cut, 2, 14, "SIGKILL")
    assert other == -9 and chief not in (0, -9) and "worker 1" in lost, lost[-2000:]
    assert not (cut / "end-0.npz").exists()
    # One lacks the newest state of the other, because the kill came before its last write or by this: the last state
    # of both is older.
    if max(moments(cut, 0)) == max(moments(cut, 1)):
        numbered(cut / "resume" / "worker-0")[0].unlink()
    common = max(set(moments(cut, 0)) & set(moments(cut, 1)))
    assert common < max(moments(cut, 0) + moments(cut, 1))

    # A signal to one of them ends both, after a state of one moment.
    for code, output in life(cut, "0.2s", 5, "SIGTERM"):
        assert code == 0 and "SIGTERM came: the state is saved" in output, output[-2000:]
    assert moments(cut, 0) == moments(cut, 1)
    place = re.search(r"epoch (\d+), batch (\d+)\); start", output)

    for code, output in life(cut, 2):
        assert code == 0, output[-2000:]
        assert f"'epoch': {int(place[1]) - 1}, 'batch': {place[2]}" in output, output[-2000:]
    for worker in (0, 1):
        one, other = end(whole, worker), end(cut, worker)
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
    assert len(end(whole, 0)["epochs"]) == 3
    # The sums and masks of the two are not alike, so that neither could have gone on from the other's state.
    first, second = end(whole, 0), end(whole, 1)
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_one_process_does_not_go_on_from_the_states_of_several(tmp_path):
    (tmp_path / "worker-1").mkdir()
    (tmp_path / "worker-1" / "state-00000001.zip").touch()
    with pytest.raises(ValueError, match=r"`directory` holds the states of several workers. Received: directory="):
        Alone().place(tmp_path)
    with pytest.raises(ValueError, match="The state was saved by 2 workers.* Received: 1 workers"):
        Alone().check({"workers": 2})

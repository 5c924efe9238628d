"""The files of states: whole or none, checked byte for byte, kept and passed over as promised. No TensorFlow."""

import errno
import math
import os
import resource
import signal

import ml_dtypes
import numpy as np
import pytest

from keras_trainkit.resuming import Damaged, bundle, encoding, occasions, saved_states, signals, store
from keras_trainkit.resuming.writer import Writer

RNG = np.random.default_rng(7)


def lower_is_better(metric):
    return False


def a_store(directory, keep=2, keep_best=0, keep_every=0):
    return store.Store(directory, store.Retention(keep, keep_best, keep_every, "val_loss", lower_is_better))


def facts(epoch, inside=False, batch=0, **metrics):
    return {"epoch": epoch, "batch": batch, "inside": inside, "metrics": metrics}


def test_arrays_of_every_kind_come_back_bit_for_bit(tmp_path):
    arrays = {
        "matrix": RNG.normal(size=(3, 4)).astype("float32"),
        "narrow": RNG.normal(size=5).astype(ml_dtypes.bfloat16),
        "half": RNG.normal(size=(2, 2)).astype("float16"),
        "scalar": np.array(-7, "int64"),
        "empty": np.zeros((0, 3), "float64"),
        "flags": np.array([True, False]),
        "strided": RNG.normal(size=(4, 6))[::2, ::3],
        "nan": np.array([math.nan, -0.0, math.inf]),
    }
    bundle.write(tmp_path / "a.zip", {"loss": math.inf, "epoch": 2}, arrays)
    read, found = bundle.read(tmp_path / "a.zip")
    assert read == {"loss": math.inf, "epoch": 2} == bundle.read_facts(tmp_path / "a.zip")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()
    assert os.listdir(tmp_path) == ["a.zip"]


def test_every_damage_shows(tmp_path):
    path = tmp_path / "a.zip"
    bundle.write(path, {"epoch": 2}, {"w": np.arange(64.0)})
    whole = path.read_bytes()
    for length in [0, 10, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            bundle.read(path)
    content = whole.index(np.arange(64.0).tobytes())
    manifest = whole.index(b'"epoch"')
    for place in [content + 100, manifest + 2]:
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            bundle.read(path)
    path.write_bytes(whole)
    assert bundle.read(path)[0] == {"epoch": 2}


def test_a_newer_format_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "FORMAT", 2)
    bundle.write(tmp_path / "a.zip", {}, {})
    monkeypatch.undo()
    with pytest.raises(Damaged, match="format 2 of a newer version"):
        bundle.read(tmp_path / "a.zip")


def test_a_full_disk_leaves_the_states_before_whole(tmp_path):
    kept = a_store(tmp_path)
    kept.write(facts(1), {"w": np.arange(10)})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the kernel refuses what is longer
    try:
        with pytest.raises(OSError, match="ones before it are whole") as error:
            kept.write(facts(2), {"w": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.errno == errno.EFBIG
    assert sorted(os.listdir(tmp_path)) == ["lock", "state-00000001.zip"]
    assert store.newest(tmp_path)[1]["epoch"] == 1
    kept.write(facts(2), {"w": np.zeros(100)})
    assert store.newest(tmp_path)[1]["epoch"] == 2


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path):
    kept = a_store(tmp_path)
    for epoch in (1, 2):
        kept.write(facts(epoch), {"w": np.full(100, float(epoch))})
    newest = store.numbered(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"damaged .*state-00000002.*goes on from the one before: .*state-00000001"):
        path, found, arrays = store.newest(tmp_path)
    assert found["epoch"] == 1 and arrays["w"][0] == 1.0
    assert [saved.number for saved in saved_states(tmp_path)] == [1]
    path.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="All saved states .* are damaged"):
        store.newest(tmp_path)
    kept.release()
    a_store(tmp_path).write(facts(3), {})
    assert [path.name for path in store.numbered(tmp_path)] == ["state-00000003.zip"]


def test_one_run_at_a_time(tmp_path):
    first = a_store(tmp_path)
    with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"):
        a_store(tmp_path)
    first.release()
    a_store(tmp_path).release()


def test_what_a_killed_run_was_writing_goes_away(tmp_path):
    torn = tmp_path / f"state-00000004.zip{bundle.PARTIAL}"
    torn.write_bytes(b"half")
    kept = a_store(tmp_path)
    assert not torn.exists()
    assert kept.write(facts(1), {}).name == "state-00000001.zip"


def test_which_states_stay(tmp_path):
    kept = a_store(tmp_path, keep=1, keep_best=2, keep_every=4)
    losses = [5.0, 3.0, math.nan, 4.0, 2.0, 6.0, 7.0, 8.0, 9.0]
    for epoch, loss in enumerate(losses, 1):
        kept.write(facts(epoch, inside=True, batch=3, val_loss=0.0), {})
        kept.write(facts(epoch, val_loss=loss), {})
    # The last one, those of the epochs 2 and 5 (the best), and those of 4 and 8.
    assert [saved.facts["epoch"] for saved in saved_states(tmp_path)] == [9, 8, 5, 4, 2]
    assert not any(saved.facts["inside"] for saved in saved_states(tmp_path))
    kept.release()
    again = a_store(tmp_path, keep=1)
    again.write(facts(10), {})
    assert [saved.number for saved in saved_states(tmp_path)] == [19]


def test_values_of_callbacks_come_back_as_they_were():
    value = {
        "wait": 2, "best": np.float32(0.1), "none": None, "weights": [np.arange(3.0), np.ones((2, 2), "int8")],
        "pair": (1, (2.5, "text")), 3: {"%odd": math.inf}, "flag": True, "scalar64": np.float64(0.1),
    }  # fmt: skip
    arrays = {}
    found = encoding.decode(encoding.encode(value, arrays, "x"), arrays)
    assert set(found) == set(value)
    for name in ("wait", "none", "pair", 3, "flag"):
        assert found[name] == value[name] and type(found[name]) is type(value[name])
    assert found["best"].dtype == "float32" and found["scalar64"].dtype == "float64" and found["best"] == value["best"]
    for one, other in zip(found["weights"], value["weights"], strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    with pytest.raises(TypeError, match="must hold numbers, text"):
        encoding.encode({"function": print}, {}, "x")


@pytest.mark.parametrize("every", ["", "10", "min", "0min", "1.5ep", "-3s", "3 days"])
def test_spans_that_mean_nothing(every):
    with pytest.raises(ValueError, match="`every` must be a number of batches"):
        occasions.parse(every)


def test_occasions():
    by_batch = occasions.Occasions(occasions.parse(5))
    by_batch.add_batches(3)
    assert not by_batch.due
    by_batch.add_batches(3)
    assert by_batch.due
    by_batch.start()
    assert not by_batch.due
    by_epoch = occasions.Occasions(occasions.parse("2ep"))
    by_epoch.add_epoch()
    assert not by_epoch.due
    by_epoch.add_epoch()
    assert by_epoch.due
    by_time = occasions.Occasions(occasions.parse("0.5h"))
    assert not by_time.due
    by_time._time -= 1801
    assert by_time.due


def test_an_error_beside_the_training_comes_back_once():
    writer = Writer()

    def fails():
        raise OSError("full")

    writer.start(fails)
    with pytest.raises(OSError, match="full"):
        writer.wait()
    writer.check()
    done = []
    writer.start(lambda: done.append(1))
    writer.wait()
    assert done == [1] and not writer.busy


def test_signals_wait_while_training_is_alive():
    before, got = [signal.getsignal(signal.SIGUSR1)], []
    signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        alive = [True]
        listening = signals.Signals(["SIGUSR1"], lambda: alive[0])
        listening.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert listening.received == "SIGUSR1" and not got
        os.kill(os.getpid(), signal.SIGUSR1)  # who sends it twice will not wait
        assert got == [signal.SIGUSR1]
        alive[0] = False
        late = signals.Signals(["SIGUSR1"], lambda: alive[0])
        late.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert late.received is None and len(got) == 2
    finally:
        signal.signal(signal.SIGUSR1, before[0])
    with pytest.raises(ValueError, match="`signals` must be names of signals"):
        signals.checked(["SIGKILL"])

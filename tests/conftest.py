"""Settings that must precede TensorFlow's first use: two logical CPUs, so that two replicas fit on any machine."""

import gc
import itertools
import os
import signal
import zlib

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell without job control; the tests of Ctrl-C need it to act.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_addoption(parser):
    parser.addoption(
        "--rows", type=int, metavar="N", help="of every parametrized test run N rows alone, others for other tests"
    )
    parser.addoption("--thorough", action="store_true", help="run the tests marked so, too")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    kept = {item for item in items if config.option.thorough or "thorough" not in item.keywords}
    if config.option.rows:
        kept = _spread([item for item in items if item in kept], config.option.rows)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
    if keras.backend.backend() != "tensorflow":
        skip = pytest.mark.skip(reason="this test needs Keras on TensorFlow; Keras runs on " + keras.backend.backend())
        for item in items:
            if "tensorflow" in item.keywords:
                item.add_marker(skip)


def _spread(items, rows):
    """Of each function's rows so many, evenly spread; where they begin depends on its name, so that all have a turn."""
    functions = {}
    for item in items:
        functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = {item for item in items if "every_row" in item.keywords}
    for name, its in functions.items():
        begin = zlib.crc32(name.encode())
        kept |= {its[(begin + len(its) * turn // rows) % len(its)] for turn in range(rows)}
    return kept


def pytest_collection_finish():
    gc.set_threshold(20_000, 10, 10)  # a traced function makes objects by the ten thousands
    _keep_what_is_there()


def _keep_what_is_there():
    """What is alive stays, for the most part: to look at it again and again takes longer than the tests."""
    gc.collect()
    gc.freeze()


_states = {}
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def same_random_numbers(request):
    """A module's RNG starts each test from where it was imported, whatever ran before in the process."""
    generator = getattr(request.module, "RNG", None) if hasattr(request, "module") else None
    if generator is not None:
        state = _states.setdefault(request.module.__name__, generator.bit_generator.state)
        generator.bit_generator.state = state


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.utils.clear_session(free_memory=False)
    if next(_tests) % 50 == 0:
        _keep_what_is_there()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    if keras.backend.backend() == "jax":
        _forget_compiled()


def _forget_compiled():
    # Every program that XLA compiles keeps memory maps, of which Linux gives a process 65,530: then it crashes.
    import jax

    if _memory_maps() > 20_000:
        gc.collect()
        jax.clear_caches()


def _memory_maps():
    try:
        with open("/proc/self/maps") as maps:
            return sum(1 for _ in maps)
    except OSError:  # no Linux, no such limit
        return 0


@pytest.fixture(scope="session")
def two_replicas():
    """MirroredStrategy over two logical CPUs; one in a process, because two of them clash."""
    from keras_trainkit import distribution

    return distribution.strategy(2)

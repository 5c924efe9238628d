"""Strategies by number: what comes back, and the errors; where TensorFlow must not have started, in a process each."""

import os
import subprocess
import sys

import keras
import pytest

from keras_trainkit.distribution import SingleDevice, strategies, strategy


def in_new_process(code):
    """Runs `code` in a process whose TensorFlow has not started; its standard output."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_replica_is_no_strategy():
    chosen = strategy(1)
    assert chosen.num_replicas_in_sync == 1
    with chosen.scope():
        layer = keras.layers.Dense(2)
        layer.build((None, 3))
    assert layer.kernel.shape == (3, 2)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        assert not tf.distribute.has_strategy()
        with chosen.scope():
            assert not tf.distribute.has_strategy()


def test_none_means_the_gpus_or_one():
    gpus = 0
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = len(tf.config.list_logical_devices("GPU"))
    if gpus < 2:
        assert strategy().num_replicas_in_sync == 1
    else:
        assert strategy().num_replicas_in_sync == gpus


def test_another_backend_gets_a_scope_and_a_clear_error(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert isinstance(strategy(), SingleDevice) and isinstance(strategy(1), SingleDevice)
    with strategy(1).scope():
        keras.layers.Dense(2).build((None, 3))
    with pytest.raises(ValueError, match=r"Keras on TensorFlow.*Received: replicas=2, backend=jax"):
        strategy(2)


@pytest.mark.tensorflow
def test_two_replicas_on_cpu_train_as_one():
    code = """
import keras, numpy as np
from keras_trainkit.distribution import strategy
chosen = strategy(2)
x = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
weights = []
for each in (chosen, strategy(1), strategy(2)):
    keras.utils.set_random_seed(3)
    with each.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, x[:, :1], batch_size=6, epochs=2, shuffle=False, verbose=0)
    weights.append(np.concatenate([np.ravel(w) for w in model.get_weights()]))
print(type(chosen).__name__, chosen.num_replicas_in_sync, strategy(2) is chosen)
print(np.abs(weights[0] - weights[1]).max() < 2e-6, (weights[0] == weights[2]).all(), weights[0].std() > 0.1)
"""
    assert in_new_process(code).splitlines()[-2:] == ["MirroredStrategy 2 True", "True True True"]


@pytest.mark.tensorflow
def test_gpus_come_first_and_are_the_limit(monkeypatch):
    import tensorflow as tf

    gpus = [tf.config.LogicalDevice(f"/device:GPU:{index}", "GPU") for index in range(3)]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda names: names)
    monkeypatch.setattr(strategies, "_mirrored", {})
    with pytest.raises(ValueError, match=r"`replicas` must be at most 3, the visible GPUs. Received: replicas=4"):
        strategy(4)
    assert strategy(2) == ["/device:GPU:0", "/device:GPU:1"]
    monkeypatch.setattr(strategies, "_mirrored", {})
    assert len(strategy()) == 3
    assert strategy(1) is tf.distribute.get_strategy()


@pytest.mark.tensorflow
def test_more_replicas_than_started_devices_say_what_to_do():
    code = """
import tensorflow as tf
from keras_trainkit.distribution import strategy
tf.zeros(())
try:
    strategy(2)
except RuntimeError as error:
    print(error)
print(strategy(1).num_replicas_in_sync)
"""
    out = in_new_process(code)
    assert "already started with 1 CPU device(s), and 2 replicas need 2" in out
    assert "`keras_trainkit.distribution.strategy(2)` at the start of the program" in out
    assert out.split()[-1] == "1"


@pytest.mark.tensorflow
def test_a_fresh_process_gets_logical_cpus_and_one_size_only():
    code = """
import keras
from keras_trainkit.distribution import describe_devices, strategy
keras.utils.set_random_seed(0)
print("before", describe_devices()[0]["logical_devices"])
chosen = strategy(3)
print("after", describe_devices()[0]["logical_devices"], chosen.num_replicas_in_sync)
try:
    strategy(2)
except RuntimeError as error:
    print(error)
print(strategy(1).num_replicas_in_sync, strategy(3) is chosen)
with chosen.scope():
    try:
        strategy(3)
    except RuntimeError as error:
        print(error)
"""
    out = in_new_process(code).splitlines()
    assert out[:2] == ["before 1", "after 3 3"]
    assert "already holds a strategy of 3 replicas" in out[2] and "Received: replicas=2" in out[2]
    assert out[3] == "1 True"
    assert "leave that scope first" in out[4]


@pytest.mark.tensorflow
@pytest.mark.parametrize(("second", "words"), [(3, "that group has size 2"), (2, "Shape mismatch in the collective")])
def test_two_strategies_in_one_process_break_tensorflow(second, words):
    """Why there is one strategy in a process. If this fails, TensorFlow has been mended: say so in `strategy`."""
    code = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
x = np.ones((12, 2), "float32")
for count, units in ((2, 1), (SECOND, 5)):
    with tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)]).scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
        model.compile("sgd", "mse")
    try:
        model.fit(x, x[:, :1], batch_size=6, verbose=0)
        print("right", count)
    except tf.errors.OpError as error:
        print("broken", count, WORDS in str(error))
"""
    code = code.replace("SECOND", str(second)).replace("WORDS", repr(words))
    assert in_new_process(code).splitlines()[-2:] == ["right 2", f"broken {second} True"]


@pytest.mark.parametrize(("replicas", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_a_bad_number_is_refused(replicas, error):
    with pytest.raises(error) as caught:
        strategy(replicas)
    assert f"`replicas` must be an integer at least 1. Received: replicas={replicas!r}" == str(caught.value)

"""The gradient of a penalty on either backend, and of a NumPy function by differences."""

import keras
import numpy as np
from keras import ops


def gradient(function, value):
    """The gradient of a scalar function of one tensor, on either backend."""
    value = ops.convert_to_tensor(value)
    if keras.backend.backend() == "jax":
        import jax

        return np.array(jax.grad(lambda v: ops.cast(function(v), "float32"))(value).astype("float32"))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(value)
        loss = function(value)
    return tf.cast(tape.gradient(loss, value), "float32").numpy()


def gradient_function(function):
    """The same, compiled once for many steps; it takes and returns arrays."""
    if keras.backend.backend() == "jax":
        import jax

        slope = jax.jit(jax.grad(function))
        return lambda value: np.array(slope(value))
    import tensorflow as tf

    @tf.function
    def traced(value):
        with tf.GradientTape() as tape:
            tape.watch(value)
            loss = function(value)
        return tape.gradient(loss, value)

    return lambda value: traced(tf.constant(value)).numpy()


def compiled(function):
    """The function as XLA compiles it."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def by_differences(function, value, width=1e-5):
    """The gradient of a NumPy function, element by element, in float64."""
    value = value.astype("float64")
    slope = np.zeros_like(value)
    for index in np.ndindex(*value.shape):
        up, down = value.copy(), value.copy()
        up[index] += width
        down[index] -= width
        slope[index] = (function(up) - function(down)) / (2 * width)
    return slope

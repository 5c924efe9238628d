"""A layer that runs out of memory when the test says so, as a device does: in the middle of a step."""

import contextlib
import itertools

import keras
import tensorflow as tf

_rules = []


@contextlib.contextmanager
def memory_for(samples, replica=None, backward=True, calls=None):
    """Inside, `LimitedMemory` has room for so many samples on a replica.

    `replica` limits that one alone; `calls` names the calls, counted from 0, that find no memory whatever they hold.
    """
    count = itertools.count()

    def rule(size, number, is_backward):
        if is_backward != backward or replica not in (None, number):
            return True
        return size <= samples if calls is None else next(count) not in calls

    _rules.append(rule)
    try:
        yield
    finally:
        _rules.remove(rule)


def checked(tensor, backward):
    """`tensor`, or an error if the rule of this moment says that there is no memory for it."""

    def check(value, number):
        if not all(rule(len(value), int(number), backward) for rule in _rules):
            raise MemoryError("no memory left, says the test")  # TensorFlow makes a ResourceExhaustedError of it
        return value

    context = tf.distribute.get_replica_context()
    number = context.replica_id_in_sync_group if context else 0
    result = tf.py_function(check, [tensor, number], tensor.dtype)
    result.set_shape(tensor.shape)
    return result


@tf.custom_gradient
def _limited(tensor):
    return checked(tensor, backward=False), lambda upstream: checked(upstream, backward=True)


@keras.saving.register_keras_serializable("tests")
class LimitedMemory(keras.layers.Layer):
    """The identity, as far as there is memory."""

    def call(self, inputs):
        """Nothing else."""
        return _limited(inputs)

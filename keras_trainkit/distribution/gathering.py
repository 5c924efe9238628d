"""A few integers of every worker, brought to all of them between two steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def gather(strategy: Any, values: list[int]) -> np.ndarray:
    """The integers of every replica: an array (replicas, values). All workers must call it at the same place."""
    import tensorflow as tf

    gathered = _gathering(strategy)(tf.constant([values], tf.int64))
    return strategy.experimental_local_results(gathered)[0].numpy()


@functools.cache
def _gathering(strategy: Any) -> Callable[[Any], Any]:
    import tensorflow as tf

    def everyone(value: Any) -> Any:
        # The copy gives the value a device, which the gathering asks for.
        return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

    return tf.function(lambda value: strategy.run(everyone, args=(value,)), autograph=False)

"""The private names of Keras and TensorFlow that the kit leans on with several workers; a part of backend.py.

tests/core/test_backend_canaries.py names the one that has gone when a new version breaks this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.core.backend import ON_TENSORFLOW

if ON_TENSORFLOW:
    import tensorflow as tf
    from tensorflow.python.eager import context as tf_context


def builds_from_local_batches(model: Any) -> Callable[..., None]:
    """A stand-in for the trainer's method that builds model and metrics from the first batch of `fit` or `evaluate`.

    Keras's own averages that batch over the replicas, which TensorFlow cannot on several workers. The part of one
    replica has the same shapes and dtypes.
    """
    original, strategy = type(model)._maybe_symbolic_build, model.distribute_strategy

    def _maybe_symbolic_build(iterator: Any = None, data_batch: Any = None) -> None:  # `asking` knows it by its name
        if iterator is not None:
            for *_, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0], next(batches)
                )
                break
        original(model, data_batch=data_batch)

    return _maybe_symbolic_build


def replace_build(model: Any, build: Callable[..., None]) -> None:
    """Has the trainer of this model alone call `build` in place of its own method."""
    vars(model)["_maybe_symbolic_build"] = build


def first_epoch(model: Any) -> int:
    """The epoch where a callback that restores has `fit` begin; 0 if none did."""
    return int(getattr(model, "_initial_epoch", None) or 0)


def watch_workers(workers: int, timeout: float) -> None:
    """Has TensorFlow hold a worker for lost that has been silent for so many seconds; it takes 10 by itself.

    Must come before the strategy of the workers is made.
    """
    experimental = tf.compat.v1.ConfigProto().experimental
    job = experimental.coordination_config.coordinated_job_list.add(name="worker", num_tasks=workers)
    tf_context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(timeout * 1000),
        heartbeat_timeout_in_ms=int(timeout * 1000),
        coordinated_jobs=[job],
    )

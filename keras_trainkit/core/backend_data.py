"""The private names of Keras and TensorFlow that the kit leans on where it feeds a trainer; a part of backend.py.

tests/core/test_backend_canaries.py names the one that has gone when a new version breaks this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import keras
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.epoch_iterator import EpochIterator

from keras_trainkit.core.backend import ON_TENSORFLOW

if ON_TENSORFLOW:
    import tensorflow as tf

Adapter = DataAdapter
"""What Keras's trainers take data from, other than the kinds of data that they know."""

_PURPOSES = {"_symbolic_build": "build", "_maybe_symbolic_build": "build"} | {
    name: name for name in ("fit", "evaluate", "predict")
}


def asking() -> tuple[Any, str]:
    """The epoch iterator of Keras on whose behalf an adapter is being called, and what for.

    Keras tells an adapter neither who asks nor how many of its batches were used; the callers know. The purpose is
    "fit", "evaluate", "predict", "build" (where Keras looks at a batch and then begins anew) or "" outside of those;
    without an epoch iterator the first is None.
    """
    frame, iterator = sys._getframe(1).f_back, None
    while frame is not None:
        if iterator is None and isinstance(frame.f_locals.get("self"), EpochIterator):
            iterator = frame.f_locals["self"]
        if iterator is not None and frame.f_code.co_name in _PURPOSES:
            return iterator, _PURPOSES[frame.f_code.co_name]
        frame = frame.f_back
    return iterator, ""


def asking_strategy() -> Any:
    """The strategy of the model that an adapter's batches are for; None outside of TensorFlow."""
    iterator, _ = asking()
    if not ON_TENSORFLOW:
        return None
    return getattr(iterator, "_distribute_strategy", None) or tf.distribute.get_strategy()


def steps_taken(epoch_iterator: Any) -> int:
    """How many batches the trainer has taken since the iterator over the data was made, the one at hand included."""
    return epoch_iterator._steps_seen


def set_steps(epoch_iterator: Any, steps: int | None) -> None:
    """Says how many batches the epoch has that begins now; Keras itself asks once for all epochs."""
    epoch_iterator._num_batches = steps


def goes_on(epoch_iterator: Any) -> bool:
    """Whether the epoch that begins now takes its batches from where the last one stopped."""
    return epoch_iterator.steps_per_epoch is not None and epoch_iterator._current_iterator is not None


def distributed_dataset(strategy: Any, of_worker: Callable[[int, int, int], Any]) -> Any:
    """What a trainer under a strategy iterates over: each replica gets elements of its own from its worker's dataset.

    `of_worker(worker, workers, replicas)` makes the `tf.data.Dataset` of one worker, in which the elements of its
    replicas follow each other.
    """

    def make(context: Any) -> Any:
        worker, workers = context.input_pipeline_id, context.num_input_pipelines
        return of_worker(worker, workers, context.num_replicas_in_sync)

    class Distributed(tf.distribute.DistributedDataset):
        """The datasets, one for each worker."""

        def __init__(self) -> None:
            self.dealt = strategy.distribute_datasets_from_function(make)

        def __iter__(self) -> Any:
            # Keras would average the replicas' batches to learn their shapes, which strings and workers do not allow.
            if asking()[1] == "build":
                elements = next(iter(self.dealt))
                return iter([keras.tree.map_structure(lambda v: strategy.experimental_local_results(v)[0], elements)])
            return iter(self.dealt)

        @property
        def element_spec(self) -> Any:
            """Of a replica's element."""
            return self.dealt.element_spec

    return Distributed()


def devices_of_batch() -> int:
    """Over how many devices `keras.distribution` cuts each batch, where one is in use."""
    distribution = None if ON_TENSORFLOW else keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]

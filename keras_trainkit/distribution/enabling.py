"""`enable_workers`: `fit`, `evaluate` and `predict` of one model, made to run on several workers."""

from __future__ import annotations

import functools
import inspect
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import backend
from keras_trainkit.distribution.chief import without_writing
from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.gathering import gather
from keras_trainkit.distribution.joining import cluster_of, workers
from keras_trainkit.distribution.lost import naming_the_lost
from keras_trainkit.distribution.packing import Packing, one_at_a_time


def enable_workers(model: Any) -> Any:
    """Has `fit`, `evaluate` and `predict` of this model run under MultiWorkerMirroredStrategy.

    Plain Keras stops with an error there. Only this model object changes, not its class and nothing in Keras: it saves,
    loads, copies and trains elsewhere as its own class does. A loaded or cloned model is enabled anew. Where the model
    was made for one process, nothing happens.

    - The batch size is that of all workers together, as on several replicas; give every worker the same data, and
      each takes its share of each batch.
    - Only the chief (worker 0) writes: on the others `fit` puts `ModelCheckpoint`, `TensorBoard`, `CSVLogger` and
      `RemoteMonitor` aside, has `BackupAndRestore` restore but not save, and `callbacks.TrainingMonitor` write into a
      temporary folder. `chief_only` and `chief_path` serve other callbacks. Folders to restore from must be the same
      on all machines. With `verbose="auto"` only the chief shows progress.
    - `fit` begins by comparing the workers: their weights and first epochs must be equal. It ends when all have ended.
    - Keras's `LossScaleOptimizer`, which `compile` puts around the optimizer under `mixed_float16`, asks all workers
      whether their gradients are finite. By itself each asks its own, and who takes the step waits for who does not.
    - If a worker is lost, `WorkerLost` names it.

    Args:
        model: a functional, sequential or subclassed model, made and compiled inside the strategy's scope.

    Returns:
        The same model.

    Raises:
        TypeError: if it is no Keras model.
        ValueError: if it was made outside of the scope of this job's strategy.

    Example:

    >>> from keras_trainkit import distribution
    >>> strategy = distribution.workers()
    >>> with strategy.scope():
    ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    ...     model.compile("sgd", "mse")
    >>> model = distribution.enable_workers(model)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    if keras.backend.backend() != "tensorflow":
        return model
    strategy = model.distribute_strategy
    cluster = cluster_of(strategy)
    if cluster is None:
        held = workers()
        if cluster_of(held) is not None:
            raise ValueError("`model` must be made inside of the scope of `keras_trainkit.distribution.workers()`.")
        return model
    if not _is_enabled(model):
        _enable(model, strategy, cluster)
    return model


def _enable(model: Any, strategy: Any, cluster: Cluster) -> None:
    backend.replace_build(model, backend.builds_from_local_batches(model))
    for make, function, step in _STEPS:
        _set(model, make, _packed(model, make, function, step))
    for name in ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch"):
        _set(model, name, _watched(getattr(model, name), cluster))
    model.train_function = model.test_function = None  # what was made before knows nothing of this
    _set(model, "fit", _compared(model, model.fit, strategy, cluster))


_STEPS = (
    ("make_train_function", "train_function", "train_step"),
    ("make_test_function", "test_function", "test_step"),
)


def _set(thing: Any, name: str, value: Any) -> None:
    vars(thing)[name] = value  # past `__setattr__`, where Keras would track it


def _is_enabled(model: Any) -> bool:
    return "make_train_function" in vars(model)


def _packed(model: Any, make: str, function: str, step: str) -> Callable[..., None]:
    """The method that makes the train or test function; its step then hands its results on in one vector.

    Keras averages each result along its first axis, which scalars have not. And one vector is one exchange.
    """
    original = getattr(model, make)

    def make_function(force: bool = False) -> None:
        if getattr(model, function) is not None and not force:
            return
        _ask_all_workers(model.optimizer)
        packing, own = Packing(), vars(model).get(step)
        _set(model, step, packing.packed(getattr(model, step)))
        try:
            original(force=force)
        finally:
            if own is None:
                del vars(model)[step]
            else:
                _set(model, step, own)
        setattr(model, function, one_at_a_time(model, packing.unpacked(getattr(model, function))))

    return make_function


def _ask_all_workers(optimizer: Any) -> None:
    """Has a LossScaleOptimizer of Keras take its step, and the exchange in it, on all workers or on none."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and "check_finite" not in vars(optimizer):
        check = optimizer.check_finite
        _set(optimizer, "check_finite", lambda grads: backend.all_replicas(check(grads)))


def _watched(method: Callable[..., Any], cluster: Cluster) -> Callable[..., Any]:
    quiet = "verbose" in inspect.signature(method).parameters and not cluster.is_chief

    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if quiet:
            arguments, keywords = _changed(method, arguments, keywords, "verbose", _silent)
        with naming_the_lost(cluster):
            return method(*arguments, **keywords)

    return call


def _compared(model: Any, fit: Callable[..., Any], strategy: Any, cluster: Cluster) -> Callable[..., Any]:
    @functools.wraps(fit)
    def call(*arguments: Any, **keywords: Any) -> Any:
        arguments, keywords = _changed(fit, arguments, keywords, "callbacks", lambda given: _callbacks(given, cluster))
        _check_seeds(fit, arguments, keywords, strategy)
        history = fit(*arguments, **keywords)
        with naming_the_lost(cluster):
            gather(strategy, [0])  # until the chief has written all
        return history

    return call


def _callbacks(given: Any, cluster: Cluster) -> Any:
    if isinstance(given, keras.callbacks.CallbackList):
        raise TypeError("`callbacks` must be a list of callbacks on several workers. Received: a CallbackList")
    listed = list(given) if isinstance(given, (list, tuple)) else [given] if given is not None else []
    if not cluster.is_chief:
        listed = [kept for kept in map(without_writing, listed) if kept is not None]
    return [*listed, Comparison(cluster, [callback for callback in listed if hasattr(callback, "resumed_from")])]


class Comparison(keras.callbacks.Callback):
    """As training begins, after the callbacks that restore: all workers must begin at the same place.

    Args:
        cluster: the workers.
        resuming: the callbacks that give each worker its own state back. What trains must be equal even so; the moving
            statistics of Keras's BatchNormalization, unless it is synchronized, are each worker's own.
    """

    def __init__(self, cluster: Cluster, resuming: list[Any]) -> None:
        super().__init__()
        self._cluster, self._resuming = cluster, resuming

    def on_train_begin(self, logs: Any = None) -> None:
        """Raises RuntimeError, on all workers, if the weights or the first epochs differ."""
        strategy = self.model.distribute_strategy
        apart = any(callback.resumed_from for callback in self._resuming)
        variables = list(self.model.trainable_variables if apart else self.model.variables)
        variables += self.model.optimizer.variables if self.model.optimizer else []
        checksum = 0
        for variable in variables:
            checksum = zlib.crc32(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes(), checksum)
        rows = gather(strategy, [checksum, backend.first_epoch(self.model)])
        for row, what in zip(rows.T, ("weights", "first epochs"), strict=True):
            if len(set(row.tolist())) > 1:
                raise RuntimeError(
                    f"The workers have different {what}. Load weights on every worker or on none, and restore from a "
                    f"folder that all of them share. This is worker {self._cluster.index}."
                )


def _check_seeds(fit: Callable[..., Any], arguments: Any, keywords: Any, strategy: Any) -> None:
    """Arrays are shuffled by each worker for itself: with different seeds they take samples twice and miss others."""
    import tensorflow as tf

    seed = tf.compat.v1.get_seed(None)[0]
    seeds = gather(strategy, [-1 if seed is None else seed]).ravel().tolist()
    given = inspect.signature(fit).bind_partial(*arguments, **keywords).arguments
    shuffles = given.get("shuffle", True) and not isinstance(given.get("x"), (tf.data.Dataset, keras.utils.PyDataset))
    if shuffles and (len(set(seeds)) > 1 or seeds[0] == -1):
        warnings.warn(
            "The workers have no random seed in common, so each shuffles the data in its own order: call "
            "`keras.utils.set_random_seed` with the same number on all of them, or make the strategy by "
            "`keras_trainkit.distribution.workers()`.",
            stacklevel=3,
        )


def _silent(verbose: Any) -> Any:
    return 0 if verbose in (None, "auto") else verbose


def _changed(
    function: Callable[..., Any], arguments: tuple, keywords: dict[str, Any], name: str, change: Callable[[Any], Any]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call with one of them changed, however it was passed; None stands for one left out."""
    names = list(inspect.signature(function).parameters)
    if name in names[: len(arguments)]:
        place = names.index(name)
        return (*arguments[:place], change(arguments[place]), *arguments[place + 1 :]), keywords
    return arguments, {**keywords, name: change(keywords.get(name))}

"""The strategy of several workers, made from whatever describes them."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any

import keras

from keras_trainkit.core import backend, checks
from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.meeting import meet
from keras_trainkit.distribution.strategies import SingleDevice

TIMEOUT = "KERAS_TRAINKIT_TIMEOUT"
"""The variable by which `keras-trainkit launch --timeout` sets the default of `workers`."""

_held: dict[str, Any] = {}
"""The cluster and the strategy that this process has, once it has them: TensorFlow's server cannot start twice."""


def workers(timeout: float | None = None, start_timeout: float = 600.0, cluster: Cluster | None = None) -> Any:
    """A `tf.distribute.MultiWorkerMirroredStrategy` over the processes of this job, on one machine or many.

    Make and compile the model inside its `scope()`, then call `enable_workers(model)`. Every process runs the same
    script, and calls this before anything else of TensorFlow: before the first tensor, layer or dataset. The workers
    wait for one another here, then check that all have the same list and the same versions. Those that have no random
    seed yet get the chief's (`keras.utils.set_random_seed`), or one that the chief draws, because all workers must
    shuffle alike. Ctrl-C and SIGTERM, which TensorFlow takes over for itself, do what they did before.

    Without a description of a cluster, which is what a script that is started alone sees, the result is TensorFlow's
    default strategy: one script serves both.

    Args:
        timeout: after how many seconds of silence a worker is held for lost, above 0; then the collectives of the
            others fail, and `fit` raises `WorkerLost`. A worker whose process has ended shows at once, whatever the
            timeout. None means what `keras-trainkit launch --timeout` said, and 60 without it.
        start_timeout: how many seconds to wait for the others at the start, above 0.
        cluster: the workers; None means `Cluster.from_environment()`: TF_CONFIG, Slurm or Kubernetes.

    Returns:
        An object with `scope()` and `num_replicas_in_sync`. On another backend than TensorFlow it is a `SingleDevice`.
        A second call gives the same one.

    Raises:
        TypeError, ValueError: for a number out of its range, a description that cannot be read, or several workers on
            another backend than TensorFlow.
        TimeoutError: if some workers do not come; the message names them.
        RuntimeError: where TensorFlow has started already, the port is taken, or the workers differ in their lists or
            versions.

    Example:

    >>> workers().num_replicas_in_sync
    1
    """
    timeout = checks.number("timeout", float(os.environ.get(TIMEOUT, 60)) if timeout is None else timeout, above=0)
    start_timeout = checks.number("start_timeout", start_timeout, above=0)
    cluster = Cluster.from_environment() if cluster is None else cluster
    if keras.backend.backend() != "tensorflow":
        if cluster is None or len(cluster.workers) == 1:
            return SingleDevice()
        raise ValueError(
            "Several workers need Keras on TensorFlow; use keras.distribution on JAX. "
            f"Received: workers={cluster.workers}, backend={keras.backend.backend()}"
        )
    import tensorflow as tf

    if cluster is None or len(cluster.workers) == 1:
        return tf.distribute.get_strategy()
    if not _held:
        _held.update(cluster=cluster, strategy=_make(tf, cluster, timeout, start_timeout))
    if _held["cluster"] != cluster:
        raise RuntimeError(f"This process already is a worker of {_held['cluster']}. Received: cluster={cluster}")
    return _held["strategy"]


def cluster_of(strategy: Any) -> Cluster | None:
    """The workers that a MultiWorkerMirroredStrategy was made for; None for another strategy."""
    resolver: Any = getattr(strategy, "cluster_resolver", None)
    if not hasattr(resolver, "cluster_spec") or not resolver.cluster_spec().as_dict():
        return None
    tasks = resolver.cluster_spec().as_dict()
    chiefs, others = list(tasks.get("chief", [])), list(tasks.get("worker", []))
    return Cluster(chiefs + others, resolver.task_id + (len(chiefs) if resolver.task_type == "worker" else 0))


def _make(tf: Any, cluster: Cluster, timeout: float, start_timeout: float) -> Any:
    seed = tf.compat.v1.get_seed(None)[0]
    about = {
        "versions": {"Keras": keras.__version__, "TensorFlow": tf.__version__},
        "seed": seed,
        "drawn": random.SystemRandom().getrandbits(31),
    }
    said = meet(cluster, about, start_timeout)
    for index, other in enumerate(said):
        if other["versions"] != about["versions"]:
            raise RuntimeError(
                f"worker {index} has other versions than worker {cluster.index}: {other['versions']} and "
                f"{about['versions']}."
            )
    if seed is None:
        keras.utils.set_random_seed(said[0]["drawn"] if said[0]["seed"] is None else said[0]["seed"])
    os.environ["TF_CONFIG"] = cluster.tf_config()
    backend.watch_workers(len(cluster.workers), timeout)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow has already started. It joins a cluster before its first tensor, layer or dataset or never: "
            "call `keras_trainkit.distribution.workers()` at the start of the program."
        ) from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
    return strategy

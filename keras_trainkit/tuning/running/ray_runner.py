"""Isolated trials on a Ray cluster: an actor takes the place of a process, the same messages that of a pipe."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from keras_trainkit.core import checks


class RayRunner:
    """Runs the trials of a search on a Ray cluster: `tuning.Search(..., workers=8, runner=tuning.RayRunner(gpus=1))`.

    Oracle and database stay in the program that searches. Each of its `workers` is an actor of Ray, which gets model
    and data once, trains trial after trial and reports each epoch. An actor that is killed, or whose node goes, costs
    its trial only, as a process does. The nodes need this package, and a folder that all of them see, for weights.

    It needs the extra `ray`. Without a running cluster Ray starts one on this machine, and ends it with the search.

    Args:
        cpus: cores for each trial, at least 0; a fraction shares one.
        gpus: likewise; Ray sets `CUDA_VISIBLE_DEVICES` for each actor.
        resources: of your own naming, for each trial, such as `{"fast_disk": 1}`.
        address: of the cluster, as in `ray.init`; None is that of the environment.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an argument out of its range.
    """

    longest_start: float | None = None  # a cluster may have to grow first

    def __init__(
        self,
        cpus: float = 1,
        gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        address: str | None = None,
    ) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ImportError("`RayRunner` needs Ray, the extra `ray`") from error
        self.cpus = checks.number("cpus", cpus, at_least=0)
        self.gpus = checks.number("gpus", gpus, at_least=0)
        self.resources = dict(resources or {})
        self.address = address
        self._blob: Any = None
        self._own = False

    def open(self, blob: bytes) -> None:
        import ray

        if not ray.is_initialized():
            self._own = True
            ray.init(address=self.address, include_dashboard=None if self.address else False)
        self._blob = ray.put(blob)  # once for each node
        wanted = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        if not any(_fits(wanted, node["Resources"]) for node in ray.nodes() if node["Alive"]):
            print(f"Search: no node of the cluster has {wanted}; trials wait until one has")

    def start(self, number: int) -> _ActorLine:
        import ray

        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": self.resources}
        actor = ray.remote(_Actor).options(max_concurrency=3, max_restarts=0, **options)
        return _ActorLine(actor.remote(self._blob))

    def wait(self, lines: Sequence[_ActorLine], seconds: float | None) -> list[_ActorLine]:
        import ray

        ready, _ = ray.wait([line.coming for line in lines], num_returns=1, timeout=seconds)
        return [line for line in lines if line.coming in ready]

    def close(self) -> None:
        import ray

        self._blob = None
        if self._own:
            ray.shutdown()
            self._own = False

    def __getstate__(self) -> dict[str, Any]:
        # It goes with the tuner to the actors, where it has nothing to do.
        return self.__dict__ | {"_blob": None, "_own": False}


class _Actor:
    """A process of Ray, in which a thread serves trials; messages wait in queues until they are fetched."""

    def __init__(self, blob: bytes) -> None:
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(blob,), daemon=True)
        self._thread.start()

    def hear(self) -> Any:
        return self._out.get()

    def tell(self, message: Any) -> None:
        self._in.put(message)

    def finish(self) -> None:
        self._thread.join()

    def _serve(self, blob: bytes) -> None:
        from keras_trainkit.tuning.running import trial_process

        try:
            trial_process.main(_Ends(self._in, self._out), blob)
        except BaseException as error:
            self._out.put(("broken", f"{type(error).__name__}: {error}"))


class _Ends:
    """What a connection offers, over two queues."""

    def __init__(self, incoming: queue.SimpleQueue[Any], outgoing: queue.SimpleQueue[Any]) -> None:
        self.recv, self.send = incoming.get, outgoing.put


class _ActorLine:
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.coming = actor.hear.remote()
        self._reason = "its actor was ended"

    def send(self, message: Any) -> None:
        self._actor.tell.remote(message)  # that it has ended is found out by `receive`

    def receive(self) -> tuple[Any, ...] | None:
        import ray

        try:
            message = ray.get(self.coming)
        except ray.exceptions.RayError as error:
            self._reason = f"its actor ended: {_cause(error)}"
            return None
        self.coming = self._actor.hear.remote()
        return message

    def stop(self, *, gently: bool) -> str:
        import ray

        if gently:
            self.send(None)
            ray.wait([self._actor.finish.remote()], timeout=10)
        ray.kill(self._actor)
        return self._reason


def _fits(wanted: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in wanted.items())


def _cause(error: Exception) -> str:
    """Of Ray's many lines those that say what happened, and where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((f" on {line.removeprefix('ip: ')}" for line in lines if line.startswith("ip: ")), "")
    why = next((line for line in lines if line.startswith("The actor is dead")), lines[0] if lines else "")
    return f"{type(error).__name__}{where}: {why.split('. Some common causes')[0]}"

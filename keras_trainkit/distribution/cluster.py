"""Who the workers of a job are, read from wherever a launcher or a scheduler has written it. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from keras_trainkit.core import checks
from keras_trainkit.distribution import hosts, kubernetes, slurm


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a job, and which of them this process is.

    Worker 0 is the chief: it writes the files, and the others find each other through it. Every process of a job must
    see the same list in the same order.

    Attributes:
        workers: list of `"host:port"`, one for each worker, all different. An IPv6 address stands in brackets.
        index: the place of this process in the list, from 0.

    Raises:
        TypeError, ValueError: for an empty list, an address without a port, the same address twice, or an index
            outside of the list.

    Example:

    >>> cluster = Cluster(["node1:12345", "node2:12345"], index=1)
    >>> cluster.is_chief
    False
    >>> cluster.tf_config()
    '{"cluster": {"worker": ["node1:12345", "node2:12345"]}, "task": {"type": "worker", "index": 1}}'
    """

    workers: list[str]
    index: int

    def __post_init__(self) -> None:
        if not self.workers:
            raise ValueError(f"`workers` must name at least one worker. Received: workers={self.workers!r}")
        for address in self.workers:
            hosts.split_address(address)
        twice = sorted({address for address in self.workers if self.workers.count(address) > 1})
        if twice:
            raise ValueError(f"`workers` must be different addresses, and {', '.join(twice)} stands there twice.")
        checks.integer("index", self.index, at_least=0, at_most=len(self.workers) - 1)

    @property
    def is_chief(self) -> bool:
        """Whether this process is worker 0."""
        return self.index == 0

    def tf_config(self) -> str:
        """The value of the variable TF_CONFIG, from which TensorFlow reads the cluster."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})

    @classmethod
    def from_tf_config(cls, environ: Mapping[str, str] | None = None) -> Cluster:
        """Reads TF_CONFIG, of `environ` or of this process. A `chief` counts as the first worker.

        >>> text = '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}'
        >>> Cluster.from_tf_config({"TF_CONFIG": text})
        Cluster(workers=['a:1', 'b:1'], index=1)
        """
        text = _environment(environ).get("TF_CONFIG", "")
        try:
            content = json.loads(text)
            tasks, kind, index = content["cluster"], content["task"]["type"], int(content["task"]["index"])
            chiefs, others = list(tasks.get("chief", [])), list(tasks.get("worker", []))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(
                '`TF_CONFIG` must be JSON such as {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", '
                f'"index": 0}}}}. Received: TF_CONFIG={text!r}'
            ) from None
        if kind not in ("chief", "worker"):
            raise ValueError(f"`TF_CONFIG` must have a task of type chief or worker. Received: type={kind!r}")
        return cls(chiefs + others, index + (len(chiefs) if kind == "worker" else 0))

    @classmethod
    def from_hosts_file(cls, path: str | os.PathLike[str], index: int) -> Cluster:
        """Reads a file with a worker to a line: `host:port`, or `host slots=4 port=12345` for several on one machine.

        `port` is 12345 where it is left out; the workers of one line count up from it. What follows a `#` is a comment.

        Args:
            path: the file, the same on every machine.
            index: which worker this process is.

        Raises:
            OSError: if the file cannot be read.
            ValueError: for a line that says something else; the message has its number.
        """
        return cls(hosts.read(path), index)

    @classmethod
    def from_slurm(cls, environ: Mapping[str, str] | None = None, port: int | None = None) -> Cluster:
        """Reads the variables that `srun` sets for each task: one worker for a task.

        SLURM_STEP_NODELIST (node[01-03,7],gpu1), SLURM_STEP_TASKS_PER_NODE (2(x3),1) and SLURM_PROCID say who the
        workers are and which of them this is; SLURM_DISTRIBUTION whether tasks fill the nodes one after the other
        (block) or go around (cyclic). The ports of a node count up from `port`.

        Args:
            environ: the variables; those of this process when left out.
            port: of the first task on each node; when left out, the first of SLURM_STEP_RESV_PORTS, and without
                them a number from 20000 to 29999 made from SLURM_JOB_ID and SLURM_STEP_ID, so that two jobs on one
                node seldom meet.

        Raises:
            ValueError: for a variable that is missing, cannot be read, or contradicts another.

        >>> Cluster.from_slurm({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        ...                     "SLURM_PROCID": "1"}, port=5000)
        Cluster(workers=['n1:5000', 'n2:5000'], index=1)
        """
        return cls(*slurm.read(_environment(environ), port))

    @classmethod
    def from_kubernetes(cls, environ: Mapping[str, str] | None = None) -> Cluster:
        """Reads the variables of an indexed Job: one worker for a pod.

        Kubernetes sets JOB_COMPLETION_INDEX and the hostname, JOB-INDEX. The Job's own manifest must set
        KERAS_TRAINKIT_WORKERS, its number of completions, and KERAS_TRAINKIT_SERVICE, the name of the headless Service
        that is its `subdomain`; it may set KERAS_TRAINKIT_PORT (12345) and KERAS_TRAINKIT_JOB (the hostname without
        its index). Worker i is then JOB-i.SERVICE:PORT.

        Raises:
            ValueError: for a variable that is missing or cannot be read.

        >>> Cluster.from_kubernetes({"JOB_COMPLETION_INDEX": "0", "HOSTNAME": "train-0",
        ...                          "KERAS_TRAINKIT_WORKERS": "2", "KERAS_TRAINKIT_SERVICE": "peers"})
        Cluster(workers=['train-0.peers:12345', 'train-1.peers:12345'], index=0)
        """
        return cls(*kubernetes.read(_environment(environ)))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Cluster | None:
        """The cluster that the environment describes: by TF_CONFIG, else Slurm's variables, else Kubernetes's.

        None where none of them is there. A Slurm job of one task, such as an interactive one, is none either.

        >>> Cluster.from_environment({}) is None
        True
        """
        found = _environment(environ)
        if found.get("TF_CONFIG"):
            return cls.from_tf_config(found)
        if slurm.described_in(found):
            return cls.from_slurm(found)
        if kubernetes.described_in(found):
            return cls.from_kubernetes(found)
        return None


def _environment(environ: Mapping[str, str] | None) -> Mapping[str, Any]:
    return os.environ if environ is None else environ

"""`keras-trainkit launch`: starts the workers of a job, here or on the machines of a cluster."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import Any

from keras_trainkit.cli.errors import BadInput
from keras_trainkit.core import checks
from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.hosts import split_address

DESCRIPTION = """\
Runs a training script as several workers: one process each, told by TF_CONFIG who the others are. The script makes
its strategy with keras_trainkit.distribution.workers() and calls distribution.enable_workers(model)."""
EPILOG = """\
examples:
  keras-trainkit launch --workers 2 train.py --epochs 10
  keras-trainkit launch --workers 2 --restarts 3 -m package.train
  keras-trainkit launch --hosts hosts.txt train.py        (the same on every machine of the file)
  srun keras-trainkit launch --cluster slurm train.py
  keras-trainkit launch --cluster kubernetes train.py     (in every pod of an indexed Job)

Each line of output has the worker's number before it. When a worker fails, the others are ended; the exit code is its
own, or 128 and the number of the signal that killed it."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "launch",
        help="run a training script as several workers",
        usage="keras-trainkit launch (--workers N | --hosts FILE | --cluster KIND) [options] (SCRIPT | -m MODULE) ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    who = parser.add_argument_group("who the workers are, one of").add_mutually_exclusive_group(required=True)
    who.add_argument("--workers", type=int, metavar="N", help="N processes on this machine, on free loopback ports")
    who.add_argument("--hosts", metavar="FILE", help="a file of lines HOST:PORT; starts those that are this machine")
    who.add_argument("--cluster", choices=("slurm", "kubernetes"), help="the variables of Slurm or Kubernetes")
    parser.add_argument("--host", metavar="NAME", help="which host of the file this machine is (default: found out)")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="silence after which a worker is held for lost (default 60)"
    )
    parser.add_argument(
        "--grace", type=float, default=10.0, metavar="SECONDS", help="time to end before being killed (default 10)"
    )
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="N", help="with --workers: start all again up to N times (default 0)"
    )
    parser.add_argument(
        "--gpus-per-worker", type=int, metavar="N", help="give each worker N GPUs of its own, by CUDA_VISIBLE_DEVICES"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT", help="the Python script, or the module with -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    parser.set_defaults(function=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Starts the workers, again if they may, and returns the exit code of the job."""
    from keras_trainkit.distribution import launching

    if sys.platform == "win32":
        raise BadInput("launch needs Linux or macOS")
    _check(arguments)
    command = [sys.executable, *(["-m"] if arguments.module else []), arguments.script, *arguments.arguments]
    for attempt in range(arguments.restarts + 1):
        clusters = _clusters(arguments)
        environments = [_environment(arguments, rank) for rank in range(len(clusters))]
        outcome = launching.run(command, clusters, environments, arguments.grace)
        if outcome.message:
            print(f"keras-trainkit: {outcome.message}", file=sys.stderr, flush=True)
        if outcome.code == 0 or outcome.interrupted:
            break
        if attempt < arguments.restarts:
            print(f"keras-trainkit: restart {attempt + 1} of {arguments.restarts}", file=sys.stderr, flush=True)
    return outcome.code


def _check(arguments: argparse.Namespace) -> None:
    try:
        if arguments.workers is not None:
            checks.integer("--workers", arguments.workers, at_least=1)
        if arguments.timeout is not None:
            checks.number("--timeout", arguments.timeout, above=0)
        if arguments.gpus_per_worker is not None:
            checks.integer("--gpus-per-worker", arguments.gpus_per_worker, at_least=0)
        checks.number("--grace", arguments.grace, at_least=0)
        checks.integer("--restarts", arguments.restarts, at_least=0)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if arguments.restarts and arguments.workers is None:
        raise BadInput("--restarts needs --workers: on several machines the scheduler must start all of them again")
    if arguments.host and not arguments.hosts:
        raise BadInput("--host needs --hosts")
    if not arguments.module and not os.path.isfile(arguments.script):
        raise BadInput(f"there is no script {arguments.script}")


def _clusters(arguments: argparse.Namespace) -> list[Cluster]:
    """The workers to start here."""
    from keras_trainkit.distribution import launching

    try:
        if arguments.workers is not None:
            return launching.local_clusters(arguments.workers)
        if arguments.cluster is not None:
            return [Cluster.from_slurm() if arguments.cluster == "slurm" else Cluster.from_kubernetes()]
        addresses = Cluster.from_hosts_file(arguments.hosts, 0).workers
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None
    own = {arguments.host} if arguments.host else _own_names()
    found = [index for index, address in enumerate(addresses) if split_address(address)[0].lower() in own]
    if not found:
        said = ", ".join(sorted(own))
        raise BadInput(f"{arguments.hosts} does not list this machine ({said}); say which host it is with --host")
    return [Cluster(addresses, index) for index in found]


def _own_names() -> set[str]:
    """The names and addresses by which a hosts file may call this machine."""
    import psutil

    name = socket.gethostname()
    names = {"localhost", name, name.partition(".")[0], socket.getfqdn()}
    addresses = {each.address.partition("%")[0] for own in psutil.net_if_addrs().values() for each in own}
    return {each.lower() for each in names | addresses if each}


def _environment(arguments: argparse.Namespace, rank: int) -> dict[str, str]:
    """What the worker with this rank on its machine gets beside TF_CONFIG."""
    found = {}
    if arguments.timeout is not None:
        found["KERAS_TRAINKIT_TIMEOUT"] = str(arguments.timeout)
    if arguments.gpus_per_worker is not None:
        count = arguments.gpus_per_worker
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        own = visible.split(",")[rank * count : (rank + 1) * count] if visible else None
        if own is not None and len(own) < count:
            raise BadInput(f"CUDA_VISIBLE_DEVICES={visible} has too few GPUs for {count} of each worker")
        numbers = own if own is not None else [str(number) for number in range(rank * count, (rank + 1) * count)]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(numbers) if count else "-1"
    return found

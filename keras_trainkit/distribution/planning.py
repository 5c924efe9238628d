"""`plan`: what a training on replicas will hold, exchange and take, before it runs."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_trainkit.core import backend, checks
from keras_trainkit.distribution import measuring, paper, running
from keras_trainkit.distribution.exchange import Exchange
from keras_trainkit.distribution.layout_report import Bytes, tensor_bytes
from keras_trainkit.distribution.plan_report import Plan, PlanRow


def plan(
    model: Any,
    batch: Any,
    devices: int | Iterable[int],
    *,
    optimizer: Any = None,
    scaling: str = "weak",
    bandwidth: float | None = None,
    latency: float = 0.0,
    activations: float | Callable[[int], float] | None = None,
    step_time: float | Callable[[int], float] | None = None,
) -> Plan:
    """What training a model on replicas will hold, exchange and take, before it runs, for any number of devices.

    Every device holds the whole model and its slots, takes its share of each batch, and gives its gradients into one
    all-reduce. Nothing of the model, its optimizer, Keras's names or the random seeds changes.

    **Counted on paper**: parameters, gradients, and the slots that the optimizer will have when it is built, with
    averages, accumulators and the dtypes that it chooses; all that the gradients' exchange sends. The kit's optimizers
    exchange at least float32, once for each update, and with accumulation the sums of a window, all dense, and a weight
    of 4 bytes (with loss scaling 4 bytes more for each micro-batch). Without accumulation the gradients of embeddings
    travel by rows. Keras's own exchange in the variables' dtype. On JAX gradients are dense, in the variables' dtype,
    and exchanged for every micro-batch.

    **Measured on one step** on this machine: forward pass in training mode, loss and backward pass, on a device's share
    of the batch. The loss is the one that the model was compiled with, if `batch` has targets, or else the mean square
    of the outputs. A `train_step` or `compute_loss` of the model's own is not run, and a sharpness-aware one needs
    about twice as long. `activations` are the most bytes that are in use at one time, by the count of the backend's
    allocator (TensorFlow, the largest of several steps: its order of operators differs from step to step) or of its
    compiler (JAX), without variables and gradients, and with the batch itself. On CPUs TensorFlow does not count
    tensors below 256 KiB; where little is in use, a larger batch is measured, of which it is the share. All memory
    together is that, or what lies beside the gradients when they are summed, if that is more: their sums over replicas,
    the rows of all, a window's mean, their copies in float32. Programs, the runtime, and what an update needs for a
    moment are not in it.

    **Expected times**, with a `bandwidth`: for computing, the median of five steps here, and of as many updates of a
    twin of the optimizer on stand-ins of the variables, which take memory for that; or `step_time`. For exchanging on a
    ring of n devices, `2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency` for an all-reduce (Patarasuk and Yuan
    2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations") and `(n - 1) * (bytes / bandwidth + 2
    * latency)` for the rows of a variable. Results are given for no overlap of the two, and for a whole one; the truth
    lies between. No device waits for a slower one, and data are always there.

    Args:
        model: a built model, compiled or not.
        batch: how many samples, for a functional or sequential model whose inputs have known shapes. Or arrays as
            `fit` would get them for one batch: inputs, or (inputs, targets), or (inputs, targets, sample weights). With
            accumulation a micro-batch.
        devices: a number, or several, such as `[1, 2, 4, 8, 1024]`.
        optimizer: of the kit or of Keras; the one that the model was compiled with when left out. Without either no
            slots are counted, and the exchange is that of Keras.
        scaling: `"weak"`: `batch` is what each device takes, more devices take more samples. `"strong"`: `batch` is
            what all of them take together, as in `fit`; the largest share counts where it does not divide. It is
            measured; smaller ones have activations in proportion, at most that is (more gradients are there when few
            activations are left), and times on the line through the largest share and the smallest.
        bandwidth: bytes a second that each device can send. No times are expected when left out.
        latency: seconds that a message takes to the next device, beside its bytes.
        activations: bytes, if they are known: of `batch` samples on one device, or a function of the samples of one.
        step_time: seconds, if they are known: of `batch` samples on one device of the kind that is planned for, with
            the update, or a function of the samples of one.

    Returns:
        A `Plan`, for `print`.

    Raises:
        ValueError: for a value out of its range, more devices than samples in strong scaling, a model that is not
            built, a number of samples where the model's inputs do not have known shapes, accumulation of Keras's own
            optimizers on several replicas of TensorFlow (it stops with an error there), and an optimizer that is not
            built and cannot be built on paper (Keras's Adafactor; the kit's can).
        TypeError: for an argument of the wrong kind.
        RuntimeError: where the backend does not count its memory; then pass `activations`. Inside the scope of a
            strategy; the model may have been made there.

    Example:

    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu"), keras.layers.Dense(10)])
    >>> model.compile(keras.optimizers.Adam(), "mse")
    >>> found = plan(model, 32, [1, 4, 1024], bandwidth=10e9, latency=5e-6, activations=2**17, step_time=0.01)
    >>> found.held.gradients == found.rows[1].all_reduce == 4 * (64 * 256 + 256 + 256 * 10 + 10)
    True
    >>> [row.sent for row in found.rows]
    [0, 115260, 153530]
    >>> [f"{low:.0%} to {high:.0%}" for low, high in (row.efficiency for row in found.rows)]
    ['100% to 100%', '100% to 100%', '49% to 98%']
    """
    if running.inside_of_replicas():
        raise RuntimeError("`plan` cannot be called inside the scope of a strategy: leave that scope first.")
    wanted = list(devices) if isinstance(devices, Iterable) else [devices]
    counts = [checks.integer("devices", n, at_least=1) for n in wanted]
    if not counts:
        raise ValueError("`devices` must be one number at least. Received: devices=[]")
    checks.one_of("scaling", scaling, ("weak", "strong"))
    latency = checks.number("latency", latency, at_least=0)
    if bandwidth is not None:
        bandwidth = checks.number("bandwidth", bandwidth, above=0)
    elif step_time is not None:
        raise ValueError("`step_time` is of use together with a `bandwidth` alone. Received: bandwidth=None")
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not model.trainable_variables:
        raise ValueError("`model` must be built, and have variables to train: give it an Input, or build it.")
    if isinstance(batch, numbers.Integral):
        batch = checks.integer("batch", batch, at_least=1)
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)
    given = measuring.Batch(model, batch)
    shares = {n: given.samples if scaling == "weak" else math.ceil(given.samples / n) for n in counts}
    if scaling == "strong" and max(counts) > given.samples:
        raise ValueError(
            f"`devices` must be at most the {given.samples} samples of the batch, which they share in strong scaling; "
            f'with scaling="weak" each takes as many. Received: devices={max(counts)}'
        )
    slots = 0 if optimizer is None else _slot_bytes(optimizer, model)
    step = measuring.Step(model, given)
    largest = max(shares.values())
    exchange = Exchange(optimizer, step.gradients(largest), largest, max(counts))
    memory = _known("activations", activations, given.samples)
    if memory is None:
        memory = _proportional(step.activations(largest), largest)
    held = Bytes(
        sum(tensor_bytes(v.shape, backend.dtype(v)) for v in model.variables),
        sum(tensor_bytes(v.shape, backend.dtype(v)) for v in step.variables),
        slots,
    )
    compute = None
    if bandwidth is not None:
        sizes = set(shares.values())
        if scaling == "strong" and sizes != {given.samples} and len(sizes) == 1:
            sizes.add(max(1, largest // 2))  # to tell from what one device would take for all samples
        known = _known("step_time", step_time, given.samples)
        compute = _timed(step, optimizer, exchange, sizes) if known is None else _times(known, exchange.micro_batches)
    rows = []
    for n in counts:
        share, total = shares[n], (given.samples * n if scaling == "weak" else given.samples)
        peak, (reduced, gathered, sent) = math.ceil(memory(share)), exchange.bytes(n, share)
        everything = held.total + max(peak, exchange.copies(n, share))  # no activations are left at the exchange
        row = PlanRow(n, share, total * exchange.micro_batches, peak, everything, reduced, gathered, sent)
        if compute is not None and bandwidth is not None:
            row = dataclasses.replace(
                row,
                compute_seconds=compute(share),
                exchange_seconds=exchange.seconds(n, share, bandwidth, latency),
                single_seconds=compute(share) if scaling == "weak" else compute(given.samples) / n,
            )
        rows.append(row)
    name = None if optimizer is None else type(exchange.inner).__name__
    sparse = [g.variable.path for g in exchange.by_rows]
    return Plan(rows, held, name, scaling, exchange.micro_batches, sparse, bandwidth, latency)


def _slot_bytes(optimizer: Any, model: Any) -> int:
    """Of the variables that the optimizer has, or will have when it is built."""
    if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
        slots = optimizer.variables
    else:
        slots = paper.slots_of(optimizer, model.trainable_variables)
    return sum(tensor_bytes(v.shape, backend.dtype(v)) for v in slots)


def _known(name: str, value: Any, samples: int) -> Callable[[int], float] | None:
    """What the user says, as a function of the samples of a device."""
    if value is None:
        return None
    if callable(value):
        return lambda count: checks.number(f"{name}({count})", value(count), at_least=0)
    return _proportional(checks.number(name, value, at_least=0), samples)


def _proportional(value: float, samples: int) -> Callable[[int], float]:
    return lambda count: value * count / samples


def _times(function: Callable[[int], float], factor: int) -> Callable[[int], float]:
    return lambda count: factor * function(count)


def _timed(step: measuring.Step, optimizer: Any, exchange: Exchange, sizes: set[int]) -> Callable[[int], float]:
    """The seconds of one update, by the samples of a device."""
    low, high, steps = min(sizes), max(sizes), exchange.micro_batches
    last = step.seconds(high)
    slope = last / high if low == high else max(0.0, (last - step.seconds(low)) / (high - low))
    update = 0.0
    if optimizer is not None:
        update = measuring.update_seconds(optimizer, step.variables, step.run(low), steps)
    return lambda samples: steps * (last + slope * (samples - high)) + update

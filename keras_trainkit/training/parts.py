"""A train function that computes each batch in parts, as large as memory allows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_trainkit.core import TransformOptimizer, backend
from keras_trainkit.precision import LossScaleOptimizer
from keras_trainkit.training import replica_values
from keras_trainkit.training.interception import intercepted
from keras_trainkit.training.replica_values import Span, remaining_spans


class Parts:
    """Takes a batch, and sums the gradients of its parts before the optimizer moves.

    Args:
        model: the compiled model.
        size: the most samples of a part on each replica; None for whole batches, as long as they fit.

    Attributes:
        size: the same, as memory has made it.
    """

    def __init__(self, model: Any, size: int | None) -> None:
        self.size = size
        self._model = model
        self._strategy = model.distribute_strategy
        self._optimizer = _optimizer(model)
        self._steps: dict[str | None, Callable[[Any], Any]] = {}
        if isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise ValueError(
                "`micro_batches` works on the devices of one machine: where one worker runs out of memory the others "
                f"wait for it. Received: model.distribute_strategy={type(self._strategy).__name__}"
            )
        with self._strategy.scope():
            # On which replicas, of how many parts, writing has begun.
            self._begun = keras.Variable(
                0, dtype="int32", trainable=False, aggregation="sum", synchronization="on_read", name="begun"
            )
        self._expected = 0

    def __call__(self, iterator: Iterable[Any]) -> Any:
        """Takes as many batches as an execution has; returns the logs of the last one."""
        logs, source = None, iter(iterator)
        for _ in range(self._model.steps_per_execution):
            try:
                data = next(source)
            except (StopIteration, tf.errors.OutOfRangeError):
                if logs is None:
                    raise
                break
            logs = self._batch(replica_values.present(data))
        return logs

    def _batch(self, data: Any) -> Any:
        if not self._steps:
            # In the train step, where nothing is written, nothing can be made.
            backend.build_from(self._model, replica_values.first(data, self._strategy))
        counts = replica_values.samples(data, self._strategy)
        done, logs = [0] * len(counts), None
        while logs is None or done != counts:
            spans = remaining_spans(counts, done, self.size)
            kind = "more" if len(spans) > 1 else "last" if any(done) else None
            try:
                logs = self._part(data, counts, spans[0], kind)
            except Exception as error:
                if not backend.out_of_memory(error):
                    raise
                self._halve(error, counts, done, spans[0])
            else:
                done = [stop for _, stop in spans[0]]
        return logs

    def _part(self, data: Any, counts: list[int], spans: list[Span], kind: str | None) -> Any:
        if kind is not None:
            self._sum_parts()
            data = replica_values.cut(data, spans, self._strategy)
        shares = [tf.constant((stop - start) / max(n, 1)) for (start, stop), n in zip(spans, counts, strict=True)]
        if kind not in self._steps:
            self._steps[kind] = backend.step_runner(self._model, self._step(kind))
        logs = self._steps[kind]((data, replica_values.deal(shares, self._strategy)))
        self._expected += self._strategy.num_replicas_in_sync
        return logs

    def _sum_parts(self) -> None:
        with self._strategy.scope():
            if not self._optimizer.built:
                self._optimizer.build(self._model.trainable_variables)
            inner = getattr(self._optimizer, "inner_optimizer", self._optimizer)
            if inner.sum_parts():
                self._steps.clear()

    def _step(self, kind: str | None) -> Callable[[Any], Any]:
        """The model's train step, which writes nothing before no replica can run out of memory in it any more."""
        train_step, optimizer, begun = self._model.train_step, self._optimizer, self._begun

        def step(data_and_share: tuple[Any, Any]) -> Any:
            data, share = data_and_share
            calls: list[tuple[list[Any], Any, Any]] = []

            def wait(original: Any, grads: Any, trainable_variables: Any = None, samples: Any = None) -> None:
                calls.append((list(grads), trainable_variables, samples))

            with backend.DeferredWrites() as writes, intercepted(optimizer, "apply", wait):
                logs = train_step(data)
            if len(calls) > 1:
                raise ValueError(
                    "`micro_batches` needs a `train_step` that calls its optimizer once. "
                    f"Received: {len(calls)} calls of `{optimizer.name}.apply`"
                )
            values = [value for _, value in writes.values.values()]
            with backend.after_all([values, [grads for grads, *_ in calls], logs]):
                backend.add_to(begun, 1)
                marked = backend.read(begun)
            with backend.after([marked]):
                for variable, value in writes.values.values():
                    variable.assign(value)
                for grads, variables, samples in calls:
                    weight = share if samples is None and kind is not None else samples
                    optimizer.apply(grads, variables, samples=weight, part=kind)
                for action in writes.later:
                    action()
            return logs

        return backend.plain_python(step)

    def _halve(self, error: Exception, counts: list[int], done: list[int], spans: list[Span]) -> None:
        """Makes the parts smaller, or raises the error where that is no help."""
        longest = max(stop - start for start, stop in spans)
        size = -(-longest // 2)
        smaller = max(stop - start for start, stop in remaining_spans(counts, done, size)[0]) < longest
        if int(backend.read(self._begun)) != self._expected:
            error.add_note("It happened in the update itself, which may be half written: go on from a saved state.")
        elif not smaller:
            error.add_note(f"The parts of this batch cannot be smaller than {longest} samples.")
        else:
            self.size = size
            warnings.warn(
                f"Out of memory with {longest} samples on a device: from here on batches are computed in parts of at "
                f"most {size}.",
                stacklevel=2,
            )
            return
        raise error


def _optimizer(model: Any) -> Any:
    optimizer = model.optimizer
    if not isinstance(optimizer, (TransformOptimizer, LossScaleOptimizer)):
        raise TypeError(
            "`micro_batches` needs an optimizer of keras_trainkit (`optimizers.wrap` makes one of any other), in "
            "mixed_float16 inside of its `precision.LossScaleOptimizer`. "
            f"Received: {type(optimizer).__module__}.{type(optimizer).__name__}"
        )
    return optimizer

"""Trials in this process: a size fits unless the device says that it has no memory left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.finders.batch_size_report import Trial
from keras_trainkit.finders.rehearsal import Rehearsal

_KEPT = ("optimizer", "train_function", "stop_training")


@contextlib.contextmanager
def trials(rehearsal: Rehearsal, accumulates: bool) -> Iterator[Callable[[int], Trial]]:
    """A function that tries a size. Afterwards the model is what it was."""
    model = rehearsal.model
    before = {name: getattr(model, name) for name in _KEPT}
    values = [(v, ops.convert_to_numpy(v)) for v in model.variables]

    def restore() -> None:
        for variable, value in values:
            variable.assign(value)

    def attempt(size: int) -> Trial:
        rehearsal.renew(accumulates)
        try:
            rehearsal.run(size)
        except Exception as error:
            if not backend.out_of_memory(error):
                raise
            restore()  # on JAX an error leaves the variables empty
            return Trial(size, False, reason="the device is out of memory")
        return Trial(size, True)

    try:
        yield attempt
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        restore()
        model.reset_metrics()

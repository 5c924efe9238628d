"""The range test in a `fit` of your own."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import checks
from keras_trainkit.finders.learning_rate_report import LearningRates, joined
from keras_trainkit.finders.learning_rate_rules import COMBINED, RULES
from keras_trainkit.finders.sweep import Range, Sweep


@keras.saving.register_keras_serializable("keras_trainkit")
class LearningRateFinder(keras.callbacks.Callback):
    """Makes of one `fit` a learning-rate range test, with whatever data and arguments that `fit` has.

    The `fit` ends with the sweep; then model, optimizer, random layers, metrics, learning rate and compiled train
    function are what they were, to the bit, and `result` tells what was found. Give it more epochs than the sweep can
    take. `finders.learning_rate` does this for several seeds, and puts the generators that shuffle data back as well.
    After an error or Ctrl-C in such a `fit` call `restore`.

    Args:
        minimum, maximum, steps, smoothing, divergence, rule: as in `finders.learning_rate`.

    Attributes:
        result: `finders.LearningRates` after the `fit`; None before.

    Raises:
        TypeError, ValueError: at construction, for a value out of its range.

    >>> callback = LearningRateFinder(maximum=1.0)  # model.fit(x, y, epochs=100, callbacks=[callback])
    >>> callback.result is None, callback.get_config()["steps"]
    (True, 100)
    """

    def __init__(
        self,
        minimum: float = 1e-7,
        maximum: float = 10.0,
        steps: int = 100,
        smoothing: float = 0.9,
        divergence: float = 4.0,
        rule: str = COMBINED,
    ) -> None:
        super().__init__()
        self._range = Range(minimum, maximum, steps, smoothing, divergence).checked()
        self.rule = checks.one_of("rule", rule, [COMBINED, *RULES])
        self.result: LearningRates | None = None
        self._sweep: Sweep | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self.restore()
        self._sweep = Sweep(self._range)
        self._sweep.set_model(self.model)
        self._sweep.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._swept.on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._swept.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._swept.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._swept.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._swept.on_train_end(logs)
        curve = self._swept.curve()
        self.restore()
        self.result = joined([curve], self.rule)

    def restore(self) -> None:
        """Puts everything back, after a `fit` that ended with an error; else there is nothing to do."""
        if self._sweep is not None:
            self._sweep.restore()
            self._sweep = None

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("minimum", "maximum", "steps", "smoothing", "divergence")
        return {name: getattr(self._range, name) for name in names} | {"rule": self.rule}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearningRateFinder:
        """The inverse of `get_config`."""
        return cls(**config)

    @property
    def _swept(self) -> Sweep:
        if self._sweep is None:
            raise RuntimeError("`LearningRateFinder` was not told that training begins.")
        return self._sweep

"""PreflightCheck: `guards.preflight` as `fit` begins."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import backend, checks
from keras_trainkit.guards.findings import Finding, PreflightReport
from keras_trainkit.guards.watching import needs_tensorflow

ACTIONS = ("raise", "show")


@keras.saving.register_keras_serializable("keras_trainkit")
class PreflightCheck(keras.callbacks.Callback):
    """Looks at data, model and optimizer before the first batch, as `guards.preflight` does, and leaves all as it was.

    It prints a table if there is anything worse than a note, and raises `guards.PreflightError` if there are errors.
    Training then begins with the bits that it would have begun with: the check comes before any callback's
    `on_train_begin`, so the place in the list does not matter.

    Arrays that were given to `fit` are looked at as they are. Other data would be used up, or come in another order:
    give a `batch` of them.

    Args:
        batch: a tuple (x, y) or (x, y, sample_weight) of arrays or structures of them; None for the arrays of `fit`.
        action: `"raise"`, or `"show"`, which only prints.
        batch_size, overfit_steps, save: as for `guards.preflight`.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, with Keras on
            another backend than TensorFlow.
        PreflightError: when training begins, if there are errors.

    Attributes:
        report: the last `guards.PreflightReport`, None before the first.

    >>> PreflightCheck(overfit_steps=0).get_config()
    {'action': 'raise', 'batch_size': 32, 'overfit_steps': 0, 'save': True}
    """

    def __init__(
        self,
        batch: Any = None,
        action: str = "raise",
        batch_size: int = 32,
        overfit_steps: int = 60,
        save: bool = True,
    ) -> None:
        super().__init__()
        if batch is not None and not (isinstance(batch, tuple) and 1 <= len(batch) <= 3):
            raise TypeError(
                f"`batch` must be a tuple of one to three: x, y, sample_weight. Received: a {type(batch).__name__}"
            )
        self.batch = batch
        self.action = checks.one_of("action", action, ACTIONS)
        self.batch_size = checks.integer("batch_size", batch_size, at_least=1)
        self.overfit_steps = checks.integer("overfit_steps", overfit_steps, at_least=0)
        self.save = checks.boolean("save", save)
        self.report: PreflightReport | None = None
        self._done = False

    def get_config(self) -> dict[str, Any]:
        """The arguments, without the batch."""
        return {name: getattr(self, name) for name in ("action", "batch_size", "overfit_steps", "save")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PreflightCheck:
        """The inverse of `get_config`."""
        return cls(**config)

    def set_params(self, params: Any) -> None:
        """Checks, before any callback's `on_train_begin` has changed anything."""
        super().set_params(params)
        if params and params.get("epochs") is not None and self.model is not None:
            self._check()

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks if it could not do so earlier."""
        if not self._done:
            self._check()

    def on_train_end(self, logs: Any = None) -> None:
        """Lets the next `fit` be checked, too."""
        self._done = False

    def _check(self) -> None:
        from keras_trainkit.guards.checking import preflight

        needs_tensorflow(type(self).__name__)
        self._done = True
        data = backend.arrays_of(backend.epoch_iterator_of_fit()) if self.batch is None else self.batch
        if data is None:
            line = "these data would be used up by a look: give PreflightCheck a `batch` of them"
            self.report = PreflightReport.of([Finding("warning", "no-batch", line)])
        else:
            self.report = preflight(
                self.model, *data, batch_size=self.batch_size, overfit_steps=self.overfit_steps, save=self.save
            )
        if self.report.names("error") or self.report.names("warning"):
            self.report.show()
        if self.action == "raise":
            self.report.check()

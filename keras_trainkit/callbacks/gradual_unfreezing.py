"""GradualUnfreezing: the top of a pretrained model trains first, and the layers below it join one by one."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.callbacks import optimizers
from keras_trainkit.core import backend, checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import require_pattern
from keras_trainkit.guards.freezing import FrozenStep, grouped, own_variables
from keras_trainkit.guards.watching import needs_tensorflow
from keras_trainkit.monitoring.counting import accumulation_steps, to_float
from keras_trainkit.training import train_functions
from keras_trainkit.transforms import CountOwnUpdates

_EPOCHS = re.compile(r"(\d+)\s*ep")


@keras.saving.register_keras_serializable("keras_trainkit")
class GradualUnfreezing(keras.callbacks.Callback):
    """Trains the top group of layers first, then the one below it too, and so on to the bottom (ULMFiT).

    Frozen layers do not move at all: no gradient of theirs is computed, they do not decay, and BatchNormalization among
    them runs on its stored statistics and keeps these, as `layer.trainable = False` has it. But the flags are off only
    inside of the train step: files, `summary()` and the optimizer's state are those of a model in which all layers
    train. When a group joins, the step is traced anew; in between this costs nothing, and frozen layers save the time
    of their gradients. Layers that you have frozen yourself stay frozen. When `fit` ends, all is as it was; a second
    `fit` goes on where the first one was.

    The optimizer has state for all variables from the beginning. Moments of a group that joins late begin at zero, but
    Adam's bias corrections count from the start of training, so that its first steps would be up to 6.6 times too long:
    give a kit's optimizer `after=[transforms.CountOwnUpdates()]`, or else a warning says so. Rates that shrink toward
    the bottom, which ULMFiT has too, are `transforms.LayerwiseDecay` with the same patterns.

    It works with Keras's optimizers, under MirroredStrategy, and with a `train_step` of your own that asks the model
    for its trainable variables. On TensorFlow only.

    Reference: Howard and Ruder, 2018, arXiv:1801.06146.

    Args:
        groups: list of regular expressions from the bottom group to the top one, looked for in the variables' paths;
            the first that is found counts, and all layers with weights must match (`""` as the last takes the rest).
            None makes a group of each layer directly in the model that has weights to train.
        at: when groups join: a number of updates, or whole epochs such as `"1ep"`, between two groups; or a list of
            such for the groups below the top one, from the top down, each counted from the start of training.
        verbose: 1 prints a line when a group joins.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, for groups that
            do not fit the model, an optimizer that was built without some of the variables, a model that is not built,
            and with Keras on another backend than TensorFlow.

    Attributes:
        open: how many groups train.
        events: list of dictionaries, one for each group that has joined: `group` (0 is the bottom), `epoch`,
            `iterations` (None where nothing was read), `layers`, `parameters`.

    >>> callback = GradualUnfreezing(["embed", "block_1", "block_2", "head"], at="1ep")
    >>> callback.get_config()["at"]
    '1ep'
    """

    def __init__(self, groups: list[str] | None = None, at: Any = "1ep", verbose: int = 0) -> None:
        super().__init__()
        self.groups = groups
        if groups is not None:
            if not isinstance(groups, (list, tuple)) or len(groups) < 2:
                raise ValueError(f"`groups` must be a list of at least two patterns. Received: groups={groups!r}")
            for pattern in groups:
                require_pattern("groups", pattern)
            self.groups = list(groups)
        self.at = list(at) if isinstance(at, (list, tuple)) else at
        self._spans = [_span(one) for one in (self.at if isinstance(self.at, list) else [self.at])]
        if isinstance(self.at, list) and groups is not None and len(self.at) != len(groups) - 1:
            raise ValueError(f"`at` must hold one time for each group but the top one. Received: at={at!r}")
        self.verbose = checks.integer("verbose", verbose, at_least=0, at_most=1)
        self.open = 1
        self.events: list[dict[str, Any]] = []
        self._epochs_done = self._epoch = 0
        self._offset: int | None = None
        self._step: FrozenStep | None = None
        self._safe: Callable[[], Any] = bool
        self._warned = False

    # --------------------------------------------------------------------------------------------------- config, state

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"groups": self.groups, "at": self.at, "verbose": self.verbose}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradualUnfreezing:
        """The inverse of `get_config`."""
        return cls(**config)

    def get_state(self) -> dict[str, Any]:
        """What is open, for `ResumableTraining`."""
        axis = [self._epochs_done, self._epoch, self._offset]
        return {"open": self.open, "axis": axis, "events": [dict(event) for event in self.events]}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.events = [dict(event) for event in state["events"]]
        self._epochs_done, self._epoch, self._offset = state["axis"]
        self.open = state["open"]
        if self._step is not None:
            self._freeze()

    # ------------------------------------------------------------------------------------------------------------ fit

    def on_train_begin(self, logs: Any = None) -> None:
        """Freezes what is not open yet."""
        needs_tensorflow(type(self).__name__)
        self._let_go()
        model = self.model
        if not model.built:
            raise ValueError("`GradualUnfreezing` needs a built model: give it an `Input`, or call it on data.")
        self._layers = grouped(model, self.groups)
        self._times = self._planned(len(self._layers))
        self._check_optimizer()
        self._offset = None
        self._batches, self._next_look = 0, 0
        self._step = FrozenStep(model)
        self._safe = backend.when_fit_fails(self._let_go)
        self._freeze()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Opens the groups whose epoch has come."""
        if self._offset is None:
            # A second `fit` counts epochs from 0 again unless it has an `initial_epoch`.
            self._offset = max(0, self._epochs_done - epoch)
        self._epoch = epoch + self._offset
        self._open([time for kind, time in self._times if kind == "epochs"], self._epoch, None)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Opens the groups whose update has come; the count is read only when it may have."""
        if self._times[0][0] == "epochs" or self.open == len(self._layers) or self._batches < self._next_look:
            return
        done = int(to_float(self.model.optimizer.iterations) or 0)
        self._open([time for _, time in self._times], done, done)
        if self.open < len(self._layers):
            missing = self._times[self.open - 1][1] - done
            self._next_look = self._batches + max(1, missing * accumulation_steps(self.model.optimizer) - 1)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts."""
        self._batches += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts."""
        self._epochs_done = self._epoch + 1

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model its train step back."""
        self._let_go()

    # -------------------------------------------------------------------------------------------------------- within

    def _planned(self, groups: int) -> list[tuple[str, int]]:
        """When each group below the top one opens, from the top down: a unit and a number."""
        if not isinstance(self.at, list):
            kind, length = self._spans[0]
            return [(kind, length * below) for below in range(1, groups)]
        if len(self._spans) != groups - 1:
            raise ValueError(
                f"`at` must hold one time for each of the {groups - 1} groups below the top one. Received: at={self.at}"
            )
        times = [time for _, time in self._spans]
        if len({kind for kind, _ in self._spans}) > 1 or times != sorted(times):
            raise ValueError(f"`at` must hold times of one unit that do not fall. Received: at={self.at}")
        return list(self._spans)

    def _open(self, times: list[int], now: int, iterations: int | None) -> None:
        due = 1 + sum(time <= now for time in times)
        if due <= self.open:
            return
        for count in range(self.open, due):
            group = len(self._layers) - 1 - count
            layers = self._layers[group]
            parameters = sum(math.prod(v.shape) for layer in layers for v in own_variables(layer))
            names = [layer.name for layer in layers]
            self.events.append(
                {"group": group, "epoch": self._epoch, "iterations": iterations, "layers": names,
                 "parameters": parameters}
            )  # fmt: skip
            if self.verbose:
                print(f"Epoch {self._epoch + 1}: {', '.join(names)} join ({parameters:,} parameters)")
        self.open = due
        self._freeze()

    def _freeze(self) -> None:
        if self._step is not None:
            self._step.layers = [layer for group in self._layers[: len(self._layers) - self.open] for layer in group]
            train_functions.trace_anew(self.model)

    def _let_go(self) -> None:
        if self._step is not None:
            step, self._step = self._step, None
            self._safe()
            step.remove()
            train_functions.trace_anew(self.model)

    def _check_optimizer(self) -> None:
        model = self.model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        inner = optimizers.innermost(model.optimizer)
        known = {id(v) for v in backend.built_variables(inner)}
        variables = [v for group in self._layers for layer in group for v in own_variables(layer)]
        missing = [variable_path(v) for v in variables if id(v) not in known]
        if missing:
            raise ValueError(
                "`GradualUnfreezing` needs an optimizer that has state for all layers: this one was built while some "
                f"were frozen; call `compile` again. Missing: {', '.join(missing)}"
            )
        counts = any(isinstance(link, CountOwnUpdates) for link in getattr(inner, "after", []))
        if getattr(inner, "beta_2", 0) >= 0.9 and hasattr(inner, "beta_1") and not counts and not self._warned:
            self._warned = True
            warnings.warn(
                "Layers that join late have Adam's moments from then on, and its bias corrections from the start of "
                "training: their first steps are up to 6.6 times too long. Give an optimizer of keras_trainkit "
                "`after=[transforms.CountOwnUpdates(beta_1, beta_2)]`.",
                stacklevel=2,
            )


def _span(value: Any) -> tuple[str, int]:
    """A number of updates or of epochs, with its unit."""
    if isinstance(value, str):
        match = _EPOCHS.fullmatch(value.strip())
        if match is None or int(match[1]) == 0:
            raise ValueError(
                "`at` must hold numbers of updates of at least 1, or whole epochs such as '1ep'. "
                f"Received: at={value!r}"
            )
        return "epochs", int(match[1])
    return "updates", checks.integer("at", value, at_least=1)

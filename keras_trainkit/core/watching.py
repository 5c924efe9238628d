"""What an optimizer tells of its updates: norms, and the learning rate of each group of variables."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import backend
from keras_trainkit.core.accumulation import Window
from keras_trainkit.core.arguments import Plan
from keras_trainkit.core.compose import chain, variable_path
from keras_trainkit.core.statistics import Norms


class Watched:
    """The statistics of `TransformOptimizer`, which has the state that is named here."""

    built: bool
    add_variable: Any
    transform: Any
    learning_rate: Any
    _plan: Plan
    _norms: Norms
    _window: Window | None

    def watch(self, every: int = 1, by_variable: bool = False, pieces: bool = False) -> None:
        """Has the optimizer compute the norms that `statistics` returns, inside the graph, every so many updates.

        Call it before the train step is traced. Unwatched optimizers do not compute them.

        Args:
            every: updates from one to the next that is measured.
            by_variable: whether to keep the norms of each variable, too, for `statistics_by_variable`.
            pieces: whether to measure the gradients of micro-batches and replicas by themselves, for
                `piece_statistics`.
        """
        self._norms.watch(every, by_variable, pieces)
        if self.built:
            with backend.eager_scope(), backend.scope_of(self):
                self._build_norms()

    def _build_norms(self) -> None:
        variables = backend.built_variables(self)
        self._norms.build(self.add_variable, variables)
        if self._norms.of_pieces and self._window is not None and variables:
            self._window.watch_pieces(variables)

    def statistics(self) -> dict[str, float]:
        """The norms at the last watched update, over all variables together; empty if `watch` was not called.

        `gradient_norm` is after the sum over replicas and before clipping, `clipped_gradient_norm` after clipping,
        `update_norm` that of the change written (decay included), `weight_norm` that of the variables before it.
        """
        return self._norms.values()

    def statistics_by_variable(self) -> dict[str, dict[str, float]]:
        """`gradient_norm`, `update_norm` and `weight_norm` of each variable by its path, at the last watched update.

        Empty if `watch` was not asked for them. Variables without a gradient are left out.
        """
        return self._norms.by_variable(backend.built_variables(self)) if self.built else {}

    def piece_statistics(self) -> tuple[float, float, int] | None:
        """What the last watched update says of the noise in its gradient.

        A piece is what one replica computes of one micro-batch. The mean square of the pieces' gradient norms, the
        square of the norm of their mean, and the number of pieces; None if `watch` was not asked for it, or if the
        update had one piece only.
        """
        return self._norms.pieces()

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped by `clipnorm`, `clipvalue` or `global_clipnorm`."""
        return self._plan.clipping is not None

    def learning_rates(self) -> dict[str, float]:
        """The learning rate of the next update for each group of variables that has one of its own.

        Groups are the rules of `partition` (those that take nothing are left out) and the factors of `ScaleByPath`,
        `LayerwiseDecay` and `ScaleByVariable`, which come after an "x". Empty before the optimizer is built.

        >>> import keras
        >>> from keras_trainkit import optimizers, transforms
        >>> optimizer = optimizers.SGD(0.5, after=[transforms.ScaleByPath([["bias", 2.0]])])
        >>> optimizer.build([keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")])
        >>> optimizer.learning_rates()
        {'all': 0.5, 'x2': 1.0}
        """
        if not self.built:
            return {}
        base = float(ops.convert_to_numpy(self.learning_rate))
        return {label: base * factor for label, factor in self.rate_factors().items()}

    def rate_factors(self) -> dict[str, float]:
        """By what the learning rate is multiplied in each group of `learning_rates`."""
        variables = backend.built_variables(self)
        links = chain(self.transform(), *self._plan.after).fitted(variables)
        found = [links.rate_group(variable_path(variable)) for variable in variables]
        return {label or "all": factor for label, factor in found}

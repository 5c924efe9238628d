"""Weights of small magnitude are taken out while the model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.callbacks import optimizers
from keras_trainkit.callbacks.resolve_spans import planned_accumulation
from keras_trainkit.core import TransformOptimizer, backend, checks
from keras_trainkit.monitoring.counting import synchronize
from keras_trainkit.pruning.geometry import select
from keras_trainkit.pruning.pruner import Pruner
from keras_trainkit.pruning.schedule import PruningSchedule
from keras_trainkit.pruning.structures import NOfM, structure_from
from keras_trainkit.schedules.spans import resolve
from keras_trainkit.training import train_functions
from keras_trainkit.training.interception import intercepted


@keras.saving.register_keras_serializable("keras_trainkit")
class MagnitudePruning(keras.callbacks.Callback):
    """Sets the weights of smallest magnitude to zero while training goes on, more and more of them, and holds them.

    The sparsity follows a cubic from `initial_sparsity` to `final_sparsity` (Zhu and Gupta 2017, arXiv 1710.01878). The
    masks change inside the compiled step, right after the update that reaches a stage: `steps_per_execution`,
    accumulation windows and replicas make no difference, and a run resumed from a file has the masks of the
    uninterrupted one. What has gone stays gone. The number of zeros is exact: `final_sparsity` of each variable's
    elements (or of all together), rounded.

    A mask is the variable's constraint (`pruning.WeightMask`, around a constraint of your own if there is one). It
    stays when `fit` ends and is saved with the layer, so a model that is trained on, also after loading, stays sparse,
    until `pruning.strip` takes it off. Gradients of what has gone are zero, and so are momentum, averages and all other
    state in the variable's shape (or what they began with): nothing comes back through `use_ema`, EvaluationWeights or
    a schedule-free optimizer. Any optimizer will do, Keras's own too.

    Which weights: by default all variables called `kernel`, or something that ends so, with two axes or more, but for
    the last one, usually the classifier. So embeddings, normalization, biases and the output layer stay whole; and so
    does what does not fit the structure (below). `pruning.summary(model)` shows what became of each.

    Structures:

    - `"unstructured"`: single weights; with `scope="global"` those of all layers compete, so that some lose more.
    - `"2:4"`, or any N:M: of each M consecutive weights along the axis that is summed over (the inputs of a `Dense`,
      the input channels of a convolution) the N largest live; NVIDIA's sparse tensor cores take 2:4 (Mishra et al.
      2021, arXiv 2104.08378). As the schedule rises, one more of M goes at a time (Kao et al. 2022, arXiv 2209.07617).
      Axes that are no multiple of M do not fit; nor do depthwise kernels.
    - `"filters"`: all weights that lead to one output channel or unit, by their norm; at least one in a layer lives.
      The bias of a filter that has gone stays, and so do shapes. Kernels of recurrent layers, whose gates belong
      together, and depthwise ones do not fit.

    `logs["sparsity"]` holds the share of zeros among the weights that are pruned, for loggers behind this in the list.

    Put it behind EarlyStopping in the list: weights that `restore_best_weights` brings back may be those of a less
    sparse epoch, and the masks are put on again at the end. On JAX the masks change between two calls of the compiled
    step, which is compiled anew at each stage; with `steps_per_execution` that may be late by less than one call.

    Args:
        final_sparsity: the share of weights that are gone at the end, from 0 to below 1. For N:M it is 1 - N/M, and is
            left out.
        initial_sparsity: the share at `begin_step`.
        begin_step: updates (of the optimizer, counted from its beginning) until pruning begins: a number, or a span
            such as `"2ep"` or `"0.1run"`, which `fit` makes a number. 0 prunes before the first update.
        end_step: updates until the final sparsity is reached. Leave time after it for the rest to adapt.
        frequency: updates between two changes of the masks.
        power: 3 for the cubic.
        structure: `"unstructured"`, `"filters"`, or N:M.
        scope: `"layer"` or, for unstructured pruning, `"global"`.
        norm: `"l1"` or `"l2"`, of filters.
        layers: which variables, in place of the default: a list of regular expressions that are looked for in the
            paths of variables with at least two axes, or a function of (layer, variable) that returns whether.
        steps_per_epoch, epochs: of the whole run, for spans; what `fit` knows when left out. The first `fit` makes
            spans numbers, and later ones with the same callback go on along them.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when training begins, for patterns
            that find nothing, named variables that do not fit the structure, or spans without a length of the run.

    >>> callback = MagnitudePruning(0.9, begin_step="1ep", end_step="0.75run", frequency=50)
    >>> callback.schedule.final_sparsity, MagnitudePruning(structure="2:4").schedule.final_sparsity
    (0.9, 0.5)
    """

    def __init__(
        self,
        final_sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        begin_step: int | str = "0.1run",
        end_step: int | str = "0.75run",
        frequency: int | str = 100,
        power: float = 3.0,
        structure: str = "unstructured",
        scope: str = "layer",
        norm: str = "l2",
        layers: list[str] | Callable[[Any, Any], bool] | None = None,
        steps_per_epoch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__()
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.structure = structure_from(structure, scope, norm)
        if isinstance(self.structure, NOfM):
            own = 1 - self.structure.n / self.structure.m
            if final_sparsity is not None and abs(final_sparsity - own) > 1e-6:
                raise ValueError(
                    f'`final_sparsity` of structure "{structure}" is {own:.4g}. '
                    f"Received: final_sparsity={final_sparsity!r}"
                )
            final_sparsity = own
        elif final_sparsity is None:
            raise ValueError(f'`final_sparsity` must be given for structure "{structure}". Received: None')
        self.schedule = PruningSchedule(final_sparsity, initial_sparsity, begin_step, end_step, frequency, power)
        if not (layers is None or callable(layers) or isinstance(layers, (list, tuple))):
            raise TypeError(f"`layers` must be a list of patterns, a function, or None. Received: layers={layers!r}")
        self.layers = list(layers) if isinstance(layers, (list, tuple)) else layers
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        for name in ("steps_per_epoch", "epochs"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), at_least=1)
        self._pruner: Pruner | None = None
        self._stepped: Any = None
        self._safe: Callable[[], Any] = bool
        self._calls_to_wait = 0
        self._first_epoch = True

    def set_params(self, params: Any) -> None:
        # Before any callback's `on_train_begin`: what BackupAndRestore reads there finds its place.
        super().set_params(params)
        if params and params.get("epochs") is not None and self.model is not None:
            self._prepare()

    def on_train_begin(self, logs: Any = None) -> None:
        self._end()
        self._first_epoch = True
        model, pruner = self.model, self._prepare()
        self.schedule = pruner.schedule
        inside, of_the_kit = keras.backend.backend() == "tensorflow", isinstance(pruner.optimizer, TransformOptimizer)
        original, outermost = model.train_step, model.optimizer

        def without_gone(apply: Callable[..., Any], gradients: Any, variables: Any = None, **more: Any) -> Any:
            variables = model.trainable_variables if variables is None else variables
            return apply(pruner.masked_gradients(gradients, variables), variables, **more)

        def train_step(*arguments: Any, **keywords: Any) -> Any:
            if of_the_kit:
                found = original(*arguments, **keywords)
            else:
                with intercepted(outermost, "apply", without_gone):
                    found = original(*arguments, **keywords)
            if inside:
                backend.after_update(pruner.advance_inside)
            return found

        # On this one object and past `__setattr__`, where Keras would track it.
        self._stepped = (model, train_step, vars(model).get("train_step"))
        object.__setattr__(model, "train_step", train_step)
        self._safe = backend.when_fit_fails(self._end)
        train_functions.trace_anew(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # By now all callbacks have restored what they restore.
        self._advance(anyway=self._first_epoch)
        self._first_epoch = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if keras.backend.backend() == "tensorflow":
            return
        self._calls_to_wait -= 1
        if self._calls_to_wait < 0:
            self._advance()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None and self._pruner is not None:
            logs["sparsity"] = self._pruner.sparsity()

    def on_train_end(self, logs: Any = None) -> None:
        self._advance()
        if self._pruner is not None:
            self._pruner.hold()
        self._end()

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return dict(self._arguments)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MagnitudePruning:
        """The inverse of `get_config`."""
        return cls(**config)

    def _prepare(self) -> Pruner:
        model, schedule = self.model, self._resolved()
        if not model.built:
            raise ValueError("`MagnitudePruning` needs a built model: give it an `Input`, or call it on data.")
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)  # a loaded state waits for it
        with train_functions.variables_of(model):
            targets = select(model, self.layers, self.structure.refuses)
            optimizer = optimizers.innermost(model.optimizer)
            self._pruner = Pruner(optimizer, targets, self.structure, schedule)
        return self._pruner

    def _resolved(self) -> PruningSchedule:
        if not any(isinstance(getattr(self.schedule, name), str) for name in self.schedule.spans):
            return self.schedule
        steps = self.steps_per_epoch or self.params.get("steps")
        epochs = self.epochs or self.params.get("epochs")
        if steps is None or epochs is None:
            raise ValueError(
                "`steps_per_epoch` must be given to `fit`, or to `MagnitudePruning`, for lengths in epochs or shares "
                "of the run: the data do not tell how long an epoch is."
            )
        optimizer = optimizers.innermost(self.model.optimizer)
        return resolve(self.schedule, steps, epochs, planned_accumulation(optimizer))

    def _advance(self, anyway: bool = False) -> None:
        """Brings the masks up to date from outside of the step; on JAX that is the only place."""
        pruner = self._pruner
        if pruner is None:
            return
        model = self.model
        synchronize(model)
        changed = pruner.advance_outside(anyway)
        if keras.backend.backend() == "tensorflow":
            return
        if changed and self._stepped is not None:
            train_functions.trace_anew(model)  # the compiled step has the masks built in
        batches = max(pruner.until_next() - 1, 0) * pruner.window
        self._calls_to_wait = batches // int(getattr(model, "steps_per_execution", None) or 1)

    def _end(self) -> None:
        stepped, self._stepped = self._stepped, None
        if stepped is not None:
            self._safe()
            train_functions.take_step_off(*stepped)
            train_functions.trace_anew(stepped[0])

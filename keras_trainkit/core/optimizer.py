"""`TransformOptimizer`: the one class that knows variables. It reduces, computes and writes, in this order."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

import keras
from keras import ops

from keras_trainkit.core import backend, building, checks, evaluation, fusion, hyperparameters, slices, state
from keras_trainkit.core.accumulation import Window
from keras_trainkit.core.arguments import Plan, checked_rate, checked_transforms
from keras_trainkit.core.clipping import clipping_from_arguments
from keras_trainkit.core.compose import chain, variable_path
from keras_trainkit.core.guard import GuardRoom
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.core.reduction import ReduceStep
from keras_trainkit.core.statistics import Norms
from keras_trainkit.core.transform import Context, Transform
from keras_trainkit.core.update import UpdateStep
from keras_trainkit.core.watching import Watched

LAST_WINDOW = ("apply", "drop", "carry")


@keras.saving.register_keras_serializable("keras_trainkit")
class TransformOptimizer(ReduceStep, UpdateStep, Watched, keras.optimizers.Optimizer):
    """An optimizer made of pure transforms, right on any number of replicas.

    Each step sums the gradients over the replicas, then computes (clipping, `before`, the algorithm, `after`), then
    writes once. Gradients and state are never handled in half precision. `iterations`, schedules and the moving
    average count updates, not micro-batches.

    Args:
        learning_rate: a float, a `LearningRateSchedule`, or a function without arguments that returns the rate.
        algorithm: the transform to run, gradients in and displacements out; named optimizers bring their own.
        before: list of transforms of the gradients, such as `Centralize()`; they run after clipping.
        after: list of transforms of the displacements, such as `Lookahead(6, 0.5)`.
        weight_decay: a float; before each update every variable shrinks by `learning_rate * weight_decay` of itself
            (decoupled decay: Loshchilov and Hutter, 2017, arXiv:1711.05101).
        weight_decay_exclude: list of regular expressions; variables in whose path one is found do not decay. It is
            saved with the optimizer.
        clipnorm: the largest norm of each variable's gradient, after the sum over replicas.
        clipvalue: the largest absolute value of a gradient's element, after the sum over replicas.
        global_clipnorm: the largest norm of all gradients together, after the sum over replicas.
        use_ema: keep a moving average of the weights, and put it in place when `fit` ends.
        ema_momentum: its decay for each update.
        ema_overwrite_frequency: put the average in place every so many updates, too.
        loss_scale_factor: a fixed factor for the loss.
        gradient_accumulation_steps: average the gradients of so many batches, then update once.
        last_window: what becomes of a window that is not full when `fit` ends: `"apply"` updates with the average of
            what came, `"drop"` forgets it, `"carry"` keeps it for the next `fit`.
        name: a name for the optimizer's variables.

    Raises:
        ValueError: for a value out of its range, or an argument that does not exist.
        TypeError: for a value of the wrong kind.

    Example:

    >>> from keras_trainkit import core, transforms
    >>> optimizer = core.TransformOptimizer(
    ...     1e-3, core.chain(transforms.ScaleByAdam(), transforms.ScaleByLearningRate()), global_clipnorm=1.0)
    >>> optimizer.get_config()["global_clipnorm"]
    1.0
    """

    use_ema: bool

    decays_inside: ClassVar[Any] = False
    """Whether the algorithm applies `weight_decay` itself; then the step does not decay the variables before it."""

    lazy: ClassVar[bool] = False
    """Whether rows that a sparse gradient does not hold are left as they are, moments and decay included."""

    keras_slots: ClassVar[list[list[str]]] = []
    """Our slots in the order of Keras's optimizer of the same name, whose files we read: groups of slots that it lists
    variable by variable. A minus sign before a name says that Keras keeps the opposite."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        algorithm: Transform | None = None,
        *,
        before: list[Transform] | None = None,
        after: list[Transform] | None = None,
        weight_decay: float | None = None,
        weight_decay_exclude: list[str] | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        last_window: str = "apply",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            allowed = backend.init_parameters(type(self)) + backend.init_parameters(TransformOptimizer)
            unknown = next(iter(kwargs))
            raise ValueError(
                f"`{unknown}` is not an argument of {type(self).__name__}{checks.did_you_mean(unknown, allowed)}. "
                f"Received: {unknown}={kwargs[unknown]!r}"
            )
        clipping = clipping_from_arguments(clipnorm, clipvalue, global_clipnorm)
        if gradient_accumulation_steps is not None:
            gradient_accumulation_steps = checks.integer(
                "gradient_accumulation_steps", gradient_accumulation_steps, at_least=1
            )
        super().__init__(
            learning_rate=checked_rate(learning_rate),
            weight_decay=None if weight_decay is None else checks.number("weight_decay", weight_decay, at_least=0),
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=checks.boolean("use_ema", use_ema),
            ema_momentum=checks.number("ema_momentum", ema_momentum, at_least=0, at_most=1),
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            # Keras refuses 1; to us it says "no accumulation", so that a recipe can always name a number.
            gradient_accumulation_steps=gradient_accumulation_steps if gradient_accumulation_steps != 1 else None,
            name=name,
        )
        self._plan = Plan(
            clipping=clipping,
            before=checked_transforms("before", before),
            after=checked_transforms("after", after),
            decay_exclude=list(weight_decay_exclude or []),
        )
        for pattern in self._plan.decay_exclude:
            re.compile(pattern)
        self.algorithm = algorithm
        self.last_window = checks.one_of("last_window", last_window, LAST_WINDOW)
        self._scaled_outside = False
        self.scheduled = hyperparameters.Schedules()
        self._norms = Norms()
        self._flush_steps: dict[tuple[int, ...], Any] = {}
        self._window: Any = None
        self._programs = fusion.Programs()
        self._aside: evaluation.Aside | None = None

    # ------------------------------------------------------------------------------------------------- description

    def transform(self) -> Transform:
        """The algorithm: from gradients to displacements. Named optimizers override it."""
        if not isinstance(self.algorithm, Transform):
            raise TypeError(
                f"`algorithm` must be a transform of keras_trainkit. Received: algorithm={self.algorithm!r}"
            )
        return self.algorithm

    @property
    def before(self) -> list[Transform]:
        """The transforms of the gradients."""
        return list(self._plan.before)

    @property
    def after(self) -> list[Transform]:
        """The transforms of the displacements."""
        return list(self._plan.after)

    @property
    def weight_decay_exclude(self) -> list[str]:
        """The regular expressions whose variables do not decay."""
        return list(self._plan.decay_exclude)

    @property
    def gradient_accumulation_steps(self) -> int | None:
        """Batches to an update; None for one. It may change between steps, up from 1 if it was more than 1 at first."""
        return self._accumulation

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, steps: int | None) -> None:
        if getattr(self, "built", False):
            steps = checks.integer("gradient_accumulation_steps", 1 if steps is None else steps, at_least=1)
            if self._window is not None:
                self._window.length.assign(steps)
            elif steps > 1:
                raise ValueError(
                    "`gradient_accumulation_steps` can grow only if it was at least 2 when the optimizer was built: it "
                    f"then has memory for the sums. Received: gradient_accumulation_steps={steps}"
                )
        self._accumulation = steps

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "loss_scale_factor" and value is None and "_plan" in vars(self):
            # A LossScaleOptimizer around this one says in this way that it scales the loss.
            super().__setattr__("_scaled_outside", True)
        super().__setattr__(name, value)

    @property
    def iterations(self) -> keras.Variable:
        """The number of updates done; with accumulation, the number of full windows."""
        return backend.iterations_variable(self)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Excludes variables from weight decay, as Keras's method does; unlike there, saving keeps it.

        Args:
            var_list: list of variables; they are remembered by path.
            var_names: list of regular expressions, looked for in the variables' paths.
        """
        if self.built:
            raise ValueError("`exclude_from_weight_decay` must be called before the optimizer is built.")
        exact = [f"^{re.escape(variable_path(v))}$" for v in var_list or []]
        self._plan = dataclasses.replace(self._plan, decay_exclude=exact + list(var_names or []))

    def follow_schedules(self, schedules: dict[str, Any]) -> None:
        """Has arguments follow schedules, which are called with the number of updates done: no step is traced anew.

        It takes effect with the next trace of the train step; `callbacks.HyperparameterSchedule` sees to that, and ends
        it when `fit` ends. The arguments keep their own values, and files know nothing of the schedules.

        Args:
            schedules: dictionary from the names of arguments (`"momentum"`, `"beta_2"`, `"weight_decay"`) to schedules;
                those of an earlier call are forgotten.

        Raises:
            ValueError: for an argument that cannot follow one, and before the optimizer is built; nothing follows any
                then.
        """
        hyperparameters.follow(self, schedules)

    def all_links(self) -> Any:
        """`before`, the algorithm and `after` in one chain, as the arguments are now."""
        return chain(*self._plan.before, self.transform(), *self._plan.after)

    def own_arguments(self) -> list[str]:
        """The names of the constructor's arguments that belong to the algorithm."""
        return backend.init_parameters(type(self))

    def needs_other_slots(self) -> bool:
        """Whether the arguments, as they are now, ask for other state than was built."""
        variables = backend.built_variables(self)
        links = self.all_links().fitted(variables)
        return any(links.slots(variable) != self._links.slots(variable) for variable in variables)

    def refresh(self) -> None:
        """Takes over arguments that were changed since the optimizer was built; they must need the same state."""
        self._links = self.all_links().fitted(backend.built_variables(self))
        self._programs = fusion.Programs()

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            before=[keras.saving.serialize_keras_object(t) for t in self.before],
            after=[keras.saving.serialize_keras_object(t) for t in self.after],
            weight_decay_exclude=self.weight_decay_exclude,
            last_window=self.last_window,
        )
        own = [name for name in backend.init_parameters(type(self)) if name not in config]
        config.update({name: keras.saving.serialize_keras_object(self.argument(name)) for name in own})
        return config

    def argument(self, name: str) -> Any:
        """The value of a constructor's argument; by convention each is stored under its own name."""
        return getattr(self, name)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TransformOptimizer:
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
                if isinstance(value, (dict, list))
                else value
                for name, value in config.items()
            }
        )

    # ------------------------------------------------------------------------------------------------------- build

    def build(self, variables: list[Any]) -> None:
        """Makes the state for `variables`: what the transforms declare, the average, the accumulators."""
        if self.built:
            return
        variables = list(variables)
        accumulates, averages = self._accumulation, self.use_ema
        links = self.all_links()
        links.check_variables(variables)
        with backend.eager_scope():
            # Keras's own averages and accumulators would have the variables' dtype, half precision included.
            self._accumulation, self.use_ema = None, False
            try:
                super().build(variables)
            finally:
                self._accumulation, self.use_ema = accumulates, averages
            links = links.fitted(variables)
            self._links = links
            self._guards = GuardRoom(links.links, self._add_memory)
            made = building.StateBuilder(self, links, variables)
            self._slots, self._pools = made.slots, made.pools
            self._averages = state.VariableList(made.averages)
            backend.publish_averages(self, self._averages)
            if accumulates and variables:
                self._window = Window(self, variables, accumulates)
            self._build_norms()
            state.load_pending(self)

    def _add_memory(self, kind: str, name: str) -> keras.Variable:
        dtype = "int32" if kind == "int" else wide_dtype(keras.config.floatx())
        return self.add_variable((), dtype=dtype, name=name)

    # -------------------------------------------------------------------------------------------------------- step

    @backend.plain_python
    def apply(self, grads: Any, trainable_variables: Any = None, samples: Any = None, part: str | None = None) -> None:
        """Updates the variables: reduce, compute, write.

        Args:
            grads: gradients, one for each variable; None where the loss does not depend on it.
            trainable_variables: the variables; those of `build` when left out.
            samples: how many samples the gradients are the mean of, a scalar. Replicas and micro-batches count by it;
                without it all count the same.
            part: `"more"` if the gradients are of a part of a batch and other parts are to come, `"last"` if they are
                of the last one; `sum_parts` must have been called. None for those of a whole batch.
        """
        gradients, variables = self.reduce(grads, trainable_variables, samples)
        if not variables:
            return
        with backend.after(gradients[-1]):  # of the last layer, whose gradient is there first
            if self._scaled_outside:
                # Keras's wrapper asks one replica before the sum, and has no floor under its scale.
                written = self.written_variables(variables)
                finite = self.all_finite(gradients)
                backend.when(finite, lambda: self.apply_reduced(gradients, variables, samples, part), None, written)
            else:
                self.apply_reduced(gradients, variables, samples, part)
            self.end_window(part)

    def apply_reduced(
        self, gradients: list[Any], variables: list[Any], samples: Any = None, part: str | None = None
    ) -> None:
        """The second and third step: computes from what `reduce` returned, and writes.

        With accumulation it adds them to the window alone; `end_window` is to follow, outside of any conditional.
        """
        if self._window is None:
            self._guarded(gradients, variables)
        else:
            if self._norms.of_pieces:
                weight = 1 / backend.replicas() if samples is None else samples
                self._window.add_piece(self._norms.piece(backend.read(self.iterations), gradients, weight))
            self._window.add(gradients, variables, samples, part)

    def end_window(self, part: str | None = None) -> None:
        """Updates the variables if the window of micro-batches is full."""
        if self._window is None or part == "more":
            return
        if part == "last":
            self._window.end_parts()
        self._end_if(self._window.full(), self._close)

    def sum_parts(self) -> bool:
        """Makes the memory for sums that the gradients of parts of batches need, where accumulation has made none.

        Call it outside of any function that is being traced. It returns whether it made any; then what was traced
        before must be traced again.
        """
        if self._window is not None:
            return False
        with backend.eager_scope():
            self._window = Window(self, backend.built_variables(self), 1)
            self._build_norms()
        return True

    def flush(self) -> None:
        """Ends a window that is only part full, as `last_window` says; `fit` calls it at its end."""
        if not self.built or self._window is None or self.last_window == "carry":
            return
        moving = tuple(map(id, self._window.variables()))
        if moving not in self._flush_steps:
            end = self._close if self.last_window == "apply" else self._window.empty
            self._flush_steps[moving] = backend.replica_step(self, lambda: self._end_if(self._window.begun(), end))
        with evaluation.training_weights(self):
            self._flush_steps[moving]()

    def _end_if(self, predicate: Any, end: Any) -> None:
        backend.when_on_replicas(predicate, end, self.written_variables(self._window.variables()))

    def _close(self) -> None:
        variables = self._window.variables()
        gradients, pieces = self._window.mean(variables)
        if pieces and self._norms.of_pieces:
            self._norms.end_pieces(backend.read(self.iterations), pieces, gradients)
        self._guarded(gradients, variables)
        self._window.empty()

    def _guarded(self, gradients: list[Any], variables: list[Any]) -> None:
        """`_update`, unless a guard refuses the gradients."""
        rows, values = [slices.rows(g) for g in gradients], [slices.values(g) for g in gradients]
        if not len(self._guards):
            self._update(values, variables, rows)
            return
        step, rate = backend.read(self.iterations) + 1, backend.read(self.learning_rate)
        context = Context(step, rate, values, [variable_path(v) for v in variables])
        passed, agreed = self._guards.judge(values, context)
        backend.when(agreed, lambda: self._update(passed, variables, rows), None, self.written_variables(variables))

    def admit_guard(self, visitor: Any) -> Any:
        """Has a function of reduced gradients and their `Context` say whether each step may be taken.

        It holds from the next trace on, and needs the optimizer built. It returns a function that ends it.
        """
        return self._guards.admit(visitor)

    def guard_memories(self) -> list[dict[str, Any]]:
        """What each guard remembers, such as how many steps it refused; empty before the optimizer is built."""
        return self._guards.values() if self.built else []

    def written_variables(self, variables: list[Any]) -> list[Any]:
        """Every variable that a step may write."""
        own = [v for v in self.variables if v is not backend.learning_rate_variable(self)]
        return [*variables, *own]

    def finalize_variable_values(self, var_list: Any) -> None:
        """Ends the last accumulation window, and puts the moving averages into the variables; `fit` calls it."""
        if not backend.has_value(self.iterations):
            return  # `fit` calls this after an error, too; the error must show, not one of ours
        self.flush()
        held = evaluation.held(self)  # warns where they were trained on
        if self.use_ema and not held:
            for variable in var_list:
                average = self._averages[backend.variable_index(self, variable)]
                if average is not None:
                    # A copy: on JAX the next step gives the buffers of both away.
                    variable.assign(ops.copy(ops.cast(backend.read(average), variable.dtype)))

    # --------------------------------------------------------------------------------------------- evaluation weights

    def offers_evaluation(self) -> bool:
        """Whether there are weights to evaluate, save and deploy other than those trained; see `EvaluationWeights`."""
        averaged = evaluation.source(self) is not None
        return averaged or self.use_ema or self.all_links().offers_evaluation()

    def evaluation_weights(self, variables: list[Any] | None = None) -> list[Any]:
        """The weights to evaluate, one tensor for each variable; those of `build` when left out."""
        return evaluation.weights(self, variables)

    def holds_evaluation(self) -> bool:
        """Whether the variables hold the evaluation weights now."""
        return evaluation.held(self)

    def to_evaluation(self) -> None:
        """Puts the evaluation weights into the variables; keeps, and saves, the training weights until they return."""
        evaluation.put_in(self)

    def to_training(self) -> None:
        """Puts the training weights back, bit for bit."""
        evaluation.put_back(self)

    # ------------------------------------------------------------------------------------------------------ saving

    def save_own_variables(self, store: Any) -> None:
        """Writes the state under names that say which slot of which variable each array is."""
        for key, variable in [*state.named_variables(self), *evaluation.saved(self)]:
            store[key] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote, or the state of Keras's optimizer of the same slots.

        Before the optimizer is built the state waits and is put in place by `build`.

        Raises:
            ValueError: when the state does not fit; it names the slots.
        """
        state.load(self, evaluation.loaded(self, {key: store[key] for key in store.keys()}))  # noqa: SIM118 (an HDF5 store is no dict)

    def inner_variables(self) -> list[Any]:
        """State that belongs to no single model variable; it is saved with the slots."""
        return self._guards.variables()

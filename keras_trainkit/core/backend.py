"""Every private name of Keras and TensorFlow that the kit leans on, and nothing else.

In this order: variables and the update step; optimizers of Keras's own; what feeds a trainer; several workers;
variables split over devices.
tests/core/test_backend_canaries.py names the one that has gone when a new version breaks this file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope
from keras.src.random import seed_generator
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.epoch_iterator import EpochIterator

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf
    from tensorflow.python.eager import context as tf_context
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext


class Stored:
    """What lies inside another variable, and is read and written as if it were one."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def value(self) -> Any:
        """The current value as a tensor."""
        raise NotImplementedError

    def assign(self, value: Any) -> None:
        """Replaces the value."""
        raise NotImplementedError


def plain_python(function: Callable) -> Callable:
    """Keeps AutoGraph from rewriting `function` and all that it calls: the kit's steps need none of it."""
    return tf.autograph.experimental.do_not_convert(function) if ON_TENSORFLOW else function


def eager_scope() -> contextlib.AbstractContextManager:
    """Leaves the function being traced: `fit` may build an optimizer inside one, where copies of weights read zero."""
    return tf.init_scope() if ON_TENSORFLOW else contextlib.nullcontext()


def iterations_variable(optimizer: Any) -> keras.Variable:
    """The counter that Keras saves as `iteration`; in the kit's optimizers it counts updates."""
    return optimizer._iterations


def learning_rate_variable(optimizer: Any) -> keras.Variable | None:
    """The learning rate's variable, or None where a schedule or a function gives the rate."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.Variable) else None


def built_variables(optimizer: Any) -> list[Any]:
    """The model variables that the optimizer was built with."""
    return list(optimizer._trainable_variables)


def variable_index(optimizer: Any, variable: Any) -> int:
    """The position of a model variable among those the optimizer was built with."""
    return optimizer._get_variable_index(variable)


def check_known(optimizer: Any, variables: list[Any]) -> None:
    """Raises ValueError for a variable that the optimizer was not built with."""
    optimizer._check_variables_are_known(variables)


def publish_averages(optimizer: Any, averages: Any) -> None:
    """Puts the moving averages where Keras's own callbacks look for them."""
    optimizer._model_variables_moving_average = averages


def add_slot(
    optimizer: Any, reference: Any, name: str, shape: Any, dtype: str, initializer: Callable[[Any, Any], Any]
) -> keras.Variable:
    """A variable of the optimizer that lives on the devices of the model variable `reference`."""
    arguments = {"shape": shape, "initializer": initializer, "dtype": dtype, "name": name}
    if not ON_TENSORFLOW:
        first, layout = First(initializer), layout_like(reference, shape)
        return optimizer.add_variable(**arguments | {"initializer": first, "layout": layout})
    with optimizer._distribution_strategy.extended.colocate_vars_with(_native(reference)):
        return optimizer.add_variable(**arguments)


def add_share(optimizer: Any, reference: Any, name: str, shape: Any, dtype: str) -> keras.Variable:
    """A variable of the optimizer that begins at zero, and of which each replica has a share of its own.

    Outside of the replicas it reads as the sum of the shares.
    """

    def zeros(shape: Any, dtype: Any) -> Any:
        return ops.zeros(shape, dtype)

    if not ON_TENSORFLOW:
        return add_slot(optimizer, reference, name, shape, dtype, zeros)
    with optimizer._distribution_strategy.extended.colocate_vars_with(_native(reference)):
        variable = keras.Variable(
            zeros, shape, dtype, trainable=False, aggregation="sum", synchronization="on_read", name=name
        )
    optimizer._track_variable(variable)
    return variable


def scope_of(optimizer: Any) -> contextlib.AbstractContextManager:
    """Where to make variables for an optimizer that was built before, outside of any step."""
    return optimizer._distribution_strategy.scope() if ON_TENSORFLOW else contextlib.nullcontext()


def made_together(first: Any, second: Any) -> bool:
    """Whether two optimizers were made under one strategy, or both under none."""
    return not ON_TENSORFLOW or first._distribution_strategy is second._distribution_strategy


def has_value(variable: Any) -> bool:
    """Whether the variable can be read.

    On TensorFlow one that the function being traced has made cannot, until that has run; on JAX none can after an error
    in the train step, because the trainer has emptied them and puts nothing back.
    """
    if not ON_TENSORFLOW:
        return variable._value is not None
    return bool(local_copy(variable).is_initialized())


def all_reduce_sum(gradients: list[Any]) -> list[Any]:
    """The sum of each gradient over all replicas; sparse ones stay sparse."""
    if replicas() == 1:
        return gradients
    # TensorFlow joins what it reduces together, which must be of one dtype.
    positions: dict[str, list[int]] = {}
    for position, gradient in enumerate(gradients):
        positions.setdefault(dtype(gradient), []).append(position)
    found = list(gradients)
    context, sum_of = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.SUM
    for alike in positions.values():
        # What was read of a variable may have no device of its own, which the reduction asks for.
        placed = [tf.nest.map_structure(tf.identity, gradients[i], expand_composites=True) for i in alike]
        for position, total in zip(alike, context.all_reduce(sum_of, placed), strict=True):
            found[position] = total
    return found


def all_replicas(flag: Any) -> Any:
    """Whether a scalar truth value holds on every replica."""
    return ops.equal(all_reduce_sum([ops.cast(flag, "int32")])[0], replicas())


def replica_number() -> Any:
    """Which of several replicas this is, from 0, as a tensor; None where there are not several."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group if replicas() > 1 else None


def replicas() -> int:
    """How many replicas compute this step together."""
    if not ON_TENSORFLOW:
        return 1
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replicas_of(model: Any) -> int:
    """How many replicas the model was made for."""
    return model.distribute_strategy.num_replicas_in_sync if ON_TENSORFLOW else 1


def read_rows(variable: Any, rows: Any) -> Any:
    """Some rows of a variable, without touching the others."""
    return local_copy(variable).sparse_read(rows)


def write_rows(variable: Any, rows: Any, new: Any) -> None:
    """Assigns some rows of a variable, in place; inside a replica, to that replica's own copy."""
    new = ops.cast(new, keras.backend.standardize_dtype(variable.dtype))
    local_copy(variable).scatter_update(tf.IndexedSlices(new, rows))


def write_range(variable: Any, start: int, new: Any) -> None:
    """Assigns the elements from `start` on of a variable of one dimension, in place; inside a replica, to its copy."""
    if _copied(variable) and not _on_replica():
        variable.assign(ops.slice_update(read(variable), [start], new))
    else:
        local_copy(variable)[start : start + new.shape[0]].assign(new)


def pools_slots(optimizer: Any) -> bool:
    """Whether slots of small variables may lie in one: on TensorFlow, where updates are compiled."""
    if not ON_TENSORFLOW or _records_writes() or not tf.test.is_built_with_xla():
        return False
    return isinstance(optimizer._distribution_strategy, _LOCAL_STRATEGIES)


def pools_averages(optimizer: Any) -> bool:
    """Whether averages may, too: not under a strategy, where Keras's callbacks must find each in a variable."""
    return isinstance(optimizer._distribution_strategy, _LOCAL_STRATEGIES[0])


def read(variable: Any) -> Any:
    """The variable's value as a tensor; inside a replica, that replica's copy."""
    value = ops.convert_to_tensor(variable.value if isinstance(variable, (keras.Variable, Stored)) else variable)
    return tf.convert_to_tensor(value) if ON_TENSORFLOW else value  # Keras takes a variable of TensorFlow for a tensor


def write(variable: Any, value: Any) -> None:
    """Assigns `value`; inside a replica, to that replica's own copy.

    Every replica computes the same value from the same reduced gradients, so no replica need wait for another, and
    the write may stand inside a `tf.cond`, where Keras's merge call may not.
    """
    value = ops.cast(value, keras.backend.standardize_dtype(variable.dtype))
    if not ON_TENSORFLOW or _records_writes() or isinstance(variable, Stored):
        variable.assign(value)
        return
    native = _native(variable) if tf.distribute.get_replica_context() is None else local_copy(variable)
    native.assign(value, read_value=False)


def add_to(variable: Any, value: Any) -> None:
    """Adds `value` to the variable; inside a replica, to that replica's own copy."""
    value = ops.cast(value, dtype(variable))
    if not ON_TENSORFLOW or _records_writes():
        variable.assign(variable.value + value)
        return
    native = _native(variable) if tf.distribute.get_replica_context() is None else local_copy(variable)
    native.assign_add(value, read_value=False)


def dtype(variable: Any) -> str:
    """The name of a variable's or tensor's dtype."""
    return keras.backend.standardize_dtype(variable.dtype)


def when_on_replicas(predicate: Any, then: Callable[[], None], variables: list[keras.Variable]) -> None:
    """`when`, for a `then` that reduces over the replicas, and that captures nothing of the replica that calls it.

    `predicate` must be the same on all replicas. Where TensorFlow reduces by meeting outside of the replicas, that may
    not happen in a conditional inside of one; so they meet first, and the conditional takes all of them in again.
    """
    if replicas() == 1 or tf.__internal__.distribute.strategy_supports_no_merge_call():
        when(predicate, then, None, variables)
        return

    def together(strategy: Any, predicate: Any) -> None:
        def run() -> Any:
            strategy.extended.call_for_each_replica(then)
            return tf.constant(True)

        tf.cond(strategy.experimental_local_results(predicate)[0], run, lambda: tf.constant(True))

    tf.distribute.get_replica_context().merge_call(together, args=(predicate,))


def when(
    predicate: Any, then: Callable[[], None], otherwise: Callable[[], None] | None, variables: list[keras.Variable]
) -> None:
    """Runs `then` or `otherwise` as the scalar tensor `predicate` says; they may write to `variables` only."""
    if ON_TENSORFLOW and not _records_writes():

        def branch(body: Callable[[], None] | None) -> Callable[[], Any]:
            def run() -> Any:
                if body is not None:
                    body()
                return tf.constant(True)

            return run

        tf.cond(predicate, branch(then), branch(otherwise))
        return
    if not _is_traced(predicate):
        body = then if predicate else otherwise
        if body is not None:
            body()
        return

    # JAX's trainer empties the variables while it traces: all that its scope knows must be known inside the branches.
    known = dict(get_stateless_scope().state_mapping) if _records_writes() else {}
    current = [(variable, variable.value) for variable in variables]

    def pure(body: Callable[[], None] | None) -> Callable[[], list[Any]]:
        def run() -> list[Any]:
            with keras.StatelessScope(state_mapping=current) as scope:
                scope.state_mapping.update(
                    {key: value for key, value in known.items() if key not in scope.state_mapping}
                )
                if body is not None:
                    body()
            return [ops.convert_to_tensor(scope.get_current_value(variable)) for variable in variables]

        return run

    for variable, value in zip(variables, ops.cond(predicate, pure(then), pure(otherwise)), strict=True):
        variable.assign(value)


def choose(predicate: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """What the one function returns or the other, as the scalar tensor `predicate` says; both return alike."""
    if not ON_TENSORFLOW and not _is_traced(predicate):
        return then() if predicate else otherwise()
    return ops.cond(predicate, then, otherwise)


def _is_traced(value: Any) -> bool:
    """Whether JAX will know the value only later. One that it knows already decides by itself: outside of compiled
    functions JAX would compile a conditional anew each time, for half a second."""
    jax = sys.modules.get("jax")
    return keras.backend.backend() == "jax" and jax is not None and isinstance(value, jax.core.Tracer)


def compiles_updates() -> bool:
    """Whether parts of the update may be given to XLA: on TensorFlow, unless it compiles the whole function anyway."""
    return writes_in_place() and tf.test.is_built_with_xla()


def writes_in_place() -> bool:
    """Whether a step may write to parts of variables: on TensorFlow, outside of XLA, where each replica has copies."""
    if not ON_TENSORFLOW or _records_writes() or tf.distribute.get_replica_context() is None:
        return False
    if not isinstance(tf.distribute.get_strategy(), _LOCAL_STRATEGIES):
        return False
    return tf.executing_eagerly() or not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def compiled(function: Callable) -> Callable:
    """`function` as a program of XLA's, one for each set of shapes and dtypes."""
    return tf.function(function, jit_compile=True, autograph=False)


def depends(function: Callable, argument: Any, *others: Any) -> bool:
    """Whether anything that `function` computes from tensors like these begins with the first; nothing is computed."""
    graph = tf.function(function, autograph=False).get_concrete_function(argument, *others).graph
    return bool(graph.inputs[0].consumers())


def local_copy(variable: Any) -> Any:
    """The backend's own variable; inside a replica, that replica's copy."""
    native = _native(variable)
    return native._get_on_device_or_primary() if _copied(variable) else native


def _copied(variable: Any) -> bool:
    """Whether a strategy keeps a copy of the variable for each replica."""
    return hasattr(_native(variable), "_get_on_device_or_primary")


def _on_replica() -> bool:
    """Whether this runs inside of a replica of a strategy, and not just outside of all."""
    default = isinstance(tf.distribute.get_strategy(), _LOCAL_STRATEGIES[0])
    return tf.distribute.get_replica_context() is not None and not default


def split(value: Any, sizes: list[int]) -> list[Any]:
    """A vector cut into pieces of these sizes."""
    return tf.split(value, sizes)


def values_if(predicate: Any, variables: list[Any]) -> Callable[[], list[Any]]:
    """Keeps the variables' values of this moment if the scalar tensor `predicate` is true; call it to get them back.

    Where it is false nothing is kept, so that the variables may be written in place.
    """

    def keep() -> list[Any]:
        return [read(v) for v in variables]

    if not ON_TENSORFLOW or _records_writes() or not compiles_updates():
        values = keep()
        return lambda: values
    kept = tf.cond(predicate, keep, lambda: [tf.zeros([0], v.dtype) for v in variables])
    return lambda: [tf.reshape(value, variable.shape) for value, variable in zip(kept, variables, strict=True)]


def values_where(predicate: Any, compute: Callable[[], list[Any]], count: int) -> list[Any]:
    """What `compute` returns, `count` float32 scalars, if the scalar tensor `predicate` is true; zeros if not."""
    zeros = [ops.zeros(()) for _ in range(count)]
    return list(choose(predicate, compute, lambda: zeros))


def sum_of_squares(tensor: Any) -> Any:
    """The sum of the squares of all elements, in the tensor's dtype; a scalar."""
    return 2 * tf.nn.l2_loss(tensor) if ON_TENSORFLOW else ops.sum(ops.square(tensor))


def replica_step(optimizer: Any, function: Callable[[], None]) -> Callable[[], Any]:
    """`function` made to run once on each replica of the strategy that the optimizer was made under."""
    if not ON_TENSORFLOW:
        return function
    compiled = tf.function(function, autograph=False)
    return lambda: optimizer._distribution_strategy.run(compiled)


def stateless_apply(optimizer: Any, own: Any, gradients: Any, variables: Any) -> Any:
    """Keras's generic stateless step, for optimizers whose base class has another one."""
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    return BaseOptimizer.stateless_apply(optimizer, own, gradients, variables)


def learning_rate_argument(optimizer: Any) -> Any:
    """The learning rate as a constructor takes it: a float, a schedule or a function."""
    rate = optimizer._learning_rate
    return float(ops.convert_to_numpy(rate)) if isinstance(rate, keras.Variable) else rate


def rate_object(optimizer: Any) -> Any:
    """The learning rate as the optimizer holds it: a variable, a schedule or a function."""
    return optimizer._learning_rate


def replace_schedule(optimizer: Any, schedule: Any) -> None:
    """Puts another schedule in the place of a schedule or function. Keras's own setter asks the old one for a rate."""
    optimizer._learning_rate = schedule


def slots_like(optimizer: Any, variable: Any) -> list[keras.Variable]:
    """The slots that a Keras optimizer keeps for a model variable in that variable's shape, its average included."""
    index, key = variable_index(optimizer, variable), optimizer._var_key(variable)
    several = len(optimizer._trainable_variables)
    found = []
    for name, value in vars(optimizer).items():
        if isinstance(value, dict):
            slot = value.get(key)
        elif isinstance(value, list) and len(value) == several and name not in _NO_SLOTS:
            slot = value[index]
        else:
            continue
        if isinstance(slot, keras.Variable) and tuple(slot.shape) == tuple(variable.shape):
            found.append(slot)
    return found


_NO_SLOTS = ("_variables", "_trainable_variables")


def average_of(optimizer: Any, variable: Any) -> keras.Variable:
    """The moving average that a Keras optimizer with `use_ema` keeps of a model variable."""
    return optimizer._model_variables_moving_average[variable_index(optimizer, variable)]


def adopt_variables(optimizer: Any, inner: Any) -> list[keras.Variable]:
    """Makes the slots of `inner` variables of `optimizer` too, and returns them."""
    shared = [inner._iterations, inner._learning_rate]
    slots = [v for v in inner.variables if not any(v is other for other in shared)]
    for slot in slots:
        optimizer._track_variable(slot)
    return slots


def pure_copy(optimizer: Any, replaced: dict[str, Any]) -> Any:
    """A fresh copy of a Keras optimizer whose update step works inside a stateless scope, on every backend.

    `replaced` holds values for arguments of the copy, where it has them.
    """
    config = optimizer.get_config()
    fresh = type(optimizer).from_config(config | {name: value for name, value in replaced.items() if name in config})
    kind = type(fresh)
    backend_class = next(c for c in kind.__mro__ if c.__module__.startswith("keras.src.backend"))
    mixin = type("PureUpdate", (_PureUpdate, backend_class), {})
    # Placed behind the optimizer and before the backend's class, the mixin answers `super()` calls, too.
    object.__setattr__(fresh, "__class__", type(kind.__name__, (kind, mixin), {"original": kind}))
    return fresh


def serialize_pure_copy(copy: Any) -> dict[str, Any]:
    """The configuration of the Keras optimizer that `pure_copy` copied."""
    return keras.optimizers.serialize(copy.original.from_config(copy.get_config()))


def pure_update(
    copy: Any, slots: list[Any], gradients: list[Any], variables: list[Any], values: list[Any], rate: Any, step: Any
) -> tuple[list[Any], list[Any]]:
    """What a foreign Keras optimizer (made by `pure_copy`) would write, without writing it.

    Args:
        copy: the optimizer, built on `variables`.
        slots: its variables, as `adopt_variables` returned them.
        gradients: tensors, reduced over replicas.
        variables: Keras variables; `values` are the tensors to take as their current values.
        rate: scalar tensor, the learning rate.
        step: scalar integer tensor, the number of updates done before this one.

    Returns:
        The new values of `variables`, and the new values of `slots`.
    """
    mapping = list(zip(variables, [ops.cast(x, v.dtype) for x, v in zip(values, variables, strict=True)], strict=True))
    mapping += [(slot, read(slot)) for slot in slots]
    mapping.append((copy._iterations, ops.cast(step, copy._iterations.dtype)))
    if isinstance(copy._learning_rate, keras.Variable):
        mapping.append((copy._learning_rate, ops.cast(rate, copy._learning_rate.dtype)))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        copy._backend_update_step(gradients, variables, rate)
        return [scope.get_current_value(v) for v in variables], [scope.get_current_value(v) for v in slots]


class _PureUpdate:
    """The backend's share of a Keras optimizer, written for stateless scopes instead of tf.distribute."""

    def assign(self, variable: Any, value: Any) -> None:
        variable.assign(ops.cast(value, variable.dtype))

    def assign_add(self, variable: Any, value: Any) -> None:
        self.assign(variable, variable + ops.cast(value, variable.dtype))

    def assign_sub(self, variable: Any, value: Any) -> None:
        self.assign(variable, variable - ops.cast(value, variable.dtype))

    def _var_key(self, variable: Any) -> int:
        return id(variable)

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable, learning_rate)  # type: ignore[attr-defined]


def is_dense(value: Any) -> bool:
    """Whether a tensor is neither sparse nor ragged."""
    return not ON_TENSORFLOW or not isinstance(value, (tf.SparseTensor, tf.RaggedTensor))


def takes_training(model: Any) -> bool:
    """Whether the model's `call` has an argument `training`."""
    return model._call_has_training_arg


def add_metric(model: Any, metric: Any) -> None:
    """Makes a metric one of the model's, reset with them and carried on by its trainer, without an attribute.

    Attributes are saved with the model.
    """
    model._metrics.append(metric)


def remove_metric(model: Any, metric: Any) -> None:
    """Takes a metric off that `add_metric` has added."""
    model._metrics.remove(metric)


class DeferredWrites(keras.StatelessScope):
    """A train step inside of it writes no variable: the new values wait in `values`, in the order of their writing.

    Reads see them. Trainable variables cannot wait, because a gradient taken later would not find them. Who opens the
    scope does what is in `later` when the step's update has been made.
    """

    def __init__(self) -> None:
        super().__init__(collect_losses=True, initialize_variables=False)
        self.values: dict[int, tuple[Any, Any]] = {}
        self.later: list[Callable[[], None]] = []

    def add_update(self, update: tuple[Any, Any]) -> None:
        """What a variable calls when it is assigned to."""
        variable, value = update
        if variable.trainable:
            raise ValueError(
                f"The train step writes the trainable variable {variable.path!r} itself, which cannot be put off until "
                "its batch is known to fit in memory."
            )
        super().add_update(update)
        self.values[id(variable)] = variable, value

    def get_current_value(self, variable: Any) -> Any:
        """What a variable calls when it is read."""
        value = super().get_current_value(variable)
        return variable._value if value is None else value


def after_update(action: Callable[[], None]) -> None:
    """Does it now, at the end of a train step; of one whose writes wait, after its update."""
    scope = get_stateless_scope()
    if isinstance(scope, DeferredWrites):
        scope.later.append(action)
    else:
        action()


class Substituted(keras.StatelessScope):
    """Inside of it some variables have other values, given as pairs; all else is as it is outside.

    What is read and written goes to the enclosing scope where there is one. Losses that a layer adds with no enclosing
    scope wait in `losses`, because inside of a scope Keras would forget them.
    """

    def __init__(self, values: list[tuple[Any, Any]]) -> None:
        super().__init__(values, initialize_variables=False)
        self.outer = get_stateless_scope()
        self.collect_losses = self.outer is None or self.outer.collect_losses

    def add_loss(self, loss: Any) -> None:
        """What a layer calls with a loss of its own."""
        if self.outer is None:
            super().add_loss(loss)
        else:
            self.outer.add_loss(loss)

    def add_update(self, update: tuple[Any, Any]) -> None:
        """What a variable calls when it is assigned to."""
        variable, value = update
        if self.outer is None:
            variable._direct_assign(value)
        else:
            self.outer.add_update(update)

    def get_current_value(self, variable: Any) -> Any:
        """What a variable calls when it is read."""
        value = super().get_current_value(variable)
        if value is None and self.outer is not None:
            value = self.outer.get_current_value(variable)
        return variable._value if value is None else value


@contextlib.contextmanager
def after(values: Any) -> Iterator[None]:
    """Lets nothing made inside begin before all tensors in `values` are there.

    What follows from variables alone begins in any order otherwise, even if the data of the step have ended.
    """
    if not ON_TENSORFLOW:
        yield
        return
    with tf.control_dependencies([v for v in tf.nest.flatten(values, expand_composites=True) if tf.is_tensor(v)]):
        yield


@contextlib.contextmanager
def after_all(values: Any) -> Iterator[None]:
    """`after`, on all replicas together."""
    with after(values):
        tokens = all_reduce_sum([tf.zeros([])])
    with after(tokens):
        yield


def build_from(model: Any, data: Any) -> None:
    """Makes the variables of the model, its metrics and its losses that a batch like this one would make."""
    kinds = (tf.SparseTensor, tf.RaggedTensor)
    with model.distribute_strategy.scope():
        if not any(isinstance(leaf, kinds) for leaf in keras.tree.flatten(data)):
            model._symbolic_build(data_batch=data)
            return
        # Keras's symbols of these say that they are dense.
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        prediction = model(x, training=False)
        model.compute_loss(x=x, y=y, y_pred=prediction, sample_weight=weights)
        model.compute_metrics(x, y, prediction, weights)
        model.reset_metrics()


def step_runner(model: Any, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`step`, compiled as the model's trainer compiles its train step; it takes one batch and returns the logs."""
    function = model._make_function(step)
    return lambda data: function([data])


def times_batches(model: Any) -> bool:
    """Whether `around_batches` works: on TensorFlow, with a Keras whose trainer has the place for it (3.10 has not)."""
    return ON_TENSORFLOW and hasattr(model, "_autoconvert_optionals")


def around_batches(model: Any, around: Callable[[Callable], Callable] | None) -> None:
    """Puts a function around the step on a batch, outside of what XLA compiles, in train functions made from now on.

    None takes it off. In the function that is traced, its argument is the batch.
    """
    if around is None:
        vars(model).pop("_autoconvert_optionals", None)
        return
    original = type(model)._autoconvert_optionals
    vars(model)["_autoconvert_optionals"] = lambda step: around(original(model, step))


def number(variable: Any) -> float:
    """A scalar variable's value. Quicker than an array of it, and many of them are read between two steps."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if ON_TENSORFLOW and isinstance(value, tf.Variable) and not isinstance(value, tf.distribute.DistributedValues):
        return float(tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype))
    return float(ops.convert_to_numpy(variable))


def host_variable() -> Any:
    """A float64 scalar in the host's memory, outside of any strategy."""
    with tf.device("CPU:0"):
        return tf.Variable(0.0, dtype=tf.float64, trainable=False)


def add_waiting(seconds: Any, data: Any) -> None:
    """In a function being traced: adds the time from its beginning until all of `data` is there."""
    leaves = [leaf for leaf in tf.nest.flatten(data, expand_composites=True) if tf.is_tensor(leaf)]
    with tf.device("CPU:0"):
        began = tf.timestamp()
        with tf.control_dependencies(leaves):
            seconds.assign_add(tf.timestamp() - began, read_value=False)


def device_memory() -> dict[str, int] | None:
    """Bytes in use on the first GPU, as `current` and `peak`; None where TensorFlow has none."""
    if not ON_TENSORFLOW or not tf.config.list_logical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")


def gpu_names() -> list[str]:
    """What the GPUs that TensorFlow sees are called."""
    if not ON_TENSORFLOW:
        return []
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [str(about.get("device_name", "")) for about in details]


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device has no memory left for a computation."""
    if isinstance(error, MemoryError) or (ON_TENSORFLOW and isinstance(error, tf.errors.ResourceExhaustedError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")


def place() -> Any:
    """The graph that is being traced in this thread, TensorFlow's default one where none is."""
    return tf.compat.v1.get_default_graph()


def variables_of_its_own(layer: Any) -> list[Any]:
    """The variables that a layer made to be trained, without those of the layers inside of it; frozen or not."""
    return list(layer._trainable_variables)


def flat_layers(layer: Any) -> list[Any]:
    """The layer and all layers inside of it, at any depth."""
    return list(layer._flatten_layers())


def mask_of(tensor: Any) -> Any:
    """The mask that Keras's layers have attached to a tensor, or None."""
    return get_keras_mask(tensor)


@functools.cache
def divides_activity_penalties() -> bool:
    """Whether Keras divides what activity regularizers say by the size of the batch; 3.10 does not."""
    return "batch_size" in inspect.getsource(inspect.unwrap(keras.Layer.__call__))


def own_losses(layer: Any) -> list[Any]:
    """The losses that calls of the layer added, its activity regularizer's among them, without its sublayers'."""
    return layer._get_own_losses()


def set_mask(tensor: Any, mask: Any) -> None:
    """Puts a mask on a tensor, where a layer computes one that does not follow from the mask of its input alone."""
    set_keras_mask(tensor, mask)


def init_parameters(cls: type) -> list[str]:
    """The names of the arguments that `cls.__init__` spells out, without `self` and `**kwargs`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return [p.name for p in parameters if p.kind in kinds and p.name != "self"]


Adapter = DataAdapter
"""What Keras's trainers take data from, other than the kinds of data that they know."""

_PURPOSES = {"_symbolic_build": "build", "_maybe_symbolic_build": "build"} | {
    name: name for name in ("fit", "evaluate", "predict")
}


def asking() -> tuple[Any, str]:
    """The epoch iterator of Keras on whose behalf an adapter is being called, and what for.

    Keras tells an adapter neither who asks nor how many of its batches were used; the callers know. The purpose is
    "fit", "evaluate", "predict", "build" (where Keras looks at a batch and then begins anew) or "" outside of those;
    without an epoch iterator the first is None.
    """
    frame, iterator = sys._getframe(1).f_back, None
    while frame is not None:
        if iterator is None and isinstance(frame.f_locals.get("self"), EpochIterator):
            iterator = frame.f_locals["self"]
        if iterator is not None and frame.f_code.co_name in _PURPOSES:
            return iterator, _PURPOSES[frame.f_code.co_name]
        frame = frame.f_back
    return iterator, ""


def asking_strategy() -> Any:
    """The strategy of the model that an adapter's batches are for; None outside of TensorFlow."""
    iterator, _ = asking()
    if not ON_TENSORFLOW:
        return None
    return getattr(iterator, "_distribute_strategy", None) or tf.distribute.get_strategy()


def steps_taken(epoch_iterator: Any) -> int:
    """How many batches the trainer has taken since the iterator over the data was made, the one at hand included."""
    return epoch_iterator._steps_seen


def set_steps(epoch_iterator: Any, steps: int | None) -> None:
    """Says how many batches the epoch has that begins now; Keras itself asks once for all epochs."""
    epoch_iterator._num_batches = steps


def goes_on(epoch_iterator: Any) -> bool:
    """Whether the epoch that begins now takes its batches from where the last one stopped."""
    return epoch_iterator.steps_per_epoch is not None and epoch_iterator._current_iterator is not None


def distributed_dataset(strategy: Any, of_worker: Callable[[int, int, int], Any]) -> Any:
    """What a trainer under a strategy iterates over: each replica gets elements of its own from its worker's dataset.

    `of_worker(worker, workers, replicas)` makes the `tf.data.Dataset` of one worker, in which the elements of its
    replicas follow each other.
    """

    def make(context: Any) -> Any:
        worker, workers = context.input_pipeline_id, context.num_input_pipelines
        return of_worker(worker, workers, context.num_replicas_in_sync)

    class Distributed(tf.distribute.DistributedDataset):
        """The datasets, one for each worker."""

        def __init__(self) -> None:
            self.dealt = strategy.distribute_datasets_from_function(make)

        def __iter__(self) -> Any:
            # Keras would average the replicas' batches to learn their shapes, which strings and workers do not allow.
            if asking()[1] == "build":
                elements = next(iter(self.dealt))
                return iter([keras.tree.map_structure(lambda v: strategy.experimental_local_results(v)[0], elements)])
            return iter(self.dealt)

        @property
        def element_spec(self) -> Any:
            """Of a replica's element."""
            return self.dealt.element_spec

    return Distributed()


def devices_of_batch() -> int:
    """Over how many devices `keras.distribution` cuts each batch, where one is in use."""
    distribution = None if ON_TENSORFLOW else keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


def builds_from_local_batches(model: Any) -> Callable[..., None]:
    """A stand-in for the trainer's method that builds model and metrics from the first batch of `fit` or `evaluate`.

    Keras's own averages that batch over the replicas, which TensorFlow cannot on several workers. The part of one
    replica has the same shapes and dtypes.
    """
    original, strategy = type(model)._maybe_symbolic_build, model.distribute_strategy

    def _maybe_symbolic_build(iterator: Any = None, data_batch: Any = None) -> None:  # `asking` knows it by its name
        if iterator is not None:
            for *_, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0], next(batches)
                )
                break
        original(model, data_batch=data_batch)

    return _maybe_symbolic_build


def replace_build(model: Any, build: Callable[..., None]) -> None:
    """Has the trainer of this model alone call `build` in place of its own method."""
    vars(model)["_maybe_symbolic_build"] = build


def first_epoch(model: Any) -> int:
    """The epoch where a callback that restores has `fit` begin; 0 if none did."""
    return int(getattr(model, "_initial_epoch", None) or 0)


def begin_with_epoch(model: Any, epoch: int | None) -> None:
    """Has the `fit` that is about to begin its epochs begin with this one; None lets it begin as its caller says.

    Keras forgets it neither at the end of `fit` nor before the next.
    """
    model._initial_epoch = epoch


def list_of_callbacks() -> Any:
    """The `keras.callbacks.CallbackList` on whose behalf a callback is being called; None outside of one."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def called_by_fit() -> bool:
    """Whether callbacks are called on behalf of `fit`: `evaluate` and `predict` tell them of one epoch, too."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        name, model = frame.f_code.co_name, frame.f_locals.get("self")
        if name in ("fit", "evaluate", "predict") and isinstance(model, keras.Model):
            return name == "fit"
        frame = frame.f_back
    return False


def epoch_iterator_of_fit() -> Any:
    """The epoch iterator of the `fit` that is calling."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code.co_name == "fit" and isinstance(frame.f_locals.get("epoch_iterator"), EpochIterator):
            return frame.f_locals["epoch_iterator"]
        frame = frame.f_back
    raise RuntimeError("No `fit` of Keras is running here.")


_MAY_FAIL = ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end")
_undoing: weakref.WeakKeyDictionary[Any, list[Callable[[], None]]] = weakref.WeakKeyDictionary()


def when_fit_fails(undo: Callable[[], None]) -> Callable[[], None]:
    """Has `undo` called when the `fit` that is calling ends with an exception; of several the last one first.

    At once, if a batch, its data or a callback raises. If validation's own steps do, when the traceback goes and the
    garbage is collected. Outside of a `fit` it does nothing.

    Returns:
        A function without arguments, which takes `undo` back.
    """
    try:
        iterator, callbacks = epoch_iterator_of_fit(), list_of_callbacks()
    except RuntimeError:
        return lambda: None
    if iterator not in _undoing:
        undos = _undoing[iterator] = []
        # Nothing here holds the iterator: it goes with its `fit`.
        vars(iterator)["catch_stop_iteration"] = functools.partial(_caught, weakref.ref(iterator), undos)
        weakref.finalize(iterator, _undo_all, undos).atexit = False
        for name in _MAY_FAIL if callbacks is not None else ():
            setattr(callbacks, name, _guarded(getattr(callbacks, name), undos))
    undos = _undoing[iterator]
    undos.append(undo)
    return lambda: undos.remove(undo) if undo in undos else None


@contextlib.contextmanager
def _caught(reference: Callable[[], Any], undos: list[Callable[[], None]]) -> Iterator[None]:
    iterator = reference()
    try:
        with type(iterator).catch_stop_iteration(iterator):
            yield
    except BaseException:
        _undo_all(undos)
        raise


def _guarded(method: Callable[..., None], undos: list[Callable[[], None]]) -> Callable[..., None]:
    def call(*arguments: Any, **keywords: Any) -> None:
        try:
            method(*arguments, **keywords)
        except BaseException:
            _undo_all(undos)
            raise

    return call


def _undo_all(undos: list[Callable[[], None]]) -> None:
    while undos:
        undos.pop()()


def is_fitting(callbacks: Any) -> bool:
    """Whether some thread is inside the `fit` of this `keras.callbacks.CallbackList`."""
    for frame in sys._current_frames().values():
        at: Any = frame
        while at is not None:
            if at.f_code.co_name == "fit" and at.f_locals.get("callbacks") is callbacks:
                return True
            at = at.f_back
    return False


def data_of(epoch_iterator: Any) -> Any:
    """Keras's adapter of the data that `fit` was given; an adapter itself stands for itself."""
    return epoch_iterator.data_adapter


def batches_at_once(epoch_iterator: Any) -> int:
    """How many batches the trainer begins together."""
    return int(epoch_iterator.steps_per_execution)


def build_metrics(model: Any, epoch_iterator: Any) -> None:
    """Makes the variables of metrics and losses, which Keras makes with the first batch, before there is one."""
    if not ON_TENSORFLOW or getattr(model, "_compile_metrics", None) is None or model._compile_metrics.built:
        return
    spec = epoch_iterator._distributed_dataset.element_spec

    def symbol(leaf: Any) -> Any:
        # Under a strategy the specification of each replica's part comes first.
        leaf = leaf._value_specs[0] if hasattr(leaf, "_value_specs") else leaf
        return keras.KerasTensor(tuple(leaf.shape), keras.backend.standardize_dtype(leaf.dtype))

    build_from(model, keras.tree.map_structure(symbol, spec))


def enter_epoch(epoch_iterator: Any, batch: int, knows_position: bool, past: int = 0) -> None:
    """Has the epoch that `fit` begins next begin with this batch.

    Args:
        epoch_iterator: that of the trainer.
        batch: the batches of the epoch that are done.
        knows_position: whether the data begin where the epoch is to be entered. Others are gone through: first `past`
            whole epochs, then the batches that are done.
        past: epochs before this one.
    """
    # An item is the first step of an execution, in newer Keras the last one, too, and the iterator over the data.
    enumerate_epoch = epoch_iterator._enumerate_iterator
    at_once = epoch_iterator.steps_per_execution

    def take(iterator: Any) -> None:
        for _ in range(at_once):
            next(iterator)

    def rest() -> Iterator[Any]:
        steps = epoch_iterator.steps_per_epoch
        if steps is not None:
            epoch_iterator.steps_per_epoch = steps - batch
        try:
            for *steps_of_item, iterator in enumerate_epoch():
                yield *(step + batch for step in steps_of_item), iterator
        finally:
            epoch_iterator.steps_per_epoch = steps

    def replay() -> Iterator[Any]:
        for _ in range(past):
            with warnings.catch_warnings(), epoch_iterator.catch_stop_iteration():
                warnings.simplefilter("ignore")  # Keras warns where data of unknown length end
                for item in enumerate_epoch():
                    take(item[-1])
        for item in enumerate_epoch():
            if item[0] >= batch:
                yield item
            else:
                take(item[-1])

    def once() -> Iterator[Any]:
        del vars(epoch_iterator)["_enumerate_iterator"]
        return rest() if knows_position else replay()

    epoch_iterator._enumerate_iterator = once


def global_seeds(make: bool = False) -> Any:
    """Keras's generator for random numbers without a seed of their own; None before it was used, unless made here."""
    if make:
        return seed_generator.global_seed_generator()
    return global_state.get_global_attribute("global_seed_generator")


def forget_global_seeds() -> None:
    """Has Keras make its generator anew when it is used next."""
    global_state.set_global_attribute("global_seed_generator", None)


def seed_is_set() -> bool:
    """Whether the seed of the process was set, as `keras.utils.set_random_seed` does; true where nobody knows."""
    return not ON_TENSORFLOW or tf_context.global_seed() is not None


def arrays_of(epoch_iterator: Any) -> tuple[Any, ...] | None:
    """What `fit` was given as x, y and the weights of samples, if those are arrays; else None."""
    adapter = data_of(epoch_iterator)
    if not isinstance(adapter, ArrayDataAdapter):
        return None
    return tuple(keras.utils.unpack_x_y_sample_weight(adapter._inputs))


def operation_seeds() -> Any:
    """Where the seeds stand that TensorFlow gives to operations, such as those that shuffle data; None elsewhere."""
    if not ON_TENSORFLOW:
        return None
    context = tf_context.context()
    generator = getattr(context, "_rng", None)  # none before the first global seed
    return context._seed, None if generator is None else generator.getstate()


def set_operation_seeds(seeds: Any) -> None:
    """The inverse of `operation_seeds`."""
    if seeds is None:
        return
    context, (seed, state) = tf_context.context(), seeds
    context._set_global_seed(seed)
    if state is not None:
        context._rng.setstate(state)


def copies(variable: Any, strategy: Any) -> list[Any]:
    """The copies of a variable that the replicas of this process have, which may differ; each has `assign`."""
    if not ON_TENSORFLOW:
        return [variable]
    return list(strategy.experimental_local_results(_native(variable)))


def held(copy: Any) -> Any:
    """The value of one copy, which later writes to it do not change; `numpy.asarray` takes it, in any thread."""
    if ON_TENSORFLOW:
        return copy.read_value()
    return np.array(keras.ops.convert_to_numpy(copy))  # JAX gives the memory away with the next step


def callback_fields(callback: Any) -> tuple[str, ...]:
    """The attributes in which a callback of Keras's keeps what it has seen of a run."""
    return tuple(
        name for kind, names in _CALLBACK_FIELDS.items() if isinstance(callback, kind) for name in names
        if hasattr(callback, name)
    )  # fmt: skip


_CALLBACK_FIELDS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
}


def watch_workers(workers: int, timeout: float) -> None:
    """Has TensorFlow hold a worker for lost that has been silent for so many seconds; it takes 10 by itself.

    Must come before the strategy of the workers is made.
    """
    experimental = tf.compat.v1.ConfigProto().experimental
    job = experimental.coordination_config.coordinated_job_list.add(name="worker", num_tasks=workers)
    tf_context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(timeout * 1000),
        heartbeat_timeout_in_ms=int(timeout * 1000),
        coordinated_jobs=[job],
    )


class First:
    """The first value of a variable as Keras's initializers give theirs.

    On JAX Keras compiles the initializers of large variables that are split, and a plain function it cannot compile.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return self._function(shape, dtype)


def axes_of(variable: Any) -> tuple[Any, ...] | None:
    """The name of the mesh's axis over which each axis of the variable is split, or None for all where none is known.

    An axis that is whole is None, one that is split over several axes of the mesh a tuple.
    """
    layout = getattr(variable, "_layout", None)
    named = getattr(layout, "axes", getattr(layout, "spec", None))
    return None if named is None else (*named, *[None] * (len(variable.shape) - len(named)))


def layout_like(reference: Any, shape: Sequence[int]) -> Any:
    """The layout of a slot of `shape` that belongs to the model variable `reference`; None where that has none.

    A slot of the variable's shape has its layout. Each axis of another is split as the first axis of the variable that
    has its size and is not taken yet, or whole. It never is None beside a variable that has a layout: Keras would look
    the slot's own path up in the layout map, whose patterns may find the variable's name in it.
    """
    layout: Any = getattr(reference, "_layout", None)
    axes = axes_of(reference)
    if axes is None or tuple(shape) == tuple(reference.shape):
        return layout
    free = list(zip(reference.shape, axes, strict=True))
    found = []
    for size in shape:
        match = next((pair for pair in free if pair[0] == size), None)
        if match is not None:
            free.remove(match)
        found.append(None if match is None else match[1])
    if hasattr(layout, "device_mesh"):
        return keras.distribution.TensorLayout(found, layout.device_mesh)
    import jax

    return jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(*found))


@contextlib.contextmanager
def laid_out(layouts: list[tuple[Any, Any]]) -> Iterator[None]:
    """Has the variables of these pairs say that they have these layouts, without moving their values."""
    before = [getattr(variable, "_layout", None) for variable, _ in layouts]
    try:
        for variable, layout in layouts:
            variable._layout = layout
        yield
    finally:
        for (variable, _), layout in zip(layouts, before, strict=True):
            variable._layout = layout


@contextlib.contextmanager
def names_kept() -> Iterator[None]:
    """What is made inside leaves no trace: made again outside, it has the same names and the same random seeds.

    Keras numbers names through, and draws the seeds of initializers from Python's random numbers.
    """
    kept = {name: copy.copy(global_state.get_global_attribute(name)) for name in _COUNTED}
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
        for name, value in kept.items():
            global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def on_paper() -> Iterator[None]:
    """`names_kept` in which variables have paths, shapes and dtypes, and no values.

    Keras refuses variables that are made from a value and not from an initializer, such as an optimizer's counter.
    """
    with names_kept(), keras.StatelessScope(initialize_variables=False):
        yield


_COUNTED = ("object_name_uids", "uninitialized_variables")
"""What Keras counts up with each object made: numbers in names, and the variables that wait for a value."""


def sublayers(layer: Any) -> list[Any]:
    """The layers directly inside of a layer, in the order of a functional model's computation or of their making."""
    return layer._flatten_layers(include_self=False, recursive=False)


def _native(variable: Any) -> Any:
    return variable._value if isinstance(variable, keras.Variable) else variable


def _records_writes() -> bool:
    return in_stateless_scope()


if ON_TENSORFLOW:
    # Under these every replica has a copy of its own of each variable.
    _LOCAL_STRATEGIES: tuple = (
        type(tf.distribute.get_strategy()),
        tf.distribute.OneDeviceStrategy,
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
    )

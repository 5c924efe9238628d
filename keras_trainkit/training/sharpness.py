"""Sharpness-aware training around any `train_step`: SAM, ASAM, GSAM and LookSAM."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, slices
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.training.ascent import (
    AdaptiveAscent,
    Ascent,
    LookAscent,
    SurrogateAscent,
    dot,
    orthogonal,
)
from keras_trainkit.training.installation import Model, install
from keras_trainkit.training.interception import intercepted


def sam(model: Model, rho: Any = 0.05, synchronized: bool = True) -> Model:
    """Makes a model's `train_step` take its gradients from where the loss is nearly the worst within a distance.

    Each step takes the gradient g, moves the weights by rho g / norm(g), takes the gradient there, puts the weights
    back bit for bit, and hands the second gradient to the optimizer. It costs two gradients a step and one copy of
    the weights.

    The model's own `train_step` is what runs, be it Keras's or a user's, as long as it calls `self.optimizer.apply` (or
    `apply_gradients`; on JAX `stateless_apply`) once and outside of conditionals. When it does, as much of the step as
    led there is run once more. That second run leaves no trace: metrics, BatchNormalization statistics and seeds are
    those of the first, at the weights themselves, and dropout draws the same masks in both (random operations need a
    seed generator that the model tracks, as Keras's layers have). Code behind the optimizer's call runs once, after
    the update. State in a raw `tf.Variable` is the exception: it is written twice.

    It works with any Keras optimizer and with loss scaling (the direction does not depend on the scale, and an overflow
    in either gradient skips the step). With gradient accumulation each micro-batch has its own distance to go. The
    model is saved as ever, without this: call the function again on a loaded model.

    Reference: Foret et al., 2020, arXiv:2010.01412.

    Args:
        model: a Keras model; it need not be compiled yet.
        rho: the distance, at least 0, or a schedule of the updates done. 0 is plain training, at twice the cost.
        synchronized: on several replicas, True takes the direction from the gradients summed over them, so that the
            result is that of one device; False lets each replica go its own way before the second gradients are summed,
            as the authors' code does by default (their m-sharpness, m being the batch of a replica; they found it to
            generalize better). On JAX the gradients are always those of the whole batch.

    Returns:
        The model.

    Raises:
        ValueError: for a value out of its range, or a model that has one of these helpers already.

    >>> import keras
    >>> from keras_trainkit import training
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = training.sam(model, rho=0.05).fit(keras.ops.ones((8, 3)), keras.ops.ones((8, 1)), verbose=0)
    """
    return _install(model, Ascent(rho, synchronized))


def asam(
    model: Model,
    rho: Any = 0.5,
    eta: float = 0.01,
    exclude: list[str] | None = None,
    synchronized: bool = True,
) -> Model:
    """`sam` with a distance that is relative to the weights, so that rescaling layers does not change it.

    With T = abs(w) + eta for each element, the weights move by rho T^2 g / norm(T g).

    Reference: Kwon et al., 2021, arXiv:2102.11600.

    Args:
        model: as for `sam`.
        rho: the relative distance; in the paper 0.5 and more, about ten times that of SAM.
        eta: at least 0; lets weights of zero move.
        exclude: list of regular expressions; for variables in whose path one is found T is 1. The default is
            `["bias", "beta"]`, as in the authors' code.
        synchronized: as for `sam`.
    """
    patterns = ("bias", "beta") if exclude is None else tuple(exclude)
    return _install(model, AdaptiveAscent(rho, synchronized, eta, patterns))


def gsam(model: Model, rho: Any = 0.05, alpha: float = 0.4, synchronized: bool = True) -> Model:
    """`sam` that also lowers the gap between the loss at the worst point and the loss here.

    The first gradient is taken apart into a part along the second one and the rest, h; the step is made with the second
    gradient minus alpha h. The authors let rho follow the learning rate: give a schedule for it.

    Reference: Zhuang et al., 2022, arXiv:2203.08065.

    Args:
        model: as for `sam`.
        rho: the distance, or a schedule of the updates done.
        alpha: at least 0; 0 is `sam`. The authors' example for CIFAR has 0.4.
        synchronized: as for `sam`; False takes the gradients of each replica apart by themselves.
    """
    return _install(model, SurrogateAscent(rho, synchronized, alpha))


def looksam(model: Model, rho: Any = 0.05, every: int = 5, alpha: float = 0.7, synchronized: bool = True) -> Model:
    """`sam` in every few updates only; in between, the last change of direction is used again.

    In every `every`-th update (counted by `optimizer.iterations`, from the first) the second gradient is taken as in
    `sam`, and its part across the first one, v, is kept. In the others the step is made with
    g + alpha norm(g) v / norm(v). It keeps two copies of the weights' size, one of them (v) between steps, outside of
    the model: it is not saved, so training that goes on from a file begins with a second gradient. On TensorFlow only.

    Reference: Liu et al., 2022, arXiv:2203.02714.

    Args:
        model: as for `sam`, and built already.
        rho: the distance, or a schedule of the updates done.
        every: at least 1; 1 is `sam`.
        alpha: at least 0; how far the first gradient is turned.
        synchronized: as for `sam`.
    """
    if not backend.ON_TENSORFLOW:
        raise ValueError("`looksam` needs Keras on TensorFlow: elsewhere a train step cannot keep state of its own.")
    ascent = LookAscent(rho, synchronized, every, alpha)
    if not model.built:
        raise ValueError("`model` must be built before `looksam`, which keeps a vector of the weights' size.")
    return _install(model, ascent)


def _install(model: Model, ascent: Ascent) -> Model:
    def around(train_step: Any) -> Any:
        return (_tensorflow_step if backend.ON_TENSORFLOW else _jax_step)(model, ascent, train_step)

    return install(model, "sharpness-aware", around)


class _Captured(BaseException):
    """Ends a second run of the train step when it has come to its gradients; no user's `except Exception` takes it."""

    def __init__(self, gradients: list[Any]) -> None:
        super().__init__()
        self.gradients = gradients


def _capture(original: Any, first: Any, second: Any = None, *rest: Any, **more: Any) -> Any:
    # `apply(gradients, variables)` on TensorFlow, `stateless_apply(own, gradients, variables)` on JAX.
    raise _Captured(list(first if backend.ON_TENSORFLOW else second))


class _Once:
    def __init__(self) -> None:
        self.done = False

    def __call__(self) -> None:
        if self.done:
            raise ValueError(
                "`train_step` calls the optimizer twice; the helpers of keras_trainkit.training need one that calls it "
                "once."
            )
        self.done = True


def _jax_step(model: Any, ascent: Ascent, train_step: Any) -> Any:
    def step(state: Any, data: Any) -> Any:
        once = _Once()

        def apply(original: Any, own: Any, gradients: Any, trainable: Any) -> Any:
            once()
            optimizer = model.optimizer
            position = next(i for i, v in enumerate(optimizer.variables) if v is optimizer.iterations)
            paths = [variable_path(v) for v in model.trainable_variables]
            wide = [ops.cast(t, wide_dtype(t.dtype)) for t in trainable]
            first = [ops.cast(g, w.dtype) for g, w in zip(gradients, wide, strict=True)]
            offsets = ascent.offsets(wide, first, paths, ascent.radius(own[position]))
            moved = [ops.cast(w + o, t.dtype) for w, o, t in zip(wide, offsets, trainable, strict=True)]
            try:
                with intercepted(optimizer, "stateless_apply", _capture):
                    train_step((moved, *state[1:]), data)
            except _Captured as captured:
                second = captured.gradients
            combined = ascent.combined(first, second)
            return original(own, second if combined is None else combined, trainable)

        with intercepted(model.optimizer, "stateless_apply", apply):
            return _checked(train_step(state, data), once)

    return step


def _tensorflow_step(model: Any, ascent: Ascent, train_step: Any) -> Any:
    memory = _Turn(model) if isinstance(ascent, LookAscent) and ascent.every > 1 else None

    def step(data: Any) -> Any:
        once = _Once()
        start = [(v, _now(v)) for v in model.non_trainable_variables]
        trained = {id(v): v.value for v in model.trainable_variables}

        def second_run() -> list[Any]:
            # In the scope all writes to Keras variables are forgotten, and these start as they did in the first run.
            with keras.StatelessScope(state_mapping=start) as scope, intercepted(model.optimizer, "apply", _capture):
                # Regularizers ask the scope for their weights. The variables themselves, not tensors: the tape watches
                # those alone.
                scope.state_mapping.update(trained)
                try:
                    train_step(data)
                except _Captured as captured:
                    return captured.gradients
            raise ValueError("`train_step` did not call the optimizer when it was run for the second time.")

        def apply(original: Any, grads: Any, trainable_variables: Any = None, **more: Any) -> Any:
            once()
            gradients = list(grads)
            variables = list(model.trainable_variables if trainable_variables is None else trainable_variables)
            return original(_sharp(model, ascent, memory, gradients, variables, second_run), variables, **more)

        with intercepted(model.optimizer, "apply", apply):
            return _checked(train_step(data), once)

    return backend.plain_python(step)


def _checked(result: Any, once: _Once) -> Any:
    if not once.done:
        raise ValueError(
            "`train_step` did not call `apply`, `apply_gradients` or `stateless_apply` of the model's optimizer, so "
            "there is nothing to make sharpness-aware."
        )
    return result


def _sharp(
    model: Any, ascent: Ascent, memory: _Turn | None, gradients: list[Any], variables: list[Any], second_run: Any
) -> list[Any]:
    """The gradients to step with instead of `gradients`, one for each variable."""
    mine = [
        i
        for i, (g, v) in enumerate(zip(gradients, variables, strict=True))
        if g is not None and not getattr(v, "overwrite_with_gradient", False)
    ]
    moving = [variables[i] for i in mine]
    first = _dense([gradients[i] for i in mine], moving)
    if ascent.synchronized:
        first = backend.all_reduce_sum(first)
    kept = [_now(v) for v in moving]
    wide = [ops.cast(k, wide_dtype(k.dtype)) for k in kept]
    radius = ascent.radius(backend.read(model.optimizer.iterations))
    offsets = ascent.offsets(wide, first, [variable_path(v) for v in moving], radius)

    def second_gradients() -> list[Any]:
        for variable, value, offset in zip(moving, wide, offsets, strict=True):
            backend.write(variable, value + offset)
        try:
            return second_run()
        finally:
            for variable, value in zip(moving, kept, strict=True):
                backend.write(variable, value)

    if memory is not None and isinstance(ascent, LookAscent):
        chosen = memory.gradients(ascent, first, moving, lambda: _picked(second_gradients(), mine, moving))
        return _placed(gradients, mine, chosen)
    second = second_gradients()
    if type(ascent).combined is Ascent.combined:
        return second
    along = _picked(second, mine, moving)
    if ascent.synchronized:
        along = backend.all_reduce_sum(along)
    return _placed(second, mine, _shared(ascent.combined(first, along) or along, ascent))


class _Turn:
    """What LookSAM keeps between steps: for each weight, the last second gradient's part across the first one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        with model.distribute_strategy.scope():
            # A tuple in an object that Keras does not know: neither tracked nor saved.
            self._kept = tuple(
                (v, keras.Variable(ops.zeros(v.shape, wide_dtype(v.dtype)), trainable=False))
                for v in model.trainable_variables
            )
            self._filled = keras.Variable(0, dtype="int32", trainable=False)

    def gradients(self, ascent: LookAscent, first: list[Any], variables: list[Any], second: Any) -> list[Any]:
        """Second gradients where they are due, else the first ones turned."""
        import tensorflow as tf

        slots = [next(slot for known, slot in self._kept if known is v) for v in variables]
        turns = [_now(slot) for slot in slots]
        iterations = backend.read(self._model.optimizer.iterations)
        due = ops.logical_or(ops.equal(iterations % ascent.every, 0), ops.equal(backend.read(self._filled), 0))
        taken = tf.cond(due, second, lambda: [tf.zeros_like(f) for f in first])
        whole = backend.all_reduce_sum(taken) if ascent.synchronized else taken
        new = orthogonal(whole, first)
        usable = ops.logical_and(due, ops.isfinite(dot(new, new)))
        for slot, turn, fresh in zip(slots, turns, new, strict=True):
            backend.write(slot, ops.where(usable, fresh, turn))
        backend.write(self._filled, ops.where(usable, 1, backend.read(self._filled)))
        turned = _shared(ascent.reused(first, turns), ascent)
        return [ops.where(due, t, r) for t, r in zip(taken, turned, strict=True)]


def _now(variable: Any) -> Any:
    # A TensorFlow variable passes for a tensor, and would be read when it is used: after it was written.
    return ops.copy(backend.read(variable))


def _dense(gradients: list[Any], variables: list[Any]) -> list[Any]:
    """The gradients as full tensors in at least float32."""
    return [
        ops.cast(slices.dense(g, v.shape[0] if len(v.shape) else 1), wide_dtype(v.dtype))
        for g, v in zip(gradients, variables, strict=True)
    ]


def _picked(gradients: list[Any], positions: list[int], variables: list[Any]) -> list[Any]:
    return _dense([gradients[i] for i in positions], variables)


def _placed(gradients: list[Any], positions: list[int], values: list[Any]) -> list[Any]:
    """`gradients` with `values` at `positions`, in the dtypes that stood there."""
    new = list(gradients)
    for position, value in zip(positions, values, strict=True):
        new[position] = ops.cast(value, gradients[position].dtype)
    return new


def _shared(gradients: list[Any], ascent: Ascent) -> list[Any]:
    """Gradients that are sums over the replicas, as each replica's share: the optimizer sums them again."""
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync if ascent.synchronized else 1
    return [g / replicas for g in gradients] if replicas > 1 else gradients

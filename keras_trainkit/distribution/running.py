"""Functions of tensors on either backend: traced, derived, timed, and their memory counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import tree

from keras_trainkit.core import backend

if backend.ON_TENSORFLOW:
    import tensorflow as tf


def inside_of_replicas() -> bool:
    """Whether this runs in the scope of a strategy, where variables made are copied to its replicas."""
    return backend.ON_TENSORFLOW and tf.distribute.has_strategy()


def traced(function: Callable) -> Callable:
    """`function` as one program, for each set of shapes."""
    if backend.ON_TENSORFLOW:
        return tf.function(function, autograph=False)
    import jax

    return jax.jit(function)


def gradients(loss: Callable[[list[Any]], Any], values: list[Any]) -> list[Any]:
    """The gradients of a scalar by `values`, inside of a program; None where it does not depend on them."""
    if backend.ON_TENSORFLOW:
        with tf.GradientTape() as tape:
            tape.watch(values)
            found = loss(values)
        return tape.gradient(found, values)
    import jax

    return jax.grad(loss)(values)


def outline(program: Callable, *arguments: Any) -> Any:
    """What a traced program would return, as tensors without values."""
    if backend.ON_TENSORFLOW:
        return program.get_concrete_function(*arguments).structured_outputs  # type: ignore[attr-defined]
    import jax

    return jax.eval_shape(program, *arguments)


def wait(results: Any) -> None:
    """Returns when the results are there."""
    if not backend.ON_TENSORFLOW:
        import jax

        jax.block_until_ready(results)
    elif tf.config.list_logical_devices("GPU"):
        for tensor in tree.flatten(results, expand_composites=True):
            tensor.numpy()


def peak_bytes(program: Callable, arguments: tuple[Any, ...], steps: int) -> int:
    """The most memory that a traced program needs beyond its arguments and its results.

    On TensorFlow the largest of so many runs, because operators that may run in any order do; on JAX as compiled.

    Raises:
        RuntimeError: where the backend does not count its memory.
    """
    if not backend.ON_TENSORFLOW:
        found = program.lower(*arguments).compile().memory_analysis()  # type: ignore[attr-defined]
        if found is None:
            raise RuntimeError("JAX does not say here how much memory a program takes: pass `activations`.")
        return int(found.temp_size_in_bytes)
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    wait(program(*arguments))
    most = 0
    for _ in range(steps):
        try:
            tf.config.experimental.reset_memory_stats(device)
        except ValueError as error:
            raise RuntimeError(
                f"TensorFlow does not count the memory of {device} here (on CPUs it needs oneDNN): pass `activations`."
            ) from error
        results = program(*arguments)
        wait(results)
        counted = tf.config.experimental.get_memory_info(device)
        most = max(most, counted["peak"] - counted["current"])
        del results
    return most


def updater(optimizer: Any, variables: list[Any]) -> Callable[[list[Any]], None]:
    """A function that has the built optimizer apply gradients to its variables, and returns when it has."""
    if backend.ON_TENSORFLOW:
        apply = tf.function(lambda gradients: optimizer.apply(gradients, variables), autograph=False)

        def update(gradients: list[Any]) -> None:
            apply(gradients)
            wait([optimizer.iterations.value])

        return update
    import jax

    program = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    held = [[v.value for v in optimizer.variables], [v.value for v in variables]]

    def stateless_update(gradients: list[Any]) -> None:
        values, own = program(held[0], gradients, held[1])
        held[:] = [own, values]
        wait(held)

    return stateless_update

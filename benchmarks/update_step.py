"""The update alone, ours and others' in turn: 75 variables of a transformer, and 400 small ones.

    python benchmarks/update_step.py                     # every case on one device
    python benchmarks/update_step.py --replicas 2        # ours and Keras's under MirroredStrategy, five cases
    python benchmarks/update_step.py --rounds 20 adam    # one optimizer

Gradients are ready in memory; a step is what `fit` runs in graph mode. Peers: Keras's own optimizer of the same
settings, TensorFlow's fused kernel where there is one, and optax (compiled as a whole, arrays donated) and torch
(`fused=True`) where they are installed. The floor is the bytes that the update must move over the speed of a large
copy, measured in the same turns. Figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import in_turn
import keras
import numpy as np
import tensorflow as tf

from keras_trainkit import optimizers

Step = Callable[[], Any]


def transformer() -> list[tuple[int, ...]]:
    """Six layers of width 384 with two embeddings: 75 variables."""
    width, inner = 384, 1536
    layer: list[tuple[int, ...]] = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    layer += [(width,), (width,), (width, inner), (inner,), (inner, width), (width,)]
    return [(7680, width), (256, width), *(layer * 6), (width,)]


def small() -> list[tuple[int, ...]]:
    """400 vectors of 1,000 to 20,000 elements."""
    return [(int(size),) for size in np.random.default_rng(0).integers(1000, 20001, 400)]


SHAPES = {"transformer": transformer, "small": small}


@dataclasses.dataclass(frozen=True)
class Case:
    """One algorithm and its peers.

    Attributes:
        ours, keras: make the optimizers.
        passes: how often the update must move an array of the parameters' size through memory, at the least.
        targets: at most this ratio to Keras's time.
        fused: TensorFlow's kernel: (variable, slots, gradient) -> op, with its number of slots.
        optax, torch: names of what `_optax` and `_torch` make.
    """

    ours: Callable[[], Any]
    keras: Callable[[], Any]
    passes: int
    target: float
    fused: tuple[int, Callable[[Any, list[Any], Any], Any]] | None = None
    peers: tuple[str, ...] = ()


def _fused_adam(variable: Any, slots: list[Any], gradient: Any) -> Any:
    return tf.raw_ops.ResourceApplyAdam(
        var=variable.handle, m=slots[0].handle, v=slots[1].handle, beta1_power=0.9, beta2_power=0.999, lr=1e-3,
        beta1=0.9, beta2=0.999, epsilon=1e-7, grad=gradient,
    )  # fmt: skip


def _fused_momentum(variable: Any, slots: list[Any], gradient: Any) -> Any:
    return tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle, accum=slots[0].handle, lr=1e-3, grad=gradient, momentum=0.9
    )


AVERAGED = {"weight_decay": 0.004, "global_clipnorm": 1.0, "use_ema": True}
CASES = {
    "adam": Case(
        lambda: optimizers.Adam(1e-3), lambda: keras.optimizers.Adam(1e-3), 7, 0.5, (2, _fused_adam), ("optax", "torch")
    ),
    "adamw_clip_ema": Case(
        lambda: optimizers.AdamW(1e-3, **AVERAGED), lambda: keras.optimizers.AdamW(1e-3, **AVERAGED), 10, 0.65,
        peers=("optax",),
    ),
    "sgd_momentum": Case(
        lambda: optimizers.SGD(1e-3, momentum=0.9), lambda: keras.optimizers.SGD(1e-3, momentum=0.9), 5, 1.0,
        (1, _fused_momentum), ("optax", "torch"),
    ),
    "lion": Case(lambda: optimizers.Lion(1e-3), lambda: keras.optimizers.Lion(1e-3), 5, 1.0, peers=("optax",)),
    "muon": Case(
        lambda: optimizers.Muon(1e-3), lambda: keras.optimizers.Muon(1e-3, exclude_layers=["embedding"]), 5, 1.0
    ),
    # The others that both have, at their defaults: never slower.
    "sgd": Case(lambda: optimizers.SGD(1e-3), lambda: keras.optimizers.SGD(1e-3), 3, 1.0),
    "rmsprop": Case(lambda: optimizers.RMSprop(1e-3), lambda: keras.optimizers.RMSprop(1e-3), 5, 1.0),
    "adagrad": Case(lambda: optimizers.Adagrad(1e-3), lambda: keras.optimizers.Adagrad(1e-3), 5, 1.0),
    "adadelta": Case(lambda: optimizers.Adadelta(1e-3), lambda: keras.optimizers.Adadelta(1e-3), 7, 1.0),
    "adamax": Case(lambda: optimizers.Adamax(1e-3), lambda: keras.optimizers.Adamax(1e-3), 7, 1.0),
    "nadam": Case(lambda: optimizers.NAdam(1e-3), lambda: keras.optimizers.Nadam(1e-3), 7, 1.0),
    "adafactor": Case(lambda: optimizers.Adafactor(1e-3), lambda: keras.optimizers.Adafactor(1e-3), 3, 1.0),
    "lamb": Case(lambda: optimizers.LAMB(1e-3), lambda: keras.optimizers.Lamb(1e-3), 7, 1.0),
}  # fmt: skip
if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
    CASES["schedule_free"] = Case(
        lambda: optimizers.ScheduleFreeAdamW(1e-3), lambda: keras.optimizers.ScheduleFreeAdamW(1e-3), 7, 1.0
    )


# On several replicas these alone: Keras traces 400 small variables for a minute.
CLAIMED = ("adam", "adamw_clip_ema", "sgd_momentum", "lion", "muon")


def arrays(shapes: list[tuple[int, ...]], scale: float, seed: int) -> list[np.ndarray]:
    """Normal random numbers."""
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype("float32") for shape in shapes]


def names(shapes: list[tuple[int, ...]]) -> list[str]:
    """Embeddings are called so, because Muon goes by names."""
    return ["embedding_kernel" if shape[0] in (7680, 256) else f"kernel_{i}" for i, shape in enumerate(shapes)]


def keras_step(make: Callable[[], Any], shapes: list[tuple[int, ...]], strategy: Any = None) -> tuple[Step, float]:
    """A compiled step of a Keras optimizer, and the seconds of its first call."""
    with strategy.scope() if strategy else tf.device("CPU:0"):
        variables = [keras.Variable(a, name=n) for a, n in zip(arrays(shapes, 0.02, 1), names(shapes), strict=True)]
        gradients = [tf.Variable(a) for a in arrays(shapes, 1e-3, 2)]
        optimizer = make()
        optimizer.build(variables)

    def update() -> None:
        optimizer.apply([tf.identity(g) for g in gradients], variables)

    if strategy:
        step = tf.function(lambda: strategy.run(update), autograph=False)
    else:
        step = tf.function(update, autograph=False)
    began = time.perf_counter()
    step()
    return step, time.perf_counter() - began


def fused_step(case: Case, shapes: list[tuple[int, ...]]) -> Step:
    """TensorFlow's kernel on each variable."""
    count, kernel = case.fused
    variables = [tf.Variable(a) for a in arrays(shapes, 0.02, 1)]
    slots = [[tf.Variable(tf.zeros(shape)) for _ in range(count)] for shape in shapes]
    gradients = [tf.Variable(a) for a in arrays(shapes, 1e-3, 2)]

    @tf.function(autograph=False)
    def step() -> None:
        for variable, own, gradient in zip(variables, slots, gradients, strict=True):
            kernel(variable, own, tf.convert_to_tensor(gradient))

    step()
    return step


def optax_step(name: str, shapes: list[tuple[int, ...]]) -> Step | None:
    """optax under jit, with parameters and state donated."""
    try:
        import jax
        import optax
    except ImportError:
        return None
    transforms = {
        "adam": optax.adam(1e-3, eps=1e-7),
        "adamw_clip_ema": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, eps=1e-7, weight_decay=0.004)),
        "sgd_momentum": optax.sgd(1e-3, momentum=0.9),
        "lion": optax.lion(1e-3, weight_decay=0.0),
    }
    transform, averages = transforms[name], name == "adamw_clip_ema"
    gradients = [jax.numpy.asarray(a) for a in arrays(shapes, 1e-3, 2)]
    parameters = [jax.numpy.asarray(a) for a in arrays(shapes, 0.02, 1)]
    held = [parameters, transform.init(parameters), [p + 0 for p in parameters] if averages else []]

    def update(parameters: Any, state: Any, average: Any, gradients: Any) -> Any:
        updates, state = transform.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        average = [0.99 * a + 0.01 * p for a, p in zip(average, parameters, strict=averages)]
        return parameters, state, average

    compiled = jax.jit(update, donate_argnums=(0, 1, 2))

    def step() -> None:
        held[:] = compiled(*held, gradients)
        jax.block_until_ready(held)

    step()
    return step


def torch_step(name: str, shapes: list[tuple[int, ...]]) -> Step | None:
    """torch's fused optimizer."""
    try:
        import torch
    except ImportError:
        return None
    parameters = [torch.nn.Parameter(torch.tensor(a)) for a in arrays(shapes, 0.02, 1)]
    for parameter, gradient in zip(parameters, arrays(shapes, 1e-3, 2), strict=True):
        parameter.grad = torch.tensor(gradient)
    makers = {
        "adam": lambda: torch.optim.Adam(parameters, 1e-3, fused=True),
        "sgd_momentum": lambda: torch.optim.SGD(parameters, 1e-3, momentum=0.9, fused=True),
    }
    optimizer = makers[name]()
    optimizer.step()
    return optimizer.step


def measure(name: str, case: Case, kind: str, rounds: int, strategy: Any) -> dict[str, Any]:
    """The figures of one algorithm on one set of variables."""
    shapes = SHAPES[kind]()
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    steps: dict[str, Step | None] = {}
    steps["keras"], keras_first = keras_step(case.keras, shapes, strategy)
    steps["ours"], our_first = keras_step(case.ours, shapes, strategy)
    if strategy is None:
        steps["tensorflow fused"] = fused_step(case, shapes) if case.fused else None
        steps["optax"] = optax_step(name, shapes) if "optax" in case.peers else None
        steps["torch fused"] = torch_step(name, shapes) if "torch" in case.peers else None
    copy, copied = in_turn.large_copy()
    times = in_turn.milliseconds({key: step for key, step in steps.items() if step} | {"copy": copy}, rounds)
    copies = times.pop("copy")
    replicas = strategy.num_replicas_in_sync if strategy else 1
    floor = [ms * 4 * parameters * case.passes * replicas / copied for ms in copies]
    to_keras = in_turn.ratio(times["ours"], times["keras"])
    target = 0.8 if strategy else case.target
    return {
        "variables": len(shapes),
        "parameters": parameters,
        "milliseconds": {key: in_turn.summary(value) for key, value in times.items()},
        "floor_milliseconds": in_turn.summary(floor),
        "ours_to": {key: in_turn.ratio(times["ours"], value) for key, value in times.items() if key != "ours"}
        | {"floor": in_turn.ratio(times["ours"], floor)},
        "first_call_seconds": {"ours": round(our_first, 2), "keras": round(keras_first, 2)},
        "target_to_keras": target,
        "holds": to_keras["median"] <= target and our_first <= 2 * keras_first,
    }


def main() -> None:
    """Measures, prints a line for each case, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all when left out")
    parser.add_argument("--replicas", type=int, default=1, help="under MirroredStrategy on so many logical devices")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"no case is called {name}")
    strategy = None
    if arguments.replicas > 1:
        from keras_trainkit import distribution

        strategy = distribution.strategy(arguments.replicas)
    figures: dict[str, Any] = in_turn.circumstances(["keras", "tensorflow", "jax", "optax", "torch"])
    figures |= {"replicas": arguments.replicas, "rounds": arguments.rounds, "cases": {}}
    for kind in SHAPES:
        for name in arguments.cases or (CASES if strategy is None else CLAIMED):
            result = measure(name, CASES[name], kind, arguments.rounds, strategy)
            figures["cases"][f"{kind} {name}"] = result
            spread = "{median} [{quartile_1}, {quartile_3}]".format
            others = ", ".join(f"{spread(**value)} of {key}" for key, value in result["ours_to"].items())
            first = result["first_call_seconds"]
            print(
                f"{kind} {name}: {spread(**result['milliseconds']['ours'])} ms = {others}; first call "
                f"{first['ours']} s, Keras {first['keras']} s: {'holds' if result['holds'] else 'DOES NOT HOLD'}",
                flush=True,
            )
    suffix = f"_replicas_{arguments.replicas}" if arguments.replicas > 1 else ""
    if not arguments.cases:
        print(in_turn.write(f"update_step{suffix}", figures))


if __name__ == "__main__":
    main()

"""A run before it begins: one batch through everything, and then all as it was."""

from __future__ import annotations

import contextlib
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import backend, checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.guards import data_checks, model_checks
from keras_trainkit.guards.autopsy import is_bad
from keras_trainkit.guards.dump import named_arrays
from keras_trainkit.guards.findings import Finding, PreflightReport
from keras_trainkit.guards.replay import replay
from keras_trainkit.guards.watching import build_optimizer, needs_tensorflow
from keras_trainkit.resuming import snapshot

_KEPT = ("optimizer", "train_function", "stop_training")
_FEW = 16  # samples that are overfitted


def preflight(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int = 32,
    overfit_steps: int = 60,
    save: bool = True,
) -> PreflightReport:
    """Sends one batch through everything that training will do, and leaves model, optimizer and all seeds as they were.

    All values of the arrays are looked at; the first `batch_size` samples go forward and backward layer by layer,
    through an update of the model's own optimizer with its metrics, through a file and back, and some of them are
    trained on alone with a fresh Adam, which a model that can learn must manage. What is found:

    - errors: NaN and infinity in the data; labels out of range, negative, fractional, one-hot or sparse where the
      other is needed; probabilities where the loss takes logits, and logits where it takes probabilities; inputs by
      wrong names or in the wrong order; nothing trainable; a rule of the optimizer that takes no variable; a layer,
      loss, gradient or update that is not finite; a step that raises; a file that does not give the same model back;
    - warnings: weights without a gradient, or with one of zero; one batch that cannot be overfitted;
      BatchNormalization that trains among frozen layers; targets whose shape is not the output's; exclusions of the
      optimizer that match nothing, and masks that hold all of a weight at zero;
    - notes: frozen layers, no seed, dictionaries in another order than the inputs.

    Labels are compared with the output if the loss is one of Keras's crossentropies, or one of the losses of several
    outputs is. Afterwards every variable, Keras's and the model's seeds, and Python's and NumPy's random numbers are
    bit for bit what they were (an optimizer and metrics that were not built are built, as `fit` does). On TensorFlow
    only, under MirroredStrategy, too.

    Args:
        model: a compiled model.
        x, y, sample_weight: arrays or structures of them, as `fit` takes; the whole of them if they fit in memory.
        batch_size: samples that go through everything.
        overfit_steps: updates in which a batch is to be overfitted; 0 leaves it out.
        save: whether to save and load the model.

    Returns:
        A report: print it with `show()`, raise with `check()`.

    Raises:
        ValueError: for a model that is not compiled; on another backend than TensorFlow.

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> report = preflight(model, np.ones((8, 2), "float32"), np.full(8, 3), overfit_steps=0, save=False)
    >>> sorted(report.names("error"))
    ['labels-out-of-range', 'logits-taken-for-probabilities']
    """
    needs_tensorflow("preflight")
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError("`model` must be compiled with an optimizer before `preflight`.")
    size = checks.integer("batch_size", batch_size, at_least=1)
    steps = checks.integer("overfit_steps", overfit_steps, at_least=0)
    with random_numbers_kept():
        return PreflightReport.of(_findings(model, (x, y, sample_weight), size, steps, save))


def _findings(model: Any, given: tuple[Any, Any, Any], size: int, steps: int, save: bool) -> list[Finding]:
    x, y, _ = given
    found = list(data_checks.values(named_arrays(given)))
    found += model_checks.seeds()
    found += _inputs(model, x)
    if any(f.severity == "error" and f.name.startswith("inputs") for f in found):
        return found
    batch = tuple(
        keras.tree.map_structure(lambda v: None if v is None else np.asarray(v[:size]), part) for part in given
    )
    ready, failure = _built(model, batch)
    found += failure
    if ready:
        found += model_checks.frozen(model)
        found += model_checks.rules(model)
    if ready and model.trainable_weights:
        with unchanged(model):
            found += _labels(model, batch, y)
        if not any(f.severity == "error" and f.name.startswith("labels") for f in found):
            with unchanged(model):
                found += _layer_by_layer(model, batch)
            with unchanged(model):
                found += _update(model, batch)
        if save:
            with unchanged(model):
                found += _file(model, batch)
        if steps and not any(f.severity == "error" for f in found):
            with unchanged(model):
                found += _overfit(model, batch, steps)
    return found


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Python's, NumPy's and Keras's own generators are in the end what they were."""
    seeds, of_python, of_numpy = backend.global_seeds(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        if seeds is None:
            backend.forget_global_seeds()


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """What happens inside leaves no trace in a built and compiled model, nor in any source of random numbers."""
    seeds_before = backend.global_seeds()
    facts, values = snapshot.take(model)
    arrays = snapshot.pack(facts, values)
    kept = {name: getattr(model, name) for name in _KEPT}
    own_step = vars(model).get("train_step")
    try:
        with backend.names_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say, `fit` will say again
            yield
    finally:
        if seeds_before is None:
            backend.forget_global_seeds()
        for name, value in kept.items():
            setattr(model, name, value)
        if own_step is not None:
            object.__setattr__(model, "train_step", own_step)
        snapshot.put_back(facts, arrays, model, with_metrics=True)


def _built(model: Any, batch: Any) -> tuple[bool, list[Finding]]:
    try:
        kept = [part for part in batch if part is not None]
        data = tuple(keras.tree.map_structure(_symbol, part) for part in kept)
        backend.build_from(model, data if len(kept) > 1 else (data[0],))
        build_optimizer(model)
    except Exception as error:
        rule = "rules" in str(error) or "pattern" in str(error)
        return False, [Finding("error", "rule-without-variable" if rule else "step-fails", _words(error))]
    return True, []


def _symbol(value: Any) -> Any:
    return keras.KerasTensor((None, *value.shape[1:]), keras.backend.standardize_dtype(value.dtype))


def _inputs(model: Any, x: Any) -> Iterator[Finding]:
    if not isinstance(model, (keras.Sequential, keras.models.Model)) or not getattr(model, "inputs", None):
        return
    try:
        structure = model.input
    except (AttributeError, ValueError):
        return
    names = keras.tree.map_structure(lambda tensor: tensor.name, structure)
    shapes = {tensor.name: tuple(tensor.shape[1:]) for tensor in model.inputs}
    yield from data_checks.inputs(x, names, shapes)


def _labels(model: Any, batch: Any, y: Any) -> Iterator[Finding]:
    outputs = keras.tree.flatten(model(batch[0], training=False) if backend.takes_training(model) else model(batch[0]))
    targets, losses = keras.tree.flatten(y), keras.tree.flatten(model.loss)
    if len(losses) == 1:
        losses = losses * len(outputs)
    if y is None or not len(outputs) == len(targets) == len(losses):
        return
    for number, (loss, target, output) in enumerate(zip(losses, targets, outputs, strict=True)):
        name = "y" if len(outputs) == 1 else f"y[{number}]"
        kind, from_logits = _loss(loss)
        if kind is not None:
            ignored = getattr(loss, "ignore_class", None)
            if ignored is not None:
                target = np.where(np.asarray(target) == ignored, 0, target)
            yield from data_checks.labels(name, kind, from_logits, target, ops.convert_to_numpy(output))


def _loss(loss: Any) -> tuple[str | None, bool]:
    """The name of the loss's class, and whether it takes logits."""
    try:
        found = keras.losses.get(loss)
    except ValueError:
        return None, False
    if isinstance(found, keras.losses.Loss):
        return type(found).__name__, bool(getattr(found, "from_logits", False))
    name = "".join(word.capitalize() for word in getattr(found, "__name__", "").split("_"))
    return name, False


def _layer_by_layer(model: Any, batch: Any) -> Iterator[Finding]:
    data = tuple(part for part in batch if part is not None)
    try:
        found = replay(model, data, [ops.convert_to_numpy(v) for v in model.variables])
    except Exception as error:
        yield Finding("error", "step-fails", f"the forward and backward pass raises {_words(error)}")
        return
    layers = found["layers"]
    bad = next((about["name"] for about in layers if any(map(is_bad, about["outputs"]))), None)
    if bad is not None:
        yield Finding("error", "forward-not-finite", f"the first output that is not finite is that of layer {bad}")
    elif is_bad(found["loss"]):
        yield Finding("error", "loss-not-finite", "the outputs are finite, and the loss of them is not")
    gradients = {path: about for layer in layers for path, about in layer["weight_gradients"].items()}
    broken = [path for path, about in gradients.items() if is_bad(about)]
    if broken and bad is None:
        yield Finding("error", "gradient-not-finite", f"gradients that are not finite: {_few(broken)}")
    own = {id(v) for layer in backend.flat_layers(model) for v in backend.variables_of_its_own(layer)}
    none = [variable_path(v) for v in model.trainable_variables if id(v) in own and variable_path(v) not in gradients]
    if none:
        yield Finding("warning", "no-gradient", f"the loss does not depend on {_few(none)}: are they used?")
    zero = [path for path, about in gradients.items() if about.get("zeros") == 1.0]
    if zero:
        yield Finding(
            "warning", "zero-gradient", f"the gradients of {_few(zero)} are all 0: dead units, or a cut path?"
        )


def _update(model: Any, batch: Any) -> Iterator[Finding]:
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    try:
        model.reset_metrics()
        logs = model.train_on_batch(*batch[:2], sample_weight=batch[2], return_dict=True)
    except Exception as error:
        yield Finding("error", "step-fails", f"the train step raises {_words(error)}")
        return
    bad = [name for name, value in logs.items() if not np.isfinite(np.asarray(value, "float64")).all()]
    if bad:
        yield Finding("error", "metrics-not-finite", f"not finite after one batch: {_few(bad)}")
    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    broken = [variable_path(v) for v, a in zip(model.trainable_variables, after, strict=True) if not _finite(a)]
    if broken:
        yield Finding("error", "update-not-finite", f"one update makes these not finite: {_few(broken)}")
    window = getattr(getattr(model.optimizer, "inner_optimizer", model.optimizer), "gradient_accumulation_steps", None)
    if not window and all(np.array_equal(b, a) for b, a in zip(before, after, strict=True)):
        yield Finding(
            "warning", "no-update",
            "one update changes no weight: the learning rate may be 0 (a warm-up that begins there), or a loss scale "
            "too high for the first step",
        )  # fmt: skip


def _file(model: Any, batch: Any) -> Iterator[Finding]:
    def outputs(of: Any) -> list[Any]:
        made = of(batch[0], training=False) if backend.takes_training(of) else of(batch[0])
        return [ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(made)]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        try:
            model.save(path)
            loaded = keras.models.load_model(path)
            pairs = zip(outputs(model), outputs(loaded), strict=True)
            same = all(np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in pairs)
        except Exception as error:
            yield Finding(
                "error", "file-fails",
                f"saving and loading raises {_words(error)}: register your classes with "
                "keras.saving.register_keras_serializable, and give them get_config",
            )  # fmt: skip
            return
    if not same:
        yield Finding("error", "file-differs", "the model that was saved and loaded gives other outputs for one batch")


def _overfit(model: Any, batch: Any, steps: int) -> Iterator[Finding]:
    few = tuple(keras.tree.map_structure(lambda v: None if v is None else v[:_FEW], part) for part in batch)
    with model.distribute_strategy.scope():
        optimizer = keras.optimizers.Adam(3e-3)
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.optimizer, model.train_function = optimizer, None
    losses = []
    for _ in range(steps):
        model.reset_metrics()
        logs = model.train_on_batch(*few[:2], sample_weight=few[2], return_dict=True)
        losses.append(float(logs["loss"]))
    first, last = losses[0], min(losses[-5:])
    if not last < first - 0.1 * abs(first):
        yield Finding(
            "warning", "no-overfitting",
            f"trained on {_FEW} samples alone for {steps} steps of Adam, the loss went from {first:.4g} to {last:.4g}: "
            "labels that do not belong to the inputs, a cut path, or inputs of a wrong scale",
        )  # fmt: skip


def _finite(array: Any) -> bool:
    return bool(np.isfinite(array.astype("float64")).all())


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _few(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")

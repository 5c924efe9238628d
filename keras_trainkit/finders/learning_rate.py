"""The learning rate, from a range test on the model as it is."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import checks
from keras_trainkit.finders.kept import Surroundings, reseed
from keras_trainkit.finders.learning_rate_report import LearningRates, joined
from keras_trainkit.finders.learning_rate_rules import COMBINED, RULES
from keras_trainkit.finders.sweep import Curve, Range, Sweep

_FOREVER = 1_000_000  # epochs; the sweep ends the `fit`


def learning_rate(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    class_weight: dict[int, float] | None = None,
    minimum: float = 1e-7,
    maximum: float = 10.0,
    steps: int = 100,
    seeds: int | list[int] = 3,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    rule: str = COMBINED,
) -> LearningRates:
    """Suggests a learning rate by a range test: training with rates that rise from update to update.

    Smith, 2015, arXiv:1506.01186. The rate rises by equal ratios, once for each update, and takes the place of the
    optimizer's number or schedule. Too low a rate leaves the loss where it is, a good one lowers it, too high a one has
    it diverge, and there the sweep ends. It is `fit` that trains, so that whatever works there works here: strategies,
    accumulation, mixed precision, `steps_per_execution`, a `train_step` of your own, every kind of data. A schedule's
    shape has no part in it: what is found is the highest rate of a schedule, to be reached after a warm-up.

    Afterwards nothing is left of it, to the bit: weights, slots, iterations, accumulation windows, loss scale, metrics,
    seeds (of random layers, of Keras, NumPy, Python and of TensorFlow's operations), the learning rate, the compiled
    train function, and the position of the kit's data. Only what was not there before (the variables of an optimizer
    or of metrics that had not been built) has been made. Callbacks are not asked.

    Several sweeps differ in how `fit` shuffles arrays, and how a dataset shuffles that was given no seed; one whose
    order is fixed gives each the same curve. A generator must have enough batches for all sweeps, and stays where they
    left it. Optimizers that estimate their rate themselves (Prodigy, D-Adaptation, COCOB) have nothing to find here.

    The rules, each on the smoothed losses of a sweep without the first tenth of them:

    - `"minimum/10"`: a tenth of the rate with the lowest loss.
    - `"valley"`: the middle of the longest fall.
    - `"steepest"`: where the loss falls fastest.
    - `"slide"`: the last rate before the slope changes for good.
    - `"combined"`: their geometric mean.

    Args:
        model: a compiled model. One of several optimizers (Keras's `MultiOptimizer`) keeps the ratio of their rates,
            and the rates found are those of the one with the highest; factors for groups of weights in one optimizer
            stay, too.
        x: what `fit` takes: arrays, a `tf.data.Dataset`, `data.Batches`, a generator and so on.
        y: targets, where `x` holds none.
        sample_weight: weights of the samples, likewise.
        batch_size: as in `fit`, for arrays.
        steps_per_epoch: as in `fit`.
        class_weight: as in `fit`.
        minimum: the first rate, above 0.
        maximum: the last one.
        steps: updates of a sweep, at least 10.
        seeds: how many sweeps, at least 1, or a list of the seeds by which they shuffle.
        smoothing: share of the past in the moving average of the losses, at least 0 and below 1.
        divergence: a sweep ends where the smoothed loss is above its first value, and above its best by
            `divergence - 1` times the size of that; above 1.
        rule: which one `suggestion` goes by.

    Returns:
        `LearningRates`: `suggestion`, `suggestions` by rule, `by_rule` with their spread, `curves`, `plot()`, and a
        table when printed.

    Raises:
        ValueError: for a value out of its range, a model that is not compiled, or if the data, or finite losses, end
            before there are three updates.
        TypeError: for a value of the wrong kind.

    Example:

    >>> import numpy as np, keras
    >>> from keras_trainkit import finders, optimizers
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizers.SGD(0.01), "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    >>> found = finders.learning_rate(model, x, x.sum(1, keepdims=True), minimum=1e-4, steps=50, seeds=2)
    >>> 1e-3 < found.suggestion < 1, sorted(found.suggestions)
    (True, ['combined', 'minimum/10', 'slide', 'steepest', 'valley'])
    """
    swept = Range(minimum, maximum, steps, smoothing, divergence).checked()
    checks.one_of("rule", rule, [COMBINED, *RULES])
    numbers = _numbers(seeds)
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a compiled Keras model. Received: model={model!r}")
    if not model.compiled or model.optimizer is None:
        raise ValueError(f"`model` must be compiled with an optimizer. Received: model={model.name!r}, which is not")
    surroundings, sweep, curves = Surroundings(model, x), Sweep(swept), list[Curve]()
    try:
        for seed in numbers:
            reseed(seed)
            model.fit(
                x, y, sample_weight=sample_weight, batch_size=batch_size, steps_per_epoch=steps_per_epoch,
                class_weight=class_weight, epochs=_FOREVER, callbacks=[sweep], verbose=0,
            )  # fmt: skip
            curves.append(sweep.curve(seed))
    finally:
        sweep.restore()
        surroundings.put_back()
    return joined(curves, rule)


def _numbers(seeds: Any) -> list[int]:
    """A list of seeds, or as many as were asked for."""
    if isinstance(seeds, (list, tuple)):
        if not seeds:
            raise ValueError(f"`seeds` must be at least 1, or a list of seeds. Received: seeds={seeds!r}")
        return [checks.integer("seeds", seed, at_least=0) for seed in seeds]
    return list(range(checks.integer("seeds", seeds, at_least=1)))

"""Vetoes: updates that are not trusted are left out, element by element or as a whole step."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.guard import Guard
from keras_trainkit.core.numerics import squared_norm
from keras_trainkit.core.transform import Context, LeafContext, State, Tensor, Transform, register_transform


@register_transform
class Cautious(Transform):
    """Keeps only those elements of the displacement that go downhill on this step's gradient.

    The kept elements of each variable are scaled by one over their share (at least 0.001), as in the authors'
    C-AdamW and timm; the authors' C-Lion normalises otherwise. It belongs in `after`, behind the learning rate.

    Reference: Liang et al., 2024, arXiv:2411.16085.
    """

    scope = "variable"

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        mask = ops.cast(update * context.gradient < 0, update.dtype)
        return update * (mask / ops.maximum(ops.mean(mask), 1e-3)), state


@register_transform
class SkipNonfinite(Guard):
    """Leaves out every step whose gradients hold a NaN or an infinity, on any replica.

    Such a step changes nothing: no variable, no moment, no average, and `iterations` stays. With accumulation the
    window's mean is judged, so one bad micro-batch costs its window. The optimizer's `guard_memories()` tells
    `skipped`, the steps refused so far, and `consecutive`, those since the last finite one. Unlike
    `precision.LossScaleOptimizer` it changes no loss scale; with one, it sees the unscaled gradients that passed there.

    Args:
        max_consecutive: refuse at most so many steps in a row, and then let the bad one through, so that a model that
            is lost shows it (optax's `apply_if_finite` does so); None refuses them all.
    """

    max_consecutive: int | None = None

    def validate(self) -> None:
        if self.max_consecutive is not None:
            checks.integer("max_consecutive", self.max_consecutive, at_least=1)

    def memory(self) -> dict[str, str]:
        return {"skipped": "int", "consecutive": "int"}

    def judge(
        self, gradients: list[Tensor], memory: dict[str, Tensor], context: Context
    ) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in gradients]))
        consecutive = memory["consecutive"]
        admitted = finite
        if self.max_consecutive is not None:
            admitted = ops.logical_or(finite, consecutive >= self.max_consecutive)
        new = {
            "skipped": _count(memory["skipped"], ops.logical_not(admitted)),
            "consecutive": ops.where(finite, ops.zeros_like(consecutive), consecutive + 1),
        }
        return gradients, admitted, new


@register_transform
class SkipSpikes(Guard):
    """Leaves out every step whose joint gradient norm is more than `factor` times its running mean.

    A refused step changes nothing, as with `SkipNonfinite`, and a norm that is not finite is refused, too. The mean is
    the plain mean at first and an exponential one later; a refused norm enters it as `factor` times the mean, so a
    level that has risen for good is accepted after some steps. `guard_memories()` tells `mean`, `seen` and `skipped`.
    Open training codes have the same idea with a window and deviations (OLMo's skip-step optimizer: 6 deviations
    above the last 128 norms).

    Args:
        factor: above 1.
        decay: of the running mean, from 0 to below 1.
        warmup: the finite steps that only feed the mean, at least 1.
    """

    factor: float = 4.0
    decay: float = 0.99
    warmup: int = 100

    def validate(self) -> None:
        checks.number("factor", self.factor, above=1)
        checks.number("decay", self.decay, at_least=0, below=1)
        checks.integer("warmup", self.warmup, at_least=1)

    def memory(self) -> dict[str, str]:
        return {"seen": "int", "skipped": "int", "mean": "float"}

    def judge(
        self, gradients: list[Tensor], memory: dict[str, Tensor], context: Context
    ) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        seen, mean = memory["seen"], memory["mean"]
        norm, finite = _norm(gradients, mean.dtype)
        limit = self.factor * mean
        # Without a positive mean there is no measure: gradients of zero must not lock the optimizer for ever.
        ready = ops.logical_and(seen >= self.warmup, mean > 0)
        admitted = ops.logical_and(finite, ops.logical_or(ops.logical_not(ready), norm <= limit))
        weight = ops.maximum(1 / ops.cast(seen + 1, mean.dtype), 1 - self.decay)
        counted = ops.where(ready, ops.minimum(norm, limit), norm)
        new = {
            "seen": _count(seen, finite),
            "skipped": _count(memory["skipped"], ops.logical_not(admitted)),
            "mean": ops.where(finite, mean + weight * (counted - mean), mean),
        }
        return gradients, admitted, new


@register_transform
class ZClip(Guard):
    """Shortens gradients whose joint norm is an outlier of its own history, by its z-score.

    With the running mean m and deviation s of the norm, z = (norm - m) / s. Where z > threshold, all gradients are
    scaled to the joint norm m + threshold^2 s / z: the further out, the shorter. What is left enters the running
    values. No step is refused: a norm that is not finite passes untouched and uncounted, for `SkipNonfinite` behind
    it. Equal to the authors' code with `max_grad_norm=None`. `guard_memories()` tells `mean`, `variance`, `seen` and
    `clipped`.

    Reference: Kumar et al., 2025, arXiv:2504.02507.

    Args:
        threshold: the z-score above which gradients are shortened, above 0.
        decay: of the running mean and variance, from 0 to below 1.
        warmup: the finite steps whose mean and variance are the first ones, at least 2; nothing is shortened there.
        epsilon: at least 0; added to the deviation in the z-score.
    """

    threshold: float = 2.5
    decay: float = 0.97
    warmup: int = 25
    epsilon: float = 1e-6

    def validate(self) -> None:
        checks.number("threshold", self.threshold, above=0)
        checks.number("decay", self.decay, at_least=0, below=1)
        checks.integer("warmup", self.warmup, at_least=2)
        checks.number("epsilon", self.epsilon, at_least=0)

    def memory(self) -> dict[str, str]:
        return {"seen": "int", "clipped": "int", "mean": "float", "variance": "float"}

    def judge(
        self, gradients: list[Tensor], memory: dict[str, Tensor], context: Context
    ) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        seen, mean, variance = memory["seen"], memory["mean"], memory["variance"]
        norm, finite = _norm(gradients, mean.dtype)
        ready = seen >= self.warmup
        deviation = ops.sqrt(variance)
        score = (norm - mean) / ops.maximum(deviation + self.epsilon, 1e-30)
        spike = ops.logical_and(ops.logical_and(finite, ready), score > self.threshold)
        limit = mean + self.threshold**2 * deviation / ops.maximum(score, self.threshold)
        kept = ops.where(spike, limit, norm)
        later = _moving_moments(kept, mean, variance, self.decay)
        early = _plain_moments(kept, mean, variance, ops.cast(seen + 1, mean.dtype))
        new = {
            "seen": _count(seen, finite),
            "clipped": _count(memory["clipped"], spike),
            "mean": ops.where(finite, ops.where(ready, later[0], early[0]), mean),
            "variance": ops.where(finite, ops.where(ready, later[1], early[1]), variance),
        }
        ratio = ops.where(spike, kept / ops.where(spike, norm, 1), 1)
        return [g * ops.cast(ratio, g.dtype) for g in gradients], ops.convert_to_tensor(True), new


def _norm(gradients: list[Tensor], dtype: Any) -> tuple[Tensor, Tensor]:
    """The joint norm of all gradients, and whether it is finite."""
    norm = ops.cast(ops.sqrt(squared_norm(gradients)), dtype)
    return norm, ops.isfinite(norm)


def _count(counter: Tensor, happened: Tensor) -> Tensor:
    return counter + ops.cast(happened, counter.dtype)


def _moving_moments(value: Tensor, mean: Tensor, variance: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Exponential mean and variance; the variance is taken about the new mean, as in the paper."""
    mean = decay * mean + (1 - decay) * value
    return mean, decay * variance + (1 - decay) * ops.square(value - mean)


def _plain_moments(value: Tensor, mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of `count` values from those of one fewer (Welford, 1962): no large squares to subtract."""
    new = mean + (value - mean) / count
    return new, variance + ((value - mean) * (value - new) - variance) / count

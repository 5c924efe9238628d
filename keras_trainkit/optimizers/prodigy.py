"""Prodigy: Adam that estimates its own learning rate."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import chain, checks
from keras_trainkit.optimizers.estimating import EstimatingOptimizer, checked_growth_rate
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByProdigy


@keras.saving.register_keras_serializable("keras_trainkit")
class Prodigy(EstimatingOptimizer):
    """Adam whose rate is an estimate of the distance to the solution, which grows as the weights travel.

    One estimate d for the whole model, from `d0` on. With a = d learning_rate (a is debiased as Adam's rate with
    `use_bias_correction`) and b = beta_3:

    - n = b n + (d / d0) a sum(g (w_0 - w)), and s = b s + (d / d0) a g;
    - m = beta_1 m + (1 - beta_1) d g, and v = beta_2 v + (1 - beta_2) d^2 g^2;
    - d' = max(d, d_coef n / sum(abs(s)));
    - w = w - a (m / (sqrt(v) + d' epsilon) + weight_decay w).

    w_0 is where the first gradient finds a variable. Leave `learning_rate` at 1; a schedule (cosine to 0) multiplies
    the estimate. `estimated_rate()` tells d, `statistics()` and `TrainingMonitor` as well. Accumulation, clipping and
    loss scales come before the estimate. State: 16 bytes per parameter (8 + 8 / slice_p), and 8 per variable.

    Equal to the authors' prodigyopt; optax's equals it with `use_bias_correction=True`. They differ from here in one
    case: a variable that had gradients and has none in a step still counts in prodigyopt's n and not in its s; here
    in neither.

    Reference: Mishchenko and Defazio, 2023, arXiv:2306.06101.

    Args:
        learning_rate: multiplies the estimate; a float, by default 1, or a schedule.
        weight_decay: at least 0; each update takes d learning_rate weight_decay of the weights off, as the authors do
            (other optimizers' `weight_decay` knows no d).
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        beta_3: the decay of the estimate's sums, from 0 to below 1; None for the root of `beta_2`.
        epsilon: above 0; added to the root, times d.
        d0: the first estimate, above 0; far below any good rate.
        d_coef: multiplies the estimate, above 0; the authors' way to tune: 0.5 to 2.
        growth_rate: by how much the estimate may grow in a step, at least 1; None does not limit it.
        use_bias_correction: debias the moments as Adam does.
        safeguard_warmup: leave the learning rate out of s; for schedules that begin with a warmup.
        slice_p: estimate from every so many elements of a variable, at least 1; the authors name 11.
        decouple: False adds the decay to the gradient instead (an L2 penalty).
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Prodigy(weight_decay=0.01).estimated_rate()
    1e-06
    """

    info = Info(year=2023, paper="arXiv:2306.06101", state_bytes=16)
    decays_inside: ClassVar = True

    def __init__(
        self,
        learning_rate: Any = 1.0,
        weight_decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        beta_3: float | None = None,
        epsilon: float = 1e-8,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float | None = None,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        slice_p: int = 1,
        decouple: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.beta_3 = None if beta_3 is None else checks.number("beta_3", beta_3, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.d0 = checks.number("d0", d0, above=0)
        self.d_coef = checks.number("d_coef", d_coef, above=0)
        self.growth_rate = checked_growth_rate(growth_rate)
        self.use_bias_correction = checks.boolean("use_bias_correction", use_bias_correction)
        self.safeguard_warmup = checks.boolean("safeguard_warmup", safeguard_warmup)
        self.slice_p = checks.integer("slice_p", slice_p, at_least=1)
        self.decouple = checks.boolean("decouple", decouple)

    def transform(self) -> Any:
        return chain(
            ScaleByProdigy(
                self.beta_1,
                self.beta_2,
                self.beta_3,
                self.epsilon,
                self.d0,
                self.d_coef,
                self.growth_rate,
                self.use_bias_correction,
                self.safeguard_warmup,
                self.slice_p,
                self.weight_decay or 0.0,
                self.decouple,
                self.weight_decay_exclude,
            )
        )

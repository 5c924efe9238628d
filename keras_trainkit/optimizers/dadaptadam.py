"""DAdaptAdam: Adam with D-Adaptation."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import chain, checks
from keras_trainkit.optimizers.estimating import EstimatingOptimizer, checked_growth_rate
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByDAdaptAdam


@keras.saving.register_keras_serializable("keras_trainkit")
class DAdaptAdam(EstimatingOptimizer):
    """Adam whose rate is a lower bound of the distance to the solution, which grows as the gradients agree.

    One bound d for the whole model, from `d0` on. With a = d learning_rate (debiased as Adam's rate with
    `use_bias_correction`), b = sqrt(beta_2), and the sums over all elements of all variables:

    - n = b n + (1 - b) a sum(g s / (sqrt(v) + epsilon)), then s = b s + (1 - b) a g;
    - m = beta_1 m + (1 - beta_1) a g, and v = beta_2 v + (1 - beta_2) g^2;
    - w = w - m / (sqrt(v) + epsilon) - a weight_decay w;
    - d = max(d, n / ((1 - b) sum(abs(s)))).

    Leave `learning_rate` at 1; a schedule multiplies the bound. `estimated_rate()` tells d, `statistics()` and
    `TrainingMonitor` as well. `Prodigy` is its authors' successor and finds larger rates sooner. State: 12 bytes per
    parameter, and 8 per variable.

    Equal to the authors' dadaptation (its layer scales are left out); optax's equals it with
    `use_bias_correction=True`. A variable that had gradients and has none in a step still counts in dadaptation's n
    and not in its s; here in neither.

    Reference: Defazio and Mishchenko, 2023, arXiv:2301.07733.

    Args:
        learning_rate: multiplies the bound; a float, by default 1, or a schedule.
        weight_decay: at least 0; each update takes d learning_rate weight_decay of the weights off, as the authors do
            (other optimizers' `weight_decay` knows no d).
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, above 0 and below 1.
        epsilon: above 0; added to the root.
        d0: the first bound, above 0; far below any good rate.
        growth_rate: by how much the bound may grow in a step, at least 1; None does not limit it.
        use_bias_correction: debias the moments as Adam does.
        decouple: False adds the decay to the gradient instead (an L2 penalty, and dadaptation's default).
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.DAdaptAdam(d0=1e-5).estimated_rate()
    1e-05
    """

    info = Info(year=2023, paper="arXiv:2301.07733", state_bytes=12)
    decays_inside: ClassVar = True

    def __init__(
        self,
        learning_rate: Any = 1.0,
        weight_decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        d0: float = 1e-6,
        growth_rate: float | None = None,
        use_bias_correction: bool = False,
        decouple: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, above=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.d0 = checks.number("d0", d0, above=0)
        self.growth_rate = checked_growth_rate(growth_rate)
        self.use_bias_correction = checks.boolean("use_bias_correction", use_bias_correction)
        self.decouple = checks.boolean("decouple", decouple)

    def transform(self) -> Any:
        return chain(
            ScaleByDAdaptAdam(
                self.beta_1,
                self.beta_2,
                self.epsilon,
                self.d0,
                self.growth_rate,
                self.use_bias_correction,
                self.weight_decay or 0.0,
                self.decouple,
                self.weight_decay_exclude,
            )
        )

"""Schedule-Free AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import AddDecay, ScaleBySquares, ScheduleFree


@keras.saving.register_keras_serializable("keras_trainkit")
class ScheduleFreeAdamW(TransformOptimizer):
    """AdamW that needs no schedule: it trains at y, a blend of fast weights z and their average x.

    With the gradient g at y and v the debiased average of its squares,
    z = z - learning_rate (g / (sqrt(v) + epsilon) + weight_decay y); x averages the z's, and
    y = (1 - beta_1) z + beta_1 x, which takes the place of Adam's momentum. The variables hold y while they train. x
    is what to evaluate, save and deploy: `callbacks.EvaluationWeights` puts it in. State: 8 bytes per parameter (z
    and v; x follows from y and z), 12 for half-precision weights. Equal to the authors' package schedulefree; optax
    warms up from 0; Keras's optimizer of this name ignores `beta_1`, starts z at 0 in `fit`, and cannot give x.

    Give it a constant learning rate, 1 to 10 times AdamW's, and a warm-up. With BatchNormalization, have
    `EvaluationWeights(refresh=...)` recompute the statistics for x.

    Reference: Defazio et al., 2024, arXiv:2405.15682.

    Args:
        learning_rate: the step size.
        beta_1: how far y is from z towards x, above 0 and below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: above 0; added to the debiased root.
        warmup_steps: updates in which the rate grows linearly, from 1/warmup_steps of it on.
        r: z of update t counts as t to this power in the average, at least 0.
        weight_lr_power: and as the largest rate so far to this power, at least 0.
        **options: the arguments of `core.TransformOptimizer`. `weight_decay` is decoupled from v and taken at y.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.ScheduleFreeAdamW(2.5e-3, warmup_steps=100, weight_decay=0.01).beta_1
    0.9
    """

    info = Info(year=2024, paper="arXiv:2405.15682", state_bytes=8, constant_rate=True)

    decays_inside: ClassVar[Any] = True

    def __init__(
        self,
        learning_rate: Any = 0.0025,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, above=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, at_least=0)
        self.r = checks.number("r", r, at_least=0)
        self.weight_lr_power = checks.number("weight_lr_power", weight_lr_power, at_least=0)

    def transform(self) -> Any:
        return chain(
            ScaleBySquares(self.beta_2, self.epsilon),
            AddDecay(self.weight_decay or 0.0, self.weight_decay_exclude),
            ScheduleFree(self.beta_1, self.warmup_steps, self.r, self.weight_lr_power),
        )

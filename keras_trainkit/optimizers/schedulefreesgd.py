"""Schedule-Free SGD."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import AddDecay, ScheduleFree


@keras.saving.register_keras_serializable("keras_trainkit")
class ScheduleFreeSGD(TransformOptimizer):
    """SGD that needs no schedule: it trains at y, a blend of plain SGD's weights z and their average x.

    z = z - learning_rate (g + weight_decay y), with the gradient g at y; x averages the z's, and
    y = (1 - momentum) z + momentum x. The variables hold y while they train. x is what to evaluate, save and deploy:
    `callbacks.EvaluationWeights` puts it in. State: 4 bytes per parameter (z; x follows from y and z), 8 for
    half-precision weights. Equal to the authors' package schedulefree; optax warms up from 0 instead of 1/warmup_steps.

    Give it a constant learning rate, higher than SGD's (the authors take 10 to 50 times SGD's with momentum), and the
    warm-up alone. With BatchNormalization, have `EvaluationWeights(refresh=...)` recompute the statistics for x.

    Reference: Defazio et al., 2024, arXiv:2405.15682.

    Args:
        learning_rate: the step size.
        momentum: how far y is from z towards x, above 0 and below 1.
        warmup_steps: updates in which the rate grows linearly, from 1/warmup_steps of it on.
        r: z of update t counts as t to this power in the average, at least 0.
        weight_lr_power: and as the largest rate so far to this power, at least 0.
        **options: the arguments of `core.TransformOptimizer`. `weight_decay` is L2 decay at y, as the authors have it.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.ScheduleFreeSGD(1.0, warmup_steps=100).momentum
    0.9
    """

    info = Info(year=2024, paper="arXiv:2405.15682", state_bytes=4, constant_rate=True)

    decays_inside: ClassVar[Any] = True

    def __init__(
        self,
        learning_rate: Any = 1.0,
        momentum: float = 0.9,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.momentum = checks.number("momentum", momentum, above=0, below=1)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, at_least=0)
        self.r = checks.number("r", r, at_least=0)
        self.weight_lr_power = checks.number("weight_lr_power", weight_lr_power, at_least=0)

    def transform(self) -> Any:
        average = ScheduleFree(self.momentum, self.warmup_steps, self.r, self.weight_lr_power)
        return chain(AddDecay(self.weight_decay or 0.0, self.weight_decay_exclude), average)

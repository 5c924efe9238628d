"""Gradient noise that fades."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks, randomness
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.transform import Context, State, Tensor, Transform, register_transform


@register_transform
class GradientNoise(Transform):
    """Adds Gaussian noise of variance eta / (1 + t)^gamma to the gradients, with t updates done before.

    It belongs in `before`. The noise is a pure function of the seed, the update's number and the variable's position:
    the same on every replica, and the same after a file was loaded as without. optax's `add_noise` has the same
    variance.

    Reference: Neelakantan et al., 2015, arXiv:1511.06807.

    Args:
        eta: the first variance, at least 0; the paper tries 0.01, 0.3 and 1.
        gamma: how fast it fades, at least 0; 0.55 in the paper.
        seed: an int.
        order: the paths of the model's variables; filled in when the optimizer is built.
    """

    eta: float = 0.01
    gamma: float = 0.55
    seed: int = 0
    order: list | None = None

    def validate(self) -> None:
        checks.number("eta", self.eta, at_least=0)
        checks.number("gamma", self.gamma, at_least=0)
        checks.integer("seed", self.seed)

    def fitted(self, variables: list[Any]) -> Transform:
        # By position, because layers may have other names in the process that goes on with a saved model.
        return GradientNoise(self.eta, self.gamma, self.seed, [variable_path(v) for v in variables])

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        order = context.paths if self.order is None else self.order
        noisy = []
        for update, path in zip(updates, context.paths, strict=True):
            deviation = self.eta**0.5 * ops.cast(context.step, update.dtype) ** (-self.gamma / 2)
            noise = randomness.normal(update.shape, self.seed, context.step, order.index(path), update.dtype)
            noisy.append(update + deviation * noise)
        return noisy, states

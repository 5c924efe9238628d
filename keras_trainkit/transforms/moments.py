"""Directions from running moments of the gradient: the hearts of the adaptive optimizers."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.numerics import constant_like, one_minus_power
from keras_trainkit.core.transform import LeafContext, State, Tensor, Transform, register_transform


@register_transform
class ScaleByLearningRate(Transform):
    """Turns a direction into a displacement: minus the learning rate times the update."""

    scope = "element"

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return -context.learning_rate * update, state


@register_transform
class Scale(Transform):
    """The update times a constant `factor`."""

    scope = "element"

    factor: float

    def validate(self) -> None:
        checks.number("factor", self.factor)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        return self.factor * update, state

    def rate_group(self, path: str) -> tuple[str, float]:
        return "", self.factor


@register_transform
class Momentum(Transform):
    """Heavy-ball momentum of displacements: v = momentum v + u, and v is the displacement (Polyak, 1964).

    With `nesterov` the displacement is momentum v + u instead (Sutskever et al., 2013). It stands after
    `ScaleByLearningRate`, as in Keras; torch scales the trace afterwards, which differs when the rate changes.
    """

    scope = "element"

    momentum: float = 0.9
    nesterov: bool = False

    def validate(self) -> None:
        checks.number("momentum", self.momentum, at_least=0, at_most=1)
        checks.boolean("nesterov", self.nesterov)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"trace": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        trace = self.momentum * state["trace"] + update
        return (self.momentum * trace + update if self.nesterov else trace), {"trace": trace}


@register_transform
class ScaleByAdagrad(Transform):
    """g / sqrt(a + epsilon), where a sums the squared gradients from `initial_accumulator_value` on."""

    scope = "element"

    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def validate(self) -> None:
        checks.number("initial_accumulator_value", self.initial_accumulator_value, at_least=0)
        checks.number("epsilon", self.epsilon, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"accumulator": self.initial_accumulator_value}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        total = state["accumulator"] + ops.square(update)
        return update / ops.sqrt(total + self.epsilon), {"accumulator": total}


@register_transform
class ScaleByAdadelta(Transform):
    """g rms(d) / rms(g), where d are the directions given so far: the two averages decay by `rho`."""

    scope = "element"

    rho: float = 0.95
    epsilon: float = 1e-7

    def validate(self) -> None:
        checks.number("rho", self.rho, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"accumulated_grad": 0.0, "accumulated_delta_var": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        squares = blend(self.rho, state["accumulated_grad"], ops.square(update))
        direction = update * ops.sqrt(state["accumulated_delta_var"] + self.epsilon) / ops.sqrt(squares + self.epsilon)
        moved = blend(self.rho, state["accumulated_delta_var"], ops.square(direction))
        return direction, {"accumulated_grad": squares, "accumulated_delta_var": moved}


@register_transform
class ScaleByRms(Transform):
    """g / sqrt(v + epsilon), where v averages the squared gradients; `centered` takes the squared average off v."""

    scope = "element"

    rho: float = 0.9
    epsilon: float = 1e-7
    centered: bool = False

    def validate(self) -> None:
        checks.number("rho", self.rho, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, above=0)
        checks.boolean("centered", self.centered)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"velocity": 0.0, "average_gradient": 0.0} if self.centered else {"velocity": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        velocity = blend(self.rho, state["velocity"], ops.square(update))
        if not self.centered:
            return update / ops.sqrt(velocity + self.epsilon), {"velocity": velocity}
        mean = blend(self.rho, state["average_gradient"], update)
        # Rounding can take the variance of a constant gradient below zero, and its root to NaN.
        variance = ops.maximum(velocity - ops.square(mean), 0.0)
        return update / ops.sqrt(variance + self.epsilon), {"velocity": velocity, "average_gradient": mean}


@register_transform
class ScaleByAdam(Transform):
    """Debiased first moment over the root of the second (Kingma and Ba, 2014, arXiv:1412.6980).

    With `epsilon_hat`, `epsilon` is added before the second moment is debiased (the paper's efficient form, Keras);
    without, afterwards (the paper's algorithm 1, torch, optax). With `amsgrad` the largest second moment so far
    divides (Reddi et al., 2018, arXiv:1904.09237); the maximum is taken before debiasing, as in Keras and torch, and
    not after, as in optax.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False
    epsilon_hat: bool = True

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        checks.boolean("amsgrad", self.amsgrad)
        checks.boolean("epsilon_hat", self.epsilon_hat)

    def slots(self, variable: Any) -> dict[str, Any]:
        names = ["momentum", "velocity", "velocity_hat"] if self.amsgrad else ["momentum", "velocity"]
        return dict.fromkeys(names, 0.0)

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        momentum = blend(self.beta_1, state["momentum"], update)
        velocity = blend(self.beta_2, state["velocity"], ops.square(update))
        new = {"momentum": momentum, "velocity": velocity}
        if self.amsgrad:
            velocity = new["velocity_hat"] = ops.maximum(state["velocity_hat"], velocity)
        direction = debiased_direction(
            momentum, velocity, self.beta_1, self.beta_2, self.epsilon, context.step, self.epsilon_hat
        )
        return direction, new


@register_transform
class ScaleByRAdam(Transform):
    """Adam whose adaptive step waits until its variance is tractable (Liu et al., 2019, arXiv:1908.03265).

    While rho, the length of the approximated simple average, is at most `threshold`, the debiased first moment alone
    is the direction; afterwards it is scaled by the rectification term. `epsilon` is added before the debiasing, as
    in the authors' code and torch.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    threshold: float = 5.0

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, above=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)
        # Below 4 the rectification term has no real value.
        checks.number("threshold", self.threshold, at_least=4)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0, "velocity": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        momentum = blend(self.beta_1, state["momentum"], update)
        velocity = blend(self.beta_2, state["velocity"], ops.square(update))
        direction = rectified(momentum, velocity, self.beta_1, self.beta_2, self.epsilon, context.step, self.threshold)
        return direction, {"momentum": momentum, "velocity": velocity}


@register_transform
class ScaleByLaProp(Transform):
    """Momentum of normalized gradients (Ziyin et al., 2020, arXiv:2002.04839); the update is the displacement.

    Each gradient is divided by the root of the debiased second moment and multiplied by the learning rate before the
    momentum takes it, so the chain needs no `ScaleByLearningRate`.
    """

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-15

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)
        checks.number("epsilon", self.epsilon, at_least=0)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"velocity": 0.0, "trace": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        velocity = blend(self.beta_2, state["velocity"], ops.square(update))
        root = ops.sqrt(velocity / one_minus_power(self.beta_2, context.step))
        # A zero gradient at the first step would be 0 / 0 with so small an epsilon in float32.
        quotient = ops.where(root > 0, update / (ops.where(root > 0, root, ops.ones_like(root)) + self.epsilon), 0.0)
        trace = blend(self.beta_1, state["trace"], -context.learning_rate * quotient)
        return trace / one_minus_power(self.beta_1, context.step), {"velocity": velocity, "trace": trace}


@register_transform
class ScaleByLion(Transform):
    """The sign of a blend of momentum and gradient (Chen et al., 2023, arXiv:2302.06675)."""

    scope = "element"

    beta_1: float = 0.9
    beta_2: float = 0.99

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        checks.number("beta_2", self.beta_2, at_least=0, below=1)

    def slots(self, variable: Any) -> dict[str, Any]:
        return {"momentum": 0.0}

    def leaf(self, update: Tensor, parameter: Tensor, state: State, context: LeafContext) -> tuple[Tensor, State]:
        direction = ops.sign(blend(self.beta_1, state["momentum"], update))
        return direction, {"momentum": blend(self.beta_2, state["momentum"], update)}


def blend(decay: float, average: Tensor, value: Tensor) -> Tensor:
    """The next value of an exponential average."""
    return decay * average + (1 - decay) * value


def debiased_direction(
    momentum: Tensor, velocity: Tensor, beta_1: float, beta_2: float, epsilon: float, step: Tensor, epsilon_hat: bool
) -> Tensor:
    """Adam's direction from its two moments; `epsilon_hat` adds epsilon before the second one is debiased."""
    root = ops.sqrt(one_minus_power(beta_2, step))
    return (
        momentum
        * (root / one_minus_power(beta_1, step))
        / (ops.sqrt(velocity) + (epsilon if epsilon_hat else epsilon * root))
    )


def rectified(
    momentum: Tensor, velocity: Tensor, beta_1: float, beta_2: float, epsilon: float, step: Tensor, threshold: float
) -> Tensor:
    """RAdam's direction: debiased momentum alone until the average is longer than `threshold`, rectified then."""
    bias_2 = one_minus_power(beta_2, step)
    longest = constant_like(2 / (1 - beta_2) - 1, step)
    length = longest - 2 * step * (1 - bias_2) / bias_2
    tractable = length > threshold
    safe = ops.where(tractable, length, longest)
    rectifier = ops.sqrt((safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe))
    adaptive = rectifier * ops.sqrt(bias_2) / (ops.sqrt(velocity) + epsilon)
    return momentum / one_minus_power(beta_1, step) * ops.where(tractable, adaptive, ops.ones_like(adaptive))

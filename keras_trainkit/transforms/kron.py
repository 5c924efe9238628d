"""PSGD with Kronecker-factored triangular preconditioners, fitted to whiten the gradient."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, checks, randomness
from keras_trainkit.core.linear_algebra import spectral_norm_bound, transpose
from keras_trainkit.core.numerics import one_minus_power
from keras_trainkit.core.transform import Context, Slot, State, Tensor, Transform, register_transform
from keras_trainkit.transforms.moments import blend

MEMORY_SAVE_MODES = (None, "one_diag", "all_diag")
LARGEST_RMS = 1.1
BALANCE_PROBABILITY = 0.01
_UPDATE, _BALANCE, _NOISE = 0, 1, 2  # streams of random numbers; the variables' come after


@register_transform
class ScaleByKron(Transform):
    """Momentum times P = Q^T Q along each axis, where the Qs are fitted so that P g is white (Li, 2015 and 2022).

    The arguments are those of `optimizers.Kron`.
    """

    beta_1: float = 0.9
    preconditioner_update_probability: float | None = None
    max_size_triangular: int = 8192
    min_ndim_triangular: int = 2
    memory_save_mode: str | None = None
    momentum_into_precond_update: bool = True
    precond_lr: float = 0.1
    precond_init_scale: float = 1.0
    seed: int = 0

    def validate(self) -> None:
        checks.number("beta_1", self.beta_1, at_least=0, below=1)
        if self.preconditioner_update_probability is not None:
            checks.number(
                "preconditioner_update_probability", self.preconditioner_update_probability, at_least=0, at_most=1
            )
        checks.integer("max_size_triangular", self.max_size_triangular, at_least=0)
        checks.integer("min_ndim_triangular", self.min_ndim_triangular, at_least=0)
        checks.one_of("memory_save_mode", self.memory_save_mode, MEMORY_SAVE_MODES)
        checks.boolean("momentum_into_precond_update", self.momentum_into_precond_update)
        checks.number("precond_lr", self.precond_lr, above=0)
        checks.number("precond_init_scale", self.precond_init_scale, above=0)
        checks.integer("seed", self.seed)

    def triangular(self, shape: list[int]) -> list[bool]:
        """For each axis whether its factor is a triangular matrix; otherwise it is a diagonal one."""
        longest = max(range(len(shape)), key=shape.__getitem__, default=0)
        return [
            1 < size <= self.max_size_triangular
            and len(shape) >= self.min_ndim_triangular
            and self.memory_save_mode != "all_diag"
            and not (self.memory_save_mode == "one_diag" and axis == longest)
            for axis, size in enumerate(shape)
        ]

    def slots(self, variable: Any) -> dict[str, Any]:
        shape = [int(size) for size in variable.shape] or [1]
        slots: dict[str, Any] = {"gradients": Slot(0.0, [])}
        if self.beta_1:
            slots["momentum"] = 0.0
        for axis, (size, full) in enumerate(zip(shape, self.triangular(shape), strict=True)):
            slots[f"factor_{axis}"] = Slot(0.0, [size, size] if full else [size])
        return slots

    def update(
        self, updates: list[Tensor], parameters: list[Tensor], states: list[State], context: Context
    ) -> tuple[list[Tensor], list[State]]:
        chance = randomness.uniform([], self.seed, context.step, _UPDATE)
        due = chance < self._probability(context.step)
        balance = randomness.uniform([], self.seed, context.step, _BALANCE) < BALANCE_PROBABILITY
        directions, new = [], []
        for position, (gradient, state) in enumerate(zip(updates, states, strict=True)):
            # By position, not by path, which differs from one copy of a model to the next.
            direction, changed = self._one(gradient, state, context.step, _NOISE + position, due, balance)
            directions.append(direction)
            new.append(changed)
        return directions, new

    def _one(
        self, update: Tensor, state: State, step: Tensor, stream: int, due: Tensor, balance: Tensor
    ) -> tuple[Tensor, State]:
        shape = [int(size) for size in update.shape]
        view = shape or [1]
        count = state["gradients"] + 1
        new: State = {"gradients": count}
        mean = update
        if self.beta_1:
            new["momentum"] = blend(self.beta_1, state["momentum"], update)
            mean = new["momentum"] / one_minus_power(self.beta_1, count)
        mean = ops.reshape(mean, view)
        factors = self._factors(state, count, view)
        signal = mean if self.momentum_into_precond_update else ops.reshape(update, view)

        def fit() -> list[Tensor]:
            dtype = keras.backend.standardize_dtype(mean.dtype)
            noise = randomness.normal(view, self.seed, step, stream, dtype)
            if len(view) == 1:
                return fitted(factors, signal, noise, self.precond_lr)
            even = [ops.where(balance, b, f) for b, f in zip(balanced(factors), factors, strict=True)]
            return fitted(even, signal, noise, self.precond_lr)

        factors = backend.choose(due, fit, lambda: list(factors))
        for axis, factor in enumerate(factors):
            new[f"factor_{axis}"] = factor
        direction = mean
        for axis, factor in enumerate(factors):
            direction = along(transposed(factor), along(factor, direction, axis), axis)
        rms = ops.sqrt(ops.mean(ops.square(direction)))
        direction = direction * ops.minimum(1.0, LARGEST_RMS / (rms + 1e-12))
        return ops.reshape(direction, shape), new

    def _factors(self, state: State, count: Tensor, view: list[int]) -> list[Tensor]:
        scale = self.precond_init_scale ** (1 / len(view))
        factors = []
        for axis, (size, full) in enumerate(zip(view, self.triangular(view), strict=True)):
            factor = state[f"factor_{axis}"]
            start = ops.eye(size, dtype=factor.dtype) if full else ops.ones_like(factor)
            factors.append(ops.where(ops.equal(count, 1), scale * start, factor))
        return factors

    def _probability(self, step: Tensor) -> Any:
        if self.preconditioner_update_probability is not None:
            return self.preconditioner_update_probability
        return update_probability(ops.cast(step, "float32"))


def update_probability(
    step: Tensor, largest: float = 1.0, smallest: float = 0.03, decay: float = 0.001, flat_start: float = 500.0
) -> Tensor:
    """The share of updates that fit the factors: 1 for 500 updates, then falling to 0.03 at about 4000."""
    return ops.clip(largest * ops.exp(-decay * (step - flat_start)), smallest, largest)


def along(factor: Tensor, x: Tensor, axis: int) -> Tensor:
    """`factor` (a matrix, or a diagonal as a vector) times `x` along one axis."""
    moved = ops.moveaxis(x, axis, 0)
    shape = [int(size) for size in moved.shape]
    flat = ops.reshape(moved, (shape[0], -1))
    flat = ops.matmul(factor, flat) if len(factor.shape) == 2 else ops.expand_dims(factor, 1) * flat
    return ops.moveaxis(ops.reshape(flat, shape), 0, axis)


def solved_along(factor: Tensor, x: Tensor, axis: int) -> Tensor:
    """The inverse of the transpose of `factor` (upper triangular, or a diagonal) times `x` along one axis."""
    moved = ops.moveaxis(x, axis, 0)
    shape = [int(size) for size in moved.shape]
    flat = ops.reshape(moved, (shape[0], -1))
    if len(factor.shape) == 2:
        flat = ops.solve_triangular(transpose(factor), flat, lower=True)
    else:
        flat = flat / ops.expand_dims(factor, 1)
    return ops.moveaxis(ops.reshape(flat, shape), 0, axis)


def transposed(factor: Tensor) -> Tensor:
    """The transpose of a matrix, or the diagonal itself."""
    return transpose(factor) if len(factor.shape) == 2 else factor


def fitted(factors: list[Tensor], signal: Tensor, noise: Tensor, rate: float) -> list[Tensor]:
    """The factors after one relative gradient step that makes Q g and Q^(-T) v alike in covariance, for white v."""
    white, spread = signal, noise
    for axis, factor in enumerate(factors):
        white = along(factor, white, axis)
        spread = solved_along(factor, spread, axis)
    new = []
    for axis, factor in enumerate(factors):
        full = len(factor.shape) == 2
        ours, theirs = (ops.reshape(ops.moveaxis(x, axis, 0), (int(x.shape[axis]), -1)) for x in (white, spread))
        if full:
            first, second = ops.matmul(ours, transpose(ours)), ops.matmul(theirs, transpose(theirs))
            step = ops.matmul(ops.triu(first - second), factor)
            norm = spectral_norm_bound(first + second)
        else:
            first, second = ops.sum(ops.square(ours), axis=1), ops.sum(ops.square(theirs), axis=1)
            step = (first - second) * factor
            norm = ops.max(first + second)
        new.append(factor - rate * step / ops.where(norm > 0, norm, ops.ones_like(norm)))
    return new


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """The factors scaled to the same largest element; their product, all that counts, stays."""
    largest = [ops.max(ops.abs(factor)) for factor in factors]
    mean = ops.exp(sum(ops.log(size) for size in largest) / len(largest))
    return [factor * (mean / size) for factor, size in zip(factors, largest, strict=True)]

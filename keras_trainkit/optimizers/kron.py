"""Kron: PSGD with Kronecker-factored preconditioners."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByKron, ScaleByLearningRate
from keras_trainkit.transforms.kron import MEMORY_SAVE_MODES


@keras.saving.register_keras_serializable("keras_trainkit")
class Kron(TransformOptimizer):
    """Momentum times a preconditioner that is itself fitted by gradient steps, so that its product is white.

    For a matrix with mean gradient m (decay `beta_1`, debiased): w = w - learning_rate P m Q, where P = A^T A and
    Q = B^T B with triangular A and B; each axis of another variable has its own factor. With v of independent standard
    normal numbers, X = A m B^T and Y = A^(-T) v B^(-1), a fit is A = A - precond_lr triu(X X^T - Y Y^T) A / norm, norm
    a bound of the largest eigenvalue of X X^T + Y Y^T; B likewise. The direction is cut to a root mean square of 1.1.

    A fit happens with probability 1 in the first 500 updates, which then falls to 0.03, and the factors are brought to
    one largest element in one of a hundred fits. Which updates these are, and v, are functions of `seed`, the step and
    the variable's place among those with a gradient: runs can be repeated and resumed, and replicas agree. The
    practical reference is E. Walters' Kron (2024); its generators are torch's or JAX's, so that numbers differ in their
    noise.

    State: 4 bytes per parameter, and for each axis of length n 4 n^2 (triangular, kept as a full matrix) or 4 n
    (diagonal); 12 bytes per parameter of a square matrix.

    References: Li, 2015, arXiv:1512.04202; Li, 2022, arXiv:2211.04422.

    Args:
        learning_rate: the step size, or a schedule; about a third of Adam's.
        beta_1: the decay of the mean, from 0 to below 1.
        preconditioner_update_probability: from 0 to 1; None for the schedule above.
        max_size_triangular: longer axes get a diagonal factor.
        min_ndim_triangular: variables of fewer axes get diagonal factors.
        memory_save_mode: None; `"one_diag"`, a diagonal factor for the longest axis; `"all_diag"`, diagonal ones only.
        momentum_into_precond_update: fit to the mean, not to the gradient.
        precond_lr: the relative step size of the fits, above 0.
        precond_init_scale: the first preconditioner is this squared times the identity; above 0.
        seed: an int.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Kron(3e-4, memory_save_mode="one_diag").max_size_triangular
    8192
    """

    info = Info(year=2022, paper="arXiv:2211.04422", state_bytes=12)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        preconditioner_update_probability: float | None = None,
        max_size_triangular: int = 8192,
        min_ndim_triangular: int = 2,
        memory_save_mode: str | None = None,
        momentum_into_precond_update: bool = True,
        precond_lr: float = 0.1,
        precond_init_scale: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.preconditioner_update_probability = (
            None
            if preconditioner_update_probability is None
            else checks.number(
                "preconditioner_update_probability", preconditioner_update_probability, at_least=0, at_most=1
            )
        )
        self.max_size_triangular = checks.integer("max_size_triangular", max_size_triangular, at_least=0)
        self.min_ndim_triangular = checks.integer("min_ndim_triangular", min_ndim_triangular, at_least=0)
        self.memory_save_mode = checks.one_of("memory_save_mode", memory_save_mode, MEMORY_SAVE_MODES)
        self.momentum_into_precond_update = checks.boolean("momentum_into_precond_update", momentum_into_precond_update)
        self.precond_lr = checks.number("precond_lr", precond_lr, above=0)
        self.precond_init_scale = checks.number("precond_init_scale", precond_init_scale, above=0)
        self.seed = checks.integer("seed", seed)

    def transform(self) -> Any:
        kron = ScaleByKron(
            self.beta_1,
            self.preconditioner_update_probability,
            self.max_size_triangular,
            self.min_ndim_triangular,
            self.memory_save_mode,
            self.momentum_into_precond_update,
            self.precond_lr,
            self.precond_init_scale,
            self.seed,
        )
        return chain(kron, ScaleByLearningRate())

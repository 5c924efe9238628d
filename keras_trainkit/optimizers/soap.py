"""SOAP: Adam in Shampoo's eigenbasis."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByLearningRate, ScaleBySoap


@keras.saving.register_keras_serializable("keras_trainkit")
class SOAP(TransformOptimizer):
    """Adam on gradients that are turned into the eigenbasis of their own covariance, axis by axis.

    For a matrix with gradient G: L and R average G G^T and G^T G by `shampoo_beta`; P and Q hold their eigenvectors.
    m averages G by `beta_1`, v averages (P^T G Q)^2 by `beta_2`, and
    w = w - learning_rate P [(P^T m Q) / (sqrt(v) + epsilon)] Q^T, debiased as Adam's. Each axis of a convolution's
    kernel has its own matrix. The first gradient makes P and Q by eigendecomposition and moves nothing; every
    `precondition_frequency` updates each is replaced by the orthogonal factor of L P (R Q), large eigenvalues first.
    Axes longer than `max_precond_dim` are not turned; vectors get Adam unless `precondition_1d`.

    Equal to the authors' code and pytorch_optimizer. Their code applies the decay (0.01 by default) after the step,
    here it comes before, as everywhere in the kit; the difference is learning_rate^2 weight_decay.

    State: 8 bytes per parameter, and 8 n^2 for each turned axis of length n; 24 bytes per parameter of a square matrix.

    Reference: Vyas et al., 2024, arXiv:2409.11321.

    Args:
        learning_rate: the step size, or a schedule.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        shampoo_beta: the decay of L and R, from 0 to below 1; None for `beta_2`.
        epsilon: added to the root, at least 0.
        precondition_frequency: updates from one turn of the bases to the next, at least 1.
        max_precond_dim: the longest axis that is turned.
        merge_dims: join neighbouring axes, from the left, as long as their product is at most `max_precond_dim`: a
            kernel of (3, 3, 256, 512) becomes one of (2304, 512). The authors join torch's (out, in, height, width).
        precondition_1d: turn vectors, too.
        normalize_grads: scale each variable's direction to a root mean square of 1.
        correct_bias: debias the moments.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.SOAP(3e-3, weight_decay=0.01).precondition_frequency
    10
    """

    info = Info(year=2024, paper="arXiv:2409.11321", state_bytes=24)

    def __init__(
        self,
        learning_rate: Any = 0.003,
        beta_1: float = 0.95,
        beta_2: float = 0.95,
        shampoo_beta: float | None = None,
        epsilon: float = 1e-8,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        merge_dims: bool = False,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, below=1)
        self.shampoo_beta = (
            None if shampoo_beta is None else checks.number("shampoo_beta", shampoo_beta, at_least=0, below=1)
        )
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.precondition_frequency = checks.integer("precondition_frequency", precondition_frequency, at_least=1)
        self.max_precond_dim = checks.integer("max_precond_dim", max_precond_dim, at_least=0)
        self.merge_dims = checks.boolean("merge_dims", merge_dims)
        self.precondition_1d = checks.boolean("precondition_1d", precondition_1d)
        self.normalize_grads = checks.boolean("normalize_grads", normalize_grads)
        self.correct_bias = checks.boolean("correct_bias", correct_bias)

    def transform(self) -> Any:
        soap = ScaleBySoap(
            self.beta_1,
            self.beta_2,
            self.shampoo_beta,
            self.epsilon,
            self.precondition_frequency,
            self.max_precond_dim,
            self.merge_dims,
            self.precondition_1d,
            self.normalize_grads,
            self.correct_bias,
        )
        return chain(soap, ScaleByLearningRate())

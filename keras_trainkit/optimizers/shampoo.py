"""Shampoo: preconditioning axis by axis, in blocks, grafted onto the step size of another method."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import Momentum, ScaleByLearningRate, ScaleByShampoo
from keras_trainkit.transforms.shampoo import GRAFTING


@keras.saving.register_keras_serializable("keras_trainkit")
class Shampoo(TransformOptimizer):
    """A gradient multiplied from both sides by inverse roots of its own covariances.

    For a matrix with gradient G: L and R average G G^T and G^T G by `beta_2` (or sum them, if it is 1), m averages G by
    `beta_1`, debiased, and D = L^(-1/4) m R^(-1/4). A variable of k axes has k matrices and the exponent -1/(2 k).
    The length of D is that of the grafted method's step: w = w - learning_rate norm(A) / norm(D) D, where A is m for
    `"sgd"`, and m / (sqrt(v) + grafting_epsilon) for the others: v sums the squared gradients (`"adagrad"`), averages
    them (`"rmsprop"`), or averages and debiases them (`"adam"`).

    The roots are computed by eigendecomposition every `precondition_frequency` updates, from update
    `start_preconditioning_step` on; until then the step is A. Axes are cut into equal blocks of at most `block_size`,
    each with its own matrices and its own graft, so that no eigendecomposition is larger than that.

    Implementations differ. Epsilon is relative to the largest eigenvalue here and in Google's Scalable Shampoo,
    absolute in Meta's Distributed Shampoo. Meta grafts block by block, as here, Google variable by variable. Both merge
    small axes, the last one too, so that a matrix of few elements becomes a vector; `merge_dims` leaves the last. The
    first paper sums (`beta_2=1`), starts at once and does not graft: `Shampoo(beta_1=0, beta_2=1, grafting="none",
    start_preconditioning_step=1, precondition_frequency=1)`.

    State: 8 bytes per parameter (4 with the graft `"none"` or `"sgd"`), and 8 n^2 for each block's side of length n; 24
    bytes per parameter of a square matrix.

    References: Gupta et al., 2018, arXiv:1802.09568; blocks and grafts: Anil et al., 2020, arXiv:2002.09018, and Shi et
    al., 2023, arXiv:2309.06497.

    Args:
        learning_rate: the step size, or a schedule; with a graft, that of the grafted method.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of L and R, from 0 to 1; 1 sums.
        epsilon: added to the eigenvalues of L and R, times the largest one; above 0. In float32 eigenvalues below 1e-7
            of the largest are noise.
        momentum: heavy-ball momentum of the displacements, from 0 to below 1.
        nesterov: Nesterov's form of it.
        block_size: the longest side of a matrix.
        merge_dims: join neighbouring axes but the last, from the left, as long as their product is at most
            `block_size`: a kernel of (3, 3, 64, 128) becomes one of (576, 128).
        precondition_frequency: updates from one computation of the roots to the next, at least 1.
        start_preconditioning_step: the first update with roots, at least 1; None for `precondition_frequency`.
        exponent_override: p of the roots L^(-1/p); None for twice the number of axes.
        grafting: `"none"`, `"sgd"`, `"adagrad"`, `"rmsprop"` or `"adam"`.
        grafting_beta_2: the decay of the grafted method's mean square, from 0 to below 1.
        grafting_epsilon: that method's epsilon, at least 0.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Shampoo(1e-3, block_size=256).grafting
    'adam'
    """

    info = Info(year=2018, paper="arXiv:1802.09568", state_bytes=24)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        momentum: float = 0.0,
        nesterov: bool = False,
        block_size: int = 1024,
        merge_dims: bool = True,
        precondition_frequency: int = 10,
        start_preconditioning_step: int | None = None,
        exponent_override: float | None = None,
        grafting: str = "adam",
        grafting_beta_2: float = 0.999,
        grafting_epsilon: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.beta_2 = checks.number("beta_2", beta_2, at_least=0, at_most=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.nesterov = checks.boolean("nesterov", nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError(f"`nesterov` needs `momentum` above 0. Received: momentum={momentum!r}")
        self.block_size = checks.integer("block_size", block_size, at_least=1)
        self.merge_dims = checks.boolean("merge_dims", merge_dims)
        self.precondition_frequency = checks.integer("precondition_frequency", precondition_frequency, at_least=1)
        self.start_preconditioning_step = (
            None
            if start_preconditioning_step is None
            else checks.integer("start_preconditioning_step", start_preconditioning_step, at_least=1)
        )
        self.exponent_override = (
            None if exponent_override is None else checks.number("exponent_override", exponent_override, above=0)
        )
        self.grafting = checks.one_of("grafting", grafting, GRAFTING)
        self.grafting_beta_2 = checks.number("grafting_beta_2", grafting_beta_2, at_least=0, below=1)
        self.grafting_epsilon = checks.number("grafting_epsilon", grafting_epsilon, at_least=0)

    def transform(self) -> Any:
        shampoo = ScaleByShampoo(
            self.beta_1,
            self.beta_2,
            self.epsilon,
            self.block_size,
            self.merge_dims,
            self.precondition_frequency,
            self.start_preconditioning_step,
            self.exponent_override,
            self.grafting,
            self.grafting_beta_2,
            self.grafting_epsilon,
        )
        links = [shampoo, ScaleByLearningRate()]
        return chain(*links, Momentum(self.momentum, self.nesterov)) if self.momentum else chain(*links)

"""ConditionalGradient: Frank and Wolfe's steps, which stay inside a ball."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import FrankWolfeStep
from keras_trainkit.transforms.projection import NORMS


@keras.saving.register_keras_serializable("keras_trainkit")
class ConditionalGradient(TransformOptimizer):
    """Each variable moves towards the point of a ball that minimizes the loss's linear model there.

    w = (1 - learning_rate) w - learning_rate `lambda_` s. For the Frobenius norm s = g / (norm(g) + epsilon); for the
    nuclear norm s = u v', the pair of g's largest singular value, so that weights have low rank early. A variable that
    starts in the ball stays in it (for a rate of at most 1), one that starts outside comes nearer with each step. The
    rate 2 / (t + 1) of step t is the classical one; a constant rate keeps circling at its own size.

    TensorFlow Addons, to which this is equal, calls the share of w that stays `learning_rate`: its 0.99 is 0.01 here.
    Its default radius is 0.01. Its nuclear norm takes matrices at most; here kernels of higher rank are flattened to
    their last axis, and vectors have the Euclidean norm in both. No state. The nuclear form takes a singular value
    decomposition of each matrix in each step.

    References: Frank and Wolfe, 1956; Ravi et al., 2018, arXiv:1803.06453.

    Args:
        learning_rate: the share of the way to the ball's edge that a step goes, at most 1, or a schedule.
        lambda_: the radius of each variable's ball, above 0; to be chosen for the problem.
        epsilon: at least 0; added to the Frobenius norm of the gradient.
        ord: `"fro"` or `"nuclear"`.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.ConditionalGradient(0.01, lambda_=10.0, ord="nuclear").ord
    'nuclear'
    """

    info = Info(year=2018, paper="arXiv:1803.06453", state_bytes=0)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        lambda_: float = 1.0,
        epsilon: float = 1e-7,
        ord: str = "fro",
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.lambda_ = checks.number("lambda_", lambda_, above=0)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.ord = checks.one_of("ord", ord, NORMS)

    def transform(self) -> Any:
        return chain(FrankWolfeStep(self.lambda_, self.epsilon, self.ord))

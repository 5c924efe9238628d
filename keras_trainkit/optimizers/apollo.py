"""APOLLO: AdamW's step sizes from a random low-rank image of the gradient."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_trainkit.core import Transform, TransformOptimizer, chain, partition
from keras_trainkit.core.compose import variable_path
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByAdam, ScaleByLearningRate, ScaleByLowRankAdam
from keras_trainkit.transforms.orthogonal import layout_of, matrix_shape
from keras_trainkit.transforms.routing import MATRIX, MatrixRule


@keras.saving.register_keras_serializable("keras_trainkit")
class APOLLO(TransformOptimizer):
    """The gradient scaled channel by channel, by factors that a small image of it is enough for: SGD's memory, nearly.

    G is the gradient of a hidden matrix, seen with its smaller side m as rows and its larger side n as columns. P, of
    shape (rank, m), has random elements of variance 1 / rank. The moments of Adam are kept for R = P G alone: M =
    beta_1 M + (1 - beta_1) R and V likewise of R^2. With D = M / (sqrt(V) + epsilon) each column of G is multiplied
    by norm(D column) / norm(R column); `scaling="tensor"` multiplies all by the one factor norm(D) / norm(R). The
    norm of the result may be at most `growth_limit` times what it was a step before (it grows freely from zero); then
    it is multiplied by sqrt(scale) and Adam's debiasing. Its columns are about sqrt(rank / m) as long as those of
    Adam's step, so `scale = m / rank` makes them equal. All other variables get AdamW at the same rate.

    State: 8 rank / m bytes per parameter of such a matrix (2 where m is 1024) and one number for the norm; 8 per
    parameter of what AdamW gets. P costs nothing: it is a function of `seed` and of the step divided by
    `update_interval`, computed anew in each step (rank m random numbers beside a product of rank m n). When P
    changes, the moments stay, as in the authors' code.

    It was chosen over GaLore (Zhao et al., 2024, arXiv:2403.03507), because its projection needs no singular value
    decomposition and no memory, and its paper reports lower perplexity at the same rank on LLaMA of 60 M to 7 B
    parameters. That is the authors' own evidence. GaLore steps inside the subspace; here every step has full rank.

    **Which variables.** As in `Muon`: vectors, embeddings, the head and what `exclude_layers` names go to AdamW;
    matrices whose smaller side is at most `rank` do, too, because they would gain nothing. `routes` says for each
    variable where it went, and why. Kernels of more axes are flattened, `layouts` says how.

    The authors take 256 (or a quarter of m) for `rank`, and rank 1 with `scaling="tensor"` and `scale=128` for
    APOLLO-Mini; their experiments use learning rates about 0.01. Their decay comes after the step, here before it.

    Reference: Zhu et al., 2024, arXiv:2412.05270; the limit: Chen et al., 2024, arXiv:2410.01623.

    Args:
        learning_rate: the step size, or a schedule.
        rank: rows of the projection, at least 1.
        scale: above 0; its root multiplies the scaled gradients.
        scaling: `"channel"` or `"tensor"`.
        update_interval: steps for which a projection holds, at least 1.
        growth_limit: above 0, or None for no limit.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0; added before debiasing.
        seed: an int, for the projections.
        layouts: list of `[pattern, letters]` pairs, as for `Muon`; each must take a variable.
        exclude_layers: list of regular expressions; variables in whose path one is found go to AdamW.
        exclude_embeddings: whether embeddings go to AdamW.
        head: `"auto"`, None for no head, or a regular expression of the heads' paths.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> import keras
    >>> from keras_trainkit import optimizers
    >>> model = keras.Sequential([
    ...     keras.Input((8,)), keras.layers.Dense(16, use_bias=False), keras.layers.Dense(2, name="head")])
    >>> optimizer = optimizers.APOLLO(0.01, rank=4)
    >>> optimizer.build(model.trainable_variables)
    >>> list(optimizer.routes.values())
    ['apollo', 'adamw: a head', 'adamw: a vector']
    """

    info = Info(year=2024, paper="arXiv:2412.05270", state_bytes=2)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rank: int = 256,
        scale: float = 1.0,
        scaling: str = "channel",
        update_interval: int = 200,
        growth_limit: float | None = 1.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        seed: int = 0,
        layouts: list[list[str]] | None = None,
        exclude_layers: list[str] | None = None,
        exclude_embeddings: bool = True,
        head: str | None = "auto",
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        # One object each, so that Keras's tracking leaves the lists alone.
        self._rule = MatrixRule(exclude_layers or [], exclude_embeddings, head, layouts or [])
        self._projected = ScaleByLowRankAdam(
            rank, scale, scaling, update_interval, growth_limit, beta_1, beta_2, epsilon, seed, layouts or []
        )
        self._routing: tuple[tuple[str, str], ...] = ()

    def argument(self, name: str) -> Any:
        for holder in (self._rule, self._projected):
            if hasattr(holder, name):
                return getattr(holder, name)
        return super().argument(name)

    @property
    def routes(self) -> dict[str, str]:
        """By path, `apollo` or `adamw` with the reason behind a colon; empty before `build`."""
        return dict(self._routing)

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            found = self._rule.routes(variables)
            for variable in variables:
                if found[variable_path(variable)] == MATRIX and not self._gains(variable):
                    found[variable_path(variable)] = "no larger than the rank"
            self._routing = tuple((p, "apollo" if why == MATRIX else f"adamw: {why}") for p, why in found.items())
        super().build(variables)

    def _gains(self, variable: Any) -> bool:
        shape = [int(size) for size in variable.shape]
        layout = layout_of(variable_path(variable), shape, self._rule.layouts)
        return min(matrix_shape(shape, layout)) > self._projected.rank

    def transform(self) -> Transform:
        projected = self._projected
        adamw = chain(ScaleByAdam(projected.beta_1, projected.beta_2, projected.epsilon), ScaleByLearningRate())
        matrices = [re.escape(path) for path, route in self._routing if route == "apollo"]
        if not matrices:
            return adamw
        return partition([[f"^(?:{'|'.join(matrices)})$", chain(projected, ScaleByLearningRate())]], default=adamw)

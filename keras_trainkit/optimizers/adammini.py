"""Adam-mini: one second moment for a block of parameters."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import ScaleByBlockAdam, ScaleByLearningRate


@keras.saving.register_keras_serializable("keras_trainkit")
class AdamMini(TransformOptimizer):
    """Adam with one learning rate for each block: half of Adam's memory.

    m = beta_1 m + (1 - beta_1) g, as in Adam; v = beta_2 v + (1 - beta_2) mean(g^2), one number for each block; w = w -
    learning_rate m / (sqrt(v) + epsilon), both debiased. State: 4 bytes per parameter and 4 per block.

    **Blocks.** By path and shape, as the paper cuts a transformer: a row of an embedding (`embed` in the name of the
    variable or its layer); an output neuron of any other kernel, the last axis (of the head, too: its outputs are
    tokens); an attention head of query and key (paths that end in `query/kernel`, `key/kernel`, `q_proj`, `wk` ...);
    a whole bias, scale or other vector. Keras's attention has kernels (inputs, heads, size), whose heads are found
    without help; for dense ones (inputs, heads * size) give `heads`, otherwise they are cut by output neurons.
    `blocks` says otherwise, by a letter for each axis: `b` a block for each index, `m` the mean over this axis.
    `["experts/kernel$", "bmb"]` has a block for each output of each expert; `[".", "mm"]` makes whole matrices blocks.

    The authors' package cuts query and key as here, keeps plain Adam for embeddings and heads in some versions
    (`["embed", "bb"]` does), and takes all other matrices whole in some; the paper's rule is the one above.
    Weight decay is decoupled, and 0 as in the authors' code.

    Reference: Zhang et al., 2024, arXiv:2406.16793.

    Args:
        learning_rate: the step size, or a schedule; the authors take AdamW's.
        beta_1: the decay of the mean, from 0 to below 1.
        beta_2: the decay of the mean square, from 0 to below 1.
        epsilon: at least 0; added to the debiased root.
        heads: the number of heads in dense query and key kernels, at least 1, or None.
        blocks: list of `[pattern, letters]` pairs, tried in order; each must take a variable.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.AdamMini(1e-3, blocks=[["experts/kernel$", "bmb"]]).blocks
    [['experts/kernel$', 'bmb']]
    """

    info = Info(year=2024, paper="arXiv:2406.16793", state_bytes=4)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        heads: int | None = None,
        blocks: list[list[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        # One object, so that Keras's tracking leaves the list alone.
        self._adam = ScaleByBlockAdam(beta_1, beta_2, epsilon, heads, [] if blocks is None else blocks)
        self.beta_1, self.beta_2, self.epsilon, self.heads = float(beta_1), float(beta_2), float(epsilon), heads

    @property
    def blocks(self) -> list[list[str]]:
        """The rules given, before those that every model gets."""
        return [list(rule) for rule in self._adam.blocks]

    def transform(self) -> Any:
        return chain(self._adam, ScaleByLearningRate())

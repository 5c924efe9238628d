"""Residual branches that are dropped at random during training."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.layers.drawing import Dropping, drawn_below, kept_and_scaled, never


def depth_rates(rate: float, depth: int) -> list[float]:
    """Drop rates for `depth` branches that rise linearly to `rate` at the last: rate * l / depth for l = 1 to depth.

    The linear decay rule of Huang et al. 2016. (timm starts from 0 at the first branch instead.)

    >>> depth_rates(0.2, 4)
    [0.05, 0.1, 0.15000000000000002, 0.2]
    """
    rate = checks.number("rate", rate, at_least=0, at_most=1)
    depth = checks.integer("depth", depth, at_least=1)
    return [rate * level / depth for level in range(1, depth + 1)]


def drop_branch(branch: Any, rate: Any, whole_batch: bool, seed: Any) -> Any:
    """`branch` (batch, ...) with each sample, or the whole batch at once, set to zero with probability `rate`, else
    scaled by 1 / (1 - rate)."""
    rank = len(branch.shape)
    shape = (1,) * rank if whole_batch else (ops.shape(branch)[0], *(1,) * (rank - 1))
    return kept_and_scaled(branch, drawn_below(shape, 1.0 - rate, seed), rate)


@keras.saving.register_keras_serializable("keras_trainkit")
class StochasticDepth(Dropping):
    """Drops whole residual branches at random during training; the identity otherwise.

    Called on a branch, before the addition, it is what other libraries call DropPath: each sample's branch is zero
    with probability `rate`, and else scaled by `1 / (1 - rate)`, so that its expectation does not change. Called on
    `[shortcut, branch]`, it also adds: shortcut plus the dropped branch. Let the rate rise with depth
    (`depth_rates`). Huang et al. 2016, arXiv 1603.09382.

    Conventions differ. The paper and TensorFlow Addons (`StochasticDepth(survival_probability)`) do not scale in
    training and multiply the branch by the survival probability at inference; scaling in training, as here and by
    default in timm and torchvision, has the same expectations and leaves inference alone. To port a model from the
    former, multiply the last weights of each branch by its survival probability, and give `rate` one minus that.

    The state of the random generator is saved with the weights (Keras's `Dropout` forgets its own), so that a resumed
    run drops what the uninterrupted one would. Under MirroredStrategy each replica draws the same pattern over its
    part of the batch, as with every Keras layer that draws.

    timm's users know it as `layers.DropPath`, which is this class.

    Args:
        rate: the probability to drop, from 0 to 1, or a schedule of it (see `ScheduledDropout`).
        mode: `"row"` draws for each sample (of the first axis), `"batch"` once for the whole batch.
        seed: an int for reproducible draws.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: the branch, a floating tensor of any rank with the batch first (any shape in mode `"batch"`), or a list
            `[shortcut, branch]` of two tensors of one shape.
        training: as in Keras's `Dropout`: nothing is dropped unless it is true, and `fit` makes it true.

    Returns:
        A tensor of the branch's shape, in the layer's compute dtype. A mask passes through; of two, as in Keras's
        `Add`, what either has.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when built, for inputs that are not
            one tensor or two of the same shape, or that have no batch axis in mode `"row"`.

    >>> import keras, numpy as np
    >>> drop = StochasticDepth(0.5, seed=3)
    >>> branch = np.ones((6, 2), "float32")
    >>> sorted(set(np.array(drop(branch, training=True)).ravel().tolist()))
    [0.0, 2.0]
    >>> float(keras.ops.sum(drop([branch, branch])))  # at inference: a plain sum
    24.0
    """

    def __init__(self, rate: Any, mode: str = "row", seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate=rate, seed=seed, **kwargs)
        self.mode = checks.one_of("mode", mode, ["row", "batch"])
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks the shapes."""
        shapes = _shapes(input_shape)
        if len(shapes) > 2 or len({len(shape) for shape in shapes}) > 1 or not _equal(shapes[0], shapes[-1]):
            raise ValueError(
                "StochasticDepth takes a branch, or [shortcut, branch] of one shape. "
                f"Received: input_shape={input_shape}"
            )
        if self.mode == "row" and len(shapes[-1]) == 0:
            raise ValueError('`mode` "row" needs a batch axis; a scalar has none. Received: input_shape=()')
        super().build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The branch, dropped and scaled in training; added to the shortcut where there is one."""
        shortcut, branch = inputs if isinstance(inputs, (list, tuple)) else (None, inputs)
        if training:
            rate = self.next_rate()
            if not never(rate):
                branch = drop_branch(branch, rate, self.mode == "batch", self.seed_generator)
        return branch if shortcut is None else shortcut + branch

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask of a branch; of two inputs, what either has, or none where one has none."""
        if not isinstance(mask, (list, tuple)):
            return mask
        if any(one is None for one in mask):
            return None
        return ops.logical_or(*mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The branch's shape."""
        return tuple(_shapes(input_shape)[-1])

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "mode": self.mode}


DropPath = StochasticDepth


def _shapes(input_shape: Any) -> list[Any]:
    """The shapes of one input or of a list of them."""
    several = len(input_shape) > 0 and isinstance(input_shape[0], (list, tuple))
    return list(input_shape) if several else [input_shape]


def _equal(first: Any, second: Any) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(first, second, strict=True))

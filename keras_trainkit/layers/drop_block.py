"""Dropout of whole blocks of neighbours in feature maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.layers.drawing import Dropping, drawn_below, never

# Newton's steps come from one side; five are enough for a rate of 0.9, ten for 1 - 1e-6.
_STEPS = 12


def block_probability(rate: Any, sizes: Sequence[Any], block: Sequence[int], xp: Any = np) -> Any:
    """The probability gamma with which each place begins a block, so that the share `rate` of a map is dropped.

    Blocks lie inside of the map, and may overlap. A position stays if none of the n blocks around it is drawn, with
    probability (1 - gamma)^n; n is the product over the axes of how many blocks along the axis reach the position,
    fewer at the rim. The mean of that over all positions is to be 1 - rate; Newton's method finds -log(1 - gamma).

    Args:
        rate: from 0 to below 1, a float or a tensor.
        sizes: of the map's axes, ints or tensors.
        block: of the block's axes; along an axis that is shorter, the block is as long as the axis.
        xp: numpy, or `keras.ops` where there are tensors.
    """
    reached, share = np.ones(1, "float32"), np.ones(1, "float32")
    for size, length in zip(sizes, block, strict=True):
        numbers = np.arange(1, length + 1)
        most = xp.minimum(xp.maximum(size - length + 1, 1), length)
        # Two positions of an axis are reached by 1 block, two by 2, and so on; all in the middle by `most`.
        middle = xp.where(xp.equal(numbers, most), size - 2 * (most - 1), 0)
        count = xp.divide(xp.where(xp.less(numbers, most), 2, middle), size)
        share = xp.reshape(xp.reshape(share, (-1, 1)) * count, (-1,))
        reached = np.reshape(np.reshape(reached, (-1, 1)) * numbers, (-1,)).astype("float32")
    wanted, found = xp.log1p(-rate), 0.0
    for _ in range(_STEPS):
        # expm1 and log1p, because small rates are differences from 1.
        dropped = -xp.sum(share * xp.expm1(-reached * found))
        slope = xp.sum(share * reached * xp.exp(-reached * found)) / (1 - dropped)
        found = found + (xp.log1p(-dropped) - wanted) / slope
    return -xp.expm1(-found)


@functools.lru_cache(maxsize=1024)
def _known_probability(rate: float, sizes: tuple[int, ...], block: tuple[int, ...]) -> float:
    return float(block_probability(rate, sizes, block))


class _DropBlock(Dropping):
    rank: ClassVar[int]

    def __init__(
        self,
        rate: Any,
        block_size: int | Sequence[int] = 7,
        share_channels: bool = False,
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate=rate, seed=seed, **kwargs)
        sizes = list(block_size) if isinstance(block_size, (list, tuple)) else [block_size] * self.rank
        if len(sizes) != self.rank:
            raise ValueError(
                f"`block_size` must be an integer or a list of {self.rank}. Received: block_size={block_size!r}"
            )
        self.block_size = [checks.integer("block_size", size, at_least=1) for size in sizes]
        self.share_channels = checks.boolean("share_channels", share_channels)
        formats = ["channels_last", "channels_first"]
        self.data_format = checks.one_of("data_format", data_format or keras.config.image_data_format(), formats)
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2)
        self.supports_masking = True

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """The inputs, in training without some blocks, over the share that is kept."""
        if not training:
            return inputs
        rate = self.next_rate()
        if never(rate):
            return inputs
        shape = ops.shape(inputs)
        last = self.data_format == "channels_last"
        sizes, channels = (shape[1:-1], shape[-1]) if last else (shape[2:], shape[1])
        kept = self.kept(rate, shape[0], sizes, 1 if self.share_channels else channels)
        share = _share(kept, mask if last else None)
        if not last:
            kept = ops.transpose(kept, (0, self.rank + 1, *range(1, self.rank + 1)))
        return ops.where(kept, inputs / ops.cast(share, inputs.dtype), ops.zeros_like(inputs))

    def kept(self, rate: Any, batch: Any, sizes: Sequence[Any], channels: Any) -> Any:
        """What stays, drawn: booleans (batch, *sizes, channels)."""
        block = [
            min(one, size) if isinstance(size, int) else one for one, size in zip(self.block_size, sizes, strict=True)
        ]
        if isinstance(rate, float) and rate == 1:
            return ops.zeros((batch, *sizes, channels), "bool")
        if isinstance(rate, float) and all(isinstance(size, int) for size in sizes):
            probability: Any = _known_probability(rate, tuple(sizes), tuple(block))
        else:
            below = ops.minimum(ops.cast(rate, "float32"), 1 - 1e-6)
            probability = ops.where(rate < 1, block_probability(below, sizes, block, ops), 1.0)
        places = [
            ops.maximum(size - one + 1, 1) if not isinstance(size, int) else size - one + 1
            for size, one in zip(sizes, block, strict=True)
        ]
        first = drawn_below((batch, *places, channels), probability, self.seed_generator)
        # A position is dropped if a block begins there, or up to a block's length before it.
        around = [[0, 0], *([one - 1, one - 1] for one in block), [0, 0]]
        padded = ops.pad(ops.cast(first, "float32"), around)
        dropped = ops.max_pool(padded, tuple(block), strides=1, padding="valid", data_format="channels_last")
        dropped = dropped[(slice(None), *(slice(size) for size in sizes))]
        return dropped < 0.5

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "share_channels": self.share_channels,
            "data_format": self.data_format,
        }


def _share(kept: Any, mask: Any) -> Any:
    """The share that is kept, of what a mask (batch, ...) lets count; 1 where nothing is."""
    counted = ops.cast(kept, "float32")
    if mask is None:
        share = ops.mean(counted)
    else:
        weights = ops.cast(ops.reshape(mask, (*ops.shape(mask), *[1] * (len(kept.shape) - len(mask.shape)))), "float32")
        weights = ops.broadcast_to(weights, ops.shape(kept))
        share = ops.sum(counted * weights) / ops.maximum(ops.sum(weights), 1.0)
    return ops.where(share > 0, share, ops.ones_like(share))


@keras.saving.register_keras_serializable("keras_trainkit")
class DropBlock1D(_DropBlock):
    """DropBlock for sequences (batch, steps, channels): spans of `block_size` steps are dropped.

    See `DropBlock2D`, whose arguments these are; `block_size` is 7 steps unless told otherwise. Steps that a mask
    leaves out may be dropped, but do not count in the share by which the rest is scaled.

    >>> import numpy as np
    >>> drop = DropBlock1D(0.3, block_size=3, seed=1)
    >>> drop(np.ones((2, 20, 4), "float32"), training=True).shape
    TensorShape([2, 20, 4])
    """

    rank = 1


@keras.saving.register_keras_serializable("keras_trainkit")
class DropBlock2D(_DropBlock):
    """Drops square blocks of feature maps during training; the identity otherwise.

    Single pixels that dropout takes away can be told from their neighbours; whole blocks cannot, so that convolutional
    nets have to look elsewhere. Ghiasi et al. 2018, arXiv 1810.12890. There the rate rises linearly from 0 over the
    run, which did better than a fixed one: `DropBlock2D(schedules.Linear(0.0, "1run", 0.1))` (see `ScheduledDropout`).

    Each position at which a whole block fits begins one with probability gamma. The paper, torchvision and timm take
    `gamma = rate / block^2 * size^2 / (size - block + 1)^2`, as if blocks did not overlap, and so drop less than the
    rate: of maps of 14 x 14 9.3% in place of 10%, 36% in place of 50%. Here gamma is such that the expected share of
    dropped positions is `rate`, overlaps and rim counted. (Positions near the rim are in fewer blocks, and are dropped
    more rarely, as there.)

    What is kept is divided by the share that was kept of the whole batch, as in the paper, so that the sum of a map of
    ones does not change.

    Args:
        rate: the expected share of positions to drop, from 0 to 1, or a schedule of it.
        block_size: length of a block, or a list of lengths for each axis; on smaller maps, the map's.
        share_channels: whether one mask serves all channels of a sample; else each channel has its own, which did
            better in the paper.
        data_format: `"channels_last"` or `"channels_first"`; that of Keras's configuration when left out. The same seed
            gives the same mask in either.
        seed: an int for reproducible draws.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: floating feature maps (batch, rows, columns, channels), or with the channels first.
        training: as in Keras's `Dropout`.

    Returns:
        A tensor of the input's shape in the compute dtype. A mask passes through.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; for inputs of another rank.

    >>> import numpy as np
    >>> drop = DropBlock2D(0.3, block_size=3, seed=1)
    >>> out = np.array(drop(np.ones((8, 16, 16, 4), "float32"), training=True))
    >>> bool(0.2 < (out == 0).mean() < 0.4), round(float(out.mean()), 4)
    (True, 1.0)
    """

    rank = 2


@keras.saving.register_keras_serializable("keras_trainkit")
class DropBlock3D(_DropBlock):
    """DropBlock for volumes (batch, depth, rows, columns, channels), or with the channels first: cubes are dropped.

    See `DropBlock2D`, whose arguments these are.

    >>> import numpy as np
    >>> drop = DropBlock3D(0.3, block_size=[1, 3, 3], seed=1)
    >>> drop(np.ones((2, 4, 8, 8, 3), "float32"), training=True).shape
    TensorShape([2, 4, 8, 8, 3])
    """

    rank = 3

"""Sub-pixel upsampling that begins without a checkerboard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.initializers.seeding import with_seed


@keras.saving.register_keras_serializable("keras_trainkit")
class ICNR(keras.initializers.Initializer):
    """Another initializer's values, the same for all sub-pixels: for the convolution before a sub-pixel upsampling.

    A convolution to `channels * scale * scale` filters, whose channels are then laid out as `scale * scale` pixels
    each, starts with pixels of unlike filters, and its images have a checkerboard that training hardly removes. Here
    the filters of the pixels are equal, so that it starts as the convolution to `channels` filters followed by
    nearest-neighbour upsampling.

    Reference: Aitken et al. 2017, arXiv 1707.02937.

    Args:
        scale: pixels to make of one, along each axis: an int at least 1, or a list with one for each spatial axis.
        initializer: what draws the kernel (..., inputs, channels): a Keras initializer, its name, or None for
            `"he_normal"` (as in fastai).
        order: how the upsampling takes the channels. `"depth_to_space"`, the default: all channels of one pixel lie
            together, as `tf.nn.depth_to_space` and `keras.ops.nn.depth_to_space` (channels last) and a plain reshape
            take them. `"pixel_shuffle"`: all pixels of one channel lie together, as torch's `PixelShuffle` takes them.
        seed: an int or a `keras.random.SeedGenerator` for the default or named initializer; an initializer given as
            an object brings its own seed.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range, an unknown initializer, or a `seed`
            that the initializer cannot take; when called, for a kernel whose filters `scale` does not divide.

    >>> kernel = ICNR(2, seed=1)((3, 3, 8, 12))
    >>> bool(keras.ops.all(kernel[..., :3] == kernel[..., 9:]))
    True
    """

    def __init__(
        self,
        scale: int | Sequence[int] = 2,
        initializer: Any = None,
        order: str = "depth_to_space",
        seed: Any = None,
    ) -> None:
        if isinstance(scale, (list, tuple)):
            self.scale: int | list[int] = [checks.integer("scale", each, at_least=1) for each in scale]
        else:
            self.scale = checks.integer("scale", scale, at_least=1)
        self.order = checks.one_of("order", order, ["depth_to_space", "pixel_shuffle"])
        self.initializer = with_seed("he_normal" if initializer is None else initializer, seed)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of `shape` in `dtype` (Keras's `floatx` where None)."""
        dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        axes, filters = len(shape) - 2, int(shape[-1])
        if isinstance(self.scale, list) and len(self.scale) != axes:
            raise ValueError(
                f"`scale` must have one number for each of the {axes} spatial axes of a kernel of shape "
                f"{tuple(shape)}. Received: scale={self.scale}"
            )
        pixels = math.prod(self.scale) if isinstance(self.scale, list) else self.scale**axes
        if filters % pixels:
            raise ValueError(
                f"`scale` makes {pixels} pixels of one, which must divide the kernel's filters. "
                f"Received: scale={self.scale}, shape={tuple(shape)}"
            )
        one = self.initializer((*shape[:-1], filters // pixels), dtype=dtype)
        if self.order == "pixel_shuffle":
            return ops.repeat(one, pixels, axis=-1)
        return ops.tile(one, (*[1] * (len(shape) - 1), pixels))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name; the seed is inside the initializer's own configuration."""
        return {
            "scale": self.scale,
            "initializer": keras.initializers.serialize(self.initializer),
            "order": self.order,
        }

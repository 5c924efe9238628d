"""Random numbers as pure functions of seed, step, stream and position: no hidden state, the same on every backend.

A keyed hash turns the position of each element into 32 bits, so a step can be replayed, resumed or computed on several
replicas and gets the same numbers (the idea of Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
The hash is `triple32` (Wellons, 2018, github.com/skeeto/hash-prospector): three rounds of shift, exclusive or and
multiply, 11 integer operations where Philox-4x32-10 without 64-bit integers needs some 80 for each number. Two keys
depend on seed, stream and step: one is added to the position, one before the last round. (Added before the second
round, two tensors could share long stretches of numbers.) It is made for statistics, not for secrets.

Within one tensor of bits no value occurs twice, because the hash permutes the positions.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit.core import checks

_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
_LAST_SHIFT = 14


def bits(shape: Any, seed: int, step: Any, stream: int = 0) -> Any:
    """Random uint32 numbers.

    Args:
        shape: list of ints; fewer than 2**31 elements.
        seed: an int.
        step: scalar integer tensor, or an int; its lowest 32 bits count.
        stream: an int; one for each use of the same seed, such as the position of a variable.

    Returns:
        A tensor of shape `shape` and dtype uint32, the same on every backend.

    >>> bits([4], seed=1, step=1).shape == (4,)
    True
    """
    size = math.prod(shape)
    name = f"{checks.integer('seed', seed)},{checks.integer('stream', stream)}"
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u4")
    keys = _hash(ops.cast(step, "uint32") + ops.convert_to_tensor(words.astype("uint32"), "uint32"))
    position = ops.cast(ops.arange(size, dtype="int32"), "uint32")
    return ops.reshape(_hash(position + keys[0], keys[1]), tuple(shape))


def uniform(shape: Any, seed: int, step: Any, stream: int = 0, dtype: str = "float32") -> Any:
    """Random numbers from 0 to below 1, multiples of 2**-24, the same on every backend; arguments as for `bits`."""
    return _unit(bits(shape, seed, step, stream), dtype)


def normal(shape: Any, seed: int, step: Any, stream: int = 0, dtype: str = "float32") -> Any:
    """Random numbers of mean 0 and variance 1 (Box and Muller, 1958), at most 5.8 in size; arguments as for `bits`.

    Backends agree to the rounding of their logarithm, sine and cosine.
    """
    size = math.prod(shape)
    half = (size + 1) // 2
    pairs = _unit(bits([2, half], seed, step, stream), dtype)
    # 1 - u lies above 0, where the logarithm is finite.
    radius, angle = ops.sqrt(-2.0 * ops.log(1.0 - pairs[0])), 2.0 * math.pi * pairs[1]
    values = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)])
    return ops.reshape(values[:size], tuple(shape))


def _hash(x: Any, key: Any = None) -> Any:
    """triple32; `key` is added before the last round."""
    for number, (shift, factor) in enumerate(_ROUNDS):
        if number == 2 and key is not None:
            x = x + key
        x = _fold(x, shift) * ops.convert_to_tensor(np.uint32(factor), "uint32")
    return _fold(x, _LAST_SHIFT)


def _fold(x: Any, shift: int) -> Any:
    return ops.bitwise_xor(x, ops.right_shift(x, ops.convert_to_tensor(np.uint32(shift), "uint32")))


def _unit(words: Any, dtype: str) -> Any:
    # float32 holds 24 bits exactly. A shift of a uint32 fits an int32, whose cast to float is fast everywhere.
    top = ops.right_shift(words, ops.convert_to_tensor(np.uint32(8), "uint32"))
    return ops.cast(ops.cast(top, "int32"), dtype) * (1.0 / 2**24)

"""The random numbers of `core.randomness` in NumPy, one formula per line, with 64-bit integers cut to 32 bits."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from keras_trainkit.testing.reference.arrays import Array

WORD = np.uint64(0xFFFFFFFF)


def triple32(x: Array, key: int = 0) -> Array:
    """Wellons, 2018, github.com/skeeto/hash-prospector; `key` is added after the second multiplication."""
    x = x.astype(np.uint64) & WORD
    x = x ^ (x >> np.uint64(17))
    x = (x * np.uint64(0xED5AD4BB)) & WORD
    x = x ^ (x >> np.uint64(11))
    x = (x * np.uint64(0xAC4C1B51) + np.uint64(key)) & WORD
    x = x ^ (x >> np.uint64(15))
    x = (x * np.uint64(0x31848BAB)) & WORD
    return (x ^ (x >> np.uint64(14))).astype(np.uint32)


def bits(shape: Any, seed: int, step: int, stream: int = 0) -> Array:
    """Random uint32 numbers."""
    digest = hashlib.blake2b(f"{seed},{stream}".encode(), digest_size=8).digest()
    start = [int.from_bytes(digest[:4], "little") + step, int.from_bytes(digest[4:], "little") + step]
    first, second = triple32(np.array(start, np.uint64))
    position = np.arange(math.prod(shape), dtype=np.uint64)
    return triple32(position + np.uint64(first), int(second)).reshape(shape)


def uniform(shape: Any, seed: int, step: int, stream: int = 0) -> Array:
    """Random numbers from 0 to below 1."""
    return (bits(shape, seed, step, stream) >> 8) / 2.0**24


def normal(shape: Any, seed: int, step: int, stream: int = 0) -> Array:
    """Random numbers of mean 0 and variance 1 (Box and Muller, 1958): cosines first, then sines."""
    size = math.prod(shape)
    first, second = uniform([2, (size + 1) // 2], seed, step, stream)
    radius = np.sqrt(-2 * np.log(1 - first))
    values = np.concatenate([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)])
    return values[:size].reshape(shape)

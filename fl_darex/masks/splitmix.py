"""SplitMix64 as a counter-based generator: any output of any stream, in any order.

Output i of stream s is ``mix(s + i * GOLDEN)``, all modulo 2**64 (Steele, Lea & Flood, "Fast
Splittable Pseudorandom Number Generators", 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's finalizer of each number, as a new array."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


def streams(keys: NDArray[np.uint64], blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the stream of each block.

    Args:
        keys: 64-bit keys of the blocks' tensors, from `fl_darex.masks.mask_key`.
        blocks: The blocks' numbers in their tensors, from 0.
    """
    return mix(keys + (blocks + np.uint64(1)) * np.uint64(GOLDEN))


def words(stream: NDArray[np.uint64], first: int, count: int) -> NDArray[np.uint32]:
    """Return 32-bit draws ``first`` to ``first + count - 1`` of each stream.

    Draw i is half ``i & 1`` of output ``i >> 1``, the low half first.

    Args:
        stream: Streams, shape ``(rows, 1)``, or one stream, shape ``(1,)``.
        first: An even number.
        count: An even number.

    Returns:
        Shape ``(rows, count)`` or ``(count,)``.
    """
    counters = np.arange(first // 2, (first + count) // 2, dtype=np.uint64)
    outputs = mix(stream + counters * np.uint64(GOLDEN))
    return outputs.astype("<u8", copy=False).view("<u4")

"""A coding of numbers: -1, 0 or 1 times the largest magnitude of 256 numbers, five in a byte.

Wen et al., "TernGrad", 2017, https://arxiv.org/abs/1705.07878.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason
from fl_darex.masks import words
from fl_darex.wire.codings import Coding, Numbers, scales

PLACES = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
SIGNS = np.array([0, 1, -1], dtype=np.float32)


class Ternary(Coding):
    """1.66 bits a number; the mean of what is read is what was written."""

    name, code, bits = "ternary", 128, 8 / 5 + scales.BITS

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers: two for each scale, one for each five."""
        return scales.size(count) + -(-count // 5)

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return scales and digits; a number is 0 or not at random, in proportion to its size."""
        count, sizes = numbers.size, np.abs(numbers)
        starts = np.arange(0, count, scales.BLOCK)
        tops = scales.rounded_up(np.maximum.reduceat(sizes, starts) if count else sizes)
        chances = sizes / scales.spread(np.maximum(tops, np.float32(1e-45)), 0, count)
        kept = words(noise, 0, count + count % 2)[:count] < chances * np.float32(2**32)
        digits = np.zeros(-(-count // 5) * 5, dtype=np.uint8)
        digits[:count] = kept * np.where(numbers < 0, 2, 1)
        return scales.written(tops) + (digits.reshape(-1, 5) @ PLACES).tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Return the largest scale; refuse bytes that `write` does not make."""
        found = scales.largest(data, count, exponent)
        packed = np.frombuffer(data[scales.size(count) :], dtype=np.uint8)
        if (packed >= 243).any() or (count % 5 and packed[-1] >= 3 ** (count % 5)):
            raise PacketError("the packet holds a byte that is not five digits", Reason.VALUES)
        return float(found)

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return some of the numbers."""
        body = data[scales.size(count) :][start // 5 : -(-end // 5)]
        digits = np.frombuffer(body, dtype=np.uint8)[:, None] // PLACES % np.uint8(3)
        signs: Numbers = SIGNS[digits.reshape(-1)[start % 5 : start % 5 + end - start]]
        return signs * scales.read(data, start, end)

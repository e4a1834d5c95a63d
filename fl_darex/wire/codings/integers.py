"""Integers of 8 or 4 bits times a scale, rounded up or down at random; signs times a scale.

The mean of what is read as integers is what was written (Alistarh et al., "QSGD", 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import Reason
from fl_darex.masks import words
from fl_darex.positions.mask import refuse
from fl_darex.wire.codings import scales
from fl_darex.wire.codings.coding import Coding, Nature, Numbers

_AT_ONCE = 1 << 16  # numbers: their temporaries stay in cache


class Integer(Coding):
    """Integers in ``[-top, top]``: two's complement of 8, 4 or 2 bits without its lowest number."""

    width: int
    top: int

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers: scales, then codes."""
        return scales.size(count) + (count * self.width + 7) // 8

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the bytes of finite numbers, each rounded up or down at random."""
        largest = self._tops(numbers)
        # The next number up: division may have rounded down, and no code may pass the top.
        up = np.nextafter(largest / np.float32(self.top), np.float32(np.inf))
        steps = scales.rounded_up(up)
        steps[largest == 0] = 0
        divisors = np.where(steps > 0, steps, np.float32(1))
        codes = np.empty(numbers.size, dtype=np.int8)
        for start in range(0, numbers.size, _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            scaled = part / scales.spread(divisors, start, start + part.size)
            codes[start : start + part.size] = _rounded(scaled, noise, start)
        return scales.written(steps) + self._packed(codes)

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Check bytes from a stranger and return a bound of what they can stand for."""
        scale = scales.largest(data, count, exponent)
        if (self._codes(data, count, 0, count) < -self.top).any():
            refuse(f"holds a code below {-self.top}", Reason.VALUES)
        scales.check_padding(data, count, self.width)
        with np.errstate(over="ignore"):
            return float(scale * np.float32(self.top))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of ``count``."""
        codes = self._codes(data, count, start, end)
        return codes.astype(np.float32) * scales.read(data, start, end)

    def _tops(self, numbers: Numbers) -> Numbers:
        """Return what the largest code stands for in each block, at least: its largest number."""
        if not numbers.size:
            return np.zeros(0, dtype=np.float32)
        starts = np.arange(0, numbers.size, scales.BLOCK)
        found: Numbers = np.maximum.reduceat(np.abs(numbers), starts)
        return found

    def _packed(self, codes: NDArray[np.int8]) -> bytes:
        each = 8 // self.width
        low = np.zeros(-(-codes.size // each) * each, dtype=np.uint8)
        low[: codes.size] = codes.view(np.uint8) & np.uint8((1 << self.width) - 1)
        whole = low[::each].copy()
        for place in range(1, each):
            whole |= low[place::each] << np.uint8(place * self.width)
        return whole.tobytes()

    def _codes(self, data: memoryview, count: int, start: int, end: int) -> NDArray[np.int8]:
        each = 8 // self.width
        first = start // each * each  # a byte holds several
        body = data[scales.size(count) :][first // each : -(-end // each)]
        whole = np.frombuffer(body, dtype=np.uint8)
        if each == 1:
            return whole.view(np.int8)
        codes, high = np.empty(each * whole.size, dtype=np.int8), np.uint8(8 - self.width)
        for place in range(each):
            # Up and down again: the sign of few bits becomes that of eight.
            up = (whole >> np.uint8(place * self.width)) << high
            codes[place::each] = up.view(np.int8) >> np.int8(high)
        return codes[start - first : end - first]


class _Int8(Integer):
    name, code, bits = "int8", 3, 8 + scales.BITS
    width, top = 8, 127


class _Int4(Integer):
    name, code, bits = "int4", 4, 4 + scales.BITS
    width, top = 4, 7


class _Sign(Coding):
    """One bit a number, 1 for negative, times the mean magnitude of its block; biased.

    As BitDelta does (Liu et al., "BitDelta: Your Fine-Tune May Only Be Worth One Bit", 2024).
    """

    name, code, bits = "sign", 5, 1 + scales.BITS
    nature = Nature(biased=True, zeros=False)

    def size(self, count: int) -> int:
        return scales.size(count) + (count + 7) // 8

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        starts = np.arange(0, numbers.size, scales.BLOCK)
        means = np.zeros(0, dtype=np.float32)
        if numbers.size:  # in float64: small magnitudes must not vanish, large ones not overflow
            sums = np.add.reduceat(np.abs(numbers), starts, dtype=np.float64)
            means = (sums / np.diff(starts, append=numbers.size)).astype(np.float32)
            means[sums > 0] = np.nextafter(means[sums > 0], np.float32(np.inf))
        signs = np.packbits(np.signbit(numbers), bitorder="little").tobytes()
        return scales.written(scales.rounded_up(means)) + signs

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        scale = scales.largest(data, count, exponent)
        scales.check_padding(data, count, 1)
        return float(scale)

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        body = data[scales.size(count) :][start // 8 : (end + 7) // 8]
        bits = np.unpackbits(np.frombuffer(body, dtype=np.uint8), bitorder="little")
        negative = bits[start % 8 : start % 8 + end - start].astype(bool)
        magnitude = scales.read(data, start, end)
        return np.where(negative, -magnitude, magnitude)


INT8, INT4, SIGN = _Int8(), _Int4(), _Sign()


def _rounded(scaled: Numbers, noise: NDArray[np.uint64], start: int) -> Numbers:
    """Round up or down at random; ``start`` is the first number's place in the noise."""
    lower = np.floor(scaled)
    uniform = words(noise, start, (scaled.size + 1) & ~1)[: scaled.size]
    # Exact: a float32 fraction times 2**32 has no rounding, and float64 holds both sides.
    return lower + (uniform < (scaled - lower) * np.float32(2**32))

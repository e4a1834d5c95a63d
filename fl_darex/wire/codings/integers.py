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


class _Integer(Coding):
    """Integers of ``width`` bits in ``[-top, top]``: two's complement without its lowest number."""

    width: int
    top: int

    def size(self, count: int) -> int:
        return scales.size(count) + (count * self.width + 7) // 8

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        largest = _largest_per_block(numbers)
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
        scale = scales.largest(data, count, exponent)
        if (self._codes(data, count, 0, count) < -self.top).any():
            refuse(f"holds a code below {-self.top}", Reason.VALUES)
        scales.check_padding(data, count, self.width)
        with np.errstate(over="ignore"):
            return float(scale * np.float32(self.top))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        codes = self._codes(data, count, start, end)
        return codes.astype(np.float32) * scales.read(data, start, end)

    def _packed(self, codes: NDArray[np.int8]) -> bytes:
        return codes.tobytes()

    def _codes(self, data: memoryview, count: int, start: int, end: int) -> NDArray[np.int8]:
        return np.frombuffer(data[scales.size(count) :][start:end], dtype=np.int8)


class _Int8(_Integer):
    name, code, bits = "int8", 3, 8 + scales.BITS
    width, top = 8, 127


class _Int4(_Integer):
    name, code, bits = "int4", 4, 4 + scales.BITS
    width, top = 4, 7

    def _packed(self, codes: NDArray[np.int8]) -> bytes:
        nibbles = np.zeros((codes.size + 1) // 2 * 2, dtype=np.uint8)
        nibbles[: codes.size] = codes.view(np.uint8) & np.uint8(0xF)
        return (nibbles[::2] | nibbles[1::2] << np.uint8(4)).tobytes()

    def _codes(self, data: memoryview, count: int, start: int, end: int) -> NDArray[np.int8]:
        first = start & ~1  # a byte holds two
        body = data[scales.size(count) :][first // 2 : (end + 1) // 2]
        pairs = np.frombuffer(body, dtype=np.uint8)
        nibbles = np.empty(2 * pairs.size, dtype=np.uint8)
        nibbles[::2], nibbles[1::2] = pairs & np.uint8(0xF), pairs >> np.uint8(4)
        # Shift up and down again: the sign of four bits becomes that of eight.
        return (nibbles << np.uint8(4)).view(np.int8)[start - first : end - first] >> np.int8(4)


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


def _largest_per_block(numbers: Numbers) -> Numbers:
    if not numbers.size:
        return np.zeros(0, dtype=np.float32)
    starts = np.arange(0, numbers.size, scales.BLOCK)
    found: Numbers = np.maximum.reduceat(np.abs(numbers), starts)
    return found

"""Codings of a few bits: integers or signs in blocks of ``BLOCK`` numbers with one scale each.

``int8`` and ``int4`` round up or down at random so that the mean of what is read is what was
written (Alistarh et al., "QSGD", 2017). ``sign`` sends one bit a number and the mean magnitude
of each block, as BitDelta does: it is not unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason
from fl_darex.masks import words
from fl_darex.wire.bits import padding_is_zero

BLOCK = 256
"""Numbers that share one scale of two bytes."""

_AT_ONCE = 1 << 16  # numbers: their temporaries stay in cache

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class BlockInteger:
    """Integers in ``[-top, top]`` times a scale, ``top = 2**(width-1) - 1``; unbiased.

    Attributes:
        code: The byte that names it in a packet.
        width: Bits per number: 8 or 4.
    """

    code: int
    width: int

    @property
    def bits(self) -> float:
        """Bits per number, scales included, for many numbers."""
        return self.width + 16 / BLOCK

    @property
    def top(self) -> int:
        """The largest integer; its negative is the smallest."""
        return (1 << (self.width - 1)) - 1

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers: scales, then codes."""
        return 2 * _blocks(count) + (count * self.width + 7) // 8

    def exponent(self, largest: np.float32) -> int:
        """Return 0: scales have float32's range."""
        return 0

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return scales and stochastically rounded codes of finite numbers."""
        largest = _largest_per_block(numbers)
        # The next number up: division may have rounded down, and no code may pass the top.
        scales = _rounded_up(np.nextafter(largest / np.float32(self.top), np.float32(np.inf)))
        scales[largest == 0] = 0
        divisors = np.where(scales > 0, scales, np.float32(1))
        codes = np.empty(numbers.size, dtype=np.int8)
        for start in range(0, numbers.size, _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            scaled = part / _spread(divisors, start, start + part.size)
            codes[start : start + part.size] = _rounded(scaled, noise, start)
        return _scale_bytes(scales) + self._code_bytes(codes)

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Return the largest magnitude that these scales allow; refuse what is never written."""
        scales = _read_scales(data, count, exponent)
        codes = self._codes(data, count, 0, count)
        if (codes < -self.top).any():
            raise PacketError(f"the packet holds a code below {-self.top}", Reason.VALUES)
        if self.width < 8 and not padding_is_zero(data[2 * scales.size :], count, self.width):
            raise PacketError("the packet has bits set that mean nothing", Reason.VALUES)
        with np.errstate(over="ignore"):
            return float(scales.max(initial=0) * np.float32(self.top))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of ``count``."""
        scales = _to_float(np.frombuffer(data[: 2 * _blocks(count)], dtype="<u2"))
        return self._codes(data, count, start, end).astype(np.float32) * _spread(scales, start, end)

    def _code_bytes(self, codes: NDArray[np.int8]) -> bytes:
        if self.width == 8:
            return codes.tobytes()
        nibbles = np.zeros((codes.size + 1) // 2 * 2, dtype=np.uint8)
        nibbles[: codes.size] = codes.view(np.uint8) & np.uint8(0xF)
        return (nibbles[::2] | nibbles[1::2] << np.uint8(4)).tobytes()

    def _codes(self, data: memoryview, count: int, start: int, end: int) -> NDArray[np.int8]:
        body = data[2 * _blocks(count) :]
        if self.width == 8:
            return np.frombuffer(body[start:end], dtype=np.int8)
        first = start & ~1  # a byte holds two
        pairs = np.frombuffer(body[first // 2 : (end + 1) // 2], dtype=np.uint8)
        nibbles = np.empty(2 * pairs.size, dtype=np.uint8)
        nibbles[::2], nibbles[1::2] = pairs & np.uint8(0xF), pairs >> np.uint8(4)
        # Shift up and down again: the sign of four bits becomes that of eight.
        return (nibbles << np.uint8(4)).view(np.int8)[start - first : end - first] >> np.int8(4)


class Sign:
    """One bit, 1 for negative, times the mean magnitude of the block; biased."""

    code, bits = 5, 1 + 16 / BLOCK

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers: scales, then bits."""
        return 2 * _blocks(count) + (count + 7) // 8

    def exponent(self, largest: np.float32) -> int:
        """Return 0: scales have float32's range."""
        return 0

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return scales and signs of finite numbers."""
        starts = np.arange(0, numbers.size, BLOCK)
        means = np.zeros(0, dtype=np.float32)
        if numbers.size:  # in float64: small magnitudes must not vanish, large ones not overflow
            sums = np.add.reduceat(np.abs(numbers), starts, dtype=np.float64)
            means = (sums / np.diff(starts, append=numbers.size)).astype(np.float32)
            means[sums > 0] = np.nextafter(means[sums > 0], np.float32(np.inf))
        signs = np.packbits(np.signbit(numbers), bitorder="little").tobytes()
        return _scale_bytes(_rounded_up(means)) + signs

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Return the largest scale; refuse what is never written."""
        scales = _read_scales(data, count, exponent)
        if not padding_is_zero(data[2 * scales.size :], count, 1):
            raise PacketError("the packet has bits set that mean nothing", Reason.VALUES)
        return float(scales.max(initial=0))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of ``count``."""
        scales = _to_float(np.frombuffer(data[: 2 * _blocks(count)], dtype="<u2"))
        body = data[2 * _blocks(count) :][start // 8 : (end + 7) // 8]
        bits = np.unpackbits(np.frombuffer(body, dtype=np.uint8), bitorder="little")
        negative = bits[start % 8 : start % 8 + end - start].astype(bool)
        magnitude = _spread(scales, start, end)
        return np.where(negative, -magnitude, magnitude)


def _rounded(scaled: Numbers, noise: NDArray[np.uint64], start: int) -> Numbers:
    """Round up or down at random; ``start`` is the first number's place in the noise."""
    lower = np.floor(scaled)
    uniform = words(noise, start, (scaled.size + 1) & ~1)[: scaled.size]
    # Exact: a float32 fraction times 2**32 has no rounding, and float64 holds both sides.
    return lower + (uniform < (scaled - lower) * np.float32(2**32))


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _largest_per_block(numbers: Numbers) -> Numbers:
    if not numbers.size:
        return np.zeros(0, dtype=np.float32)
    found: Numbers = np.maximum.reduceat(np.abs(numbers), np.arange(0, numbers.size, BLOCK))
    return found


def _spread(scales: Numbers, start: int, end: int) -> Numbers:
    """Return the scale of each of the numbers ``start`` to ``end - 1``."""
    if start >= end:
        return np.zeros(0, dtype=np.float32)
    first = start // BLOCK
    spread = np.repeat(scales[first : _blocks(end)], BLOCK)
    return spread[start - first * BLOCK : end - first * BLOCK]


def _rounded_up(scales: Numbers) -> Numbers:
    """Round up to numbers of which float32's lower two bytes are zero."""
    bits = (scales.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _scale_bytes(scales: Numbers) -> bytes:
    return (scales.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def _to_float(upper: NDArray[np.uint16]) -> Numbers:
    return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _read_scales(data: memoryview, count: int, exponent: int) -> Numbers:
    if exponent:
        raise PacketError(f"the packet's exponent is {exponent}, allowed: 0 to 0", Reason.VALUES)
    upper = np.frombuffer(data[: 2 * _blocks(count)], dtype="<u2")
    if (upper >= 0x7F80).any():  # infinite, NaN, or negative
        raise PacketError("the packet holds a scale that is no number above 0", Reason.VALUES)
    return _to_float(upper)

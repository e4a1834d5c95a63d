"""How a packet writes numbers: one row of a table per coding.

A coding writes float32 numbers as bytes and reads any part of them back. ``fp16`` carries one power
of two for the whole packet, chosen so that the largest number nearly fills the range: deltas are
small and would otherwise fall among float16's subnormal numbers. ``int8``, ``int4`` and ``sign``
are in `fl_darex.wire.blocks`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason
from fl_darex.wire.blocks import BlockInteger, Sign

_FP16_TOP = 15  # numbers below 2**15 keep clear of float16's largest, 65504

Numbers = NDArray[np.float32]


class Coding(Protocol):
    """A way to write float32 numbers."""

    @property
    def code(self) -> int:
        """The byte that names it in a packet."""

    @property
    def bits(self) -> float:
        """Bits per number, scales included, for many numbers."""

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""

    def exponent(self, largest: np.float32) -> int:
        """Return the power of two for the header, given the largest magnitude."""

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the bytes of finite numbers.

        Args:
            numbers: What to write.
            exponent: From `exponent`.
            noise: The stream of stochastic rounding, shape ``(1,)`` (`fl_darex.masks.words`).
        """

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Check bytes from a stranger and return a bound of what they can stand for.

        Raises:
            PacketError: If they are not what `write` writes for finite numbers.
        """

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of ``count``, checked by `largest` before."""


class Float32:
    """Four bytes as they are."""

    code, bits = 0, 32.0

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""
        return 4 * count

    def exponent(self, largest: np.float32) -> int:
        """Return 0: float32 needs no power of two."""
        return 0

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the numbers' own bytes."""
        return numbers.astype("<f4", copy=False).tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Return the largest magnitude; refuse NaN and infinity."""
        _check_exponent(exponent, 0, 0)
        return _bound(
            np.frombuffer(data, dtype="<u4") & np.uint32(0x7FFFFFFF), 0x7F800000, np.float32
        )

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return some of the numbers."""
        return np.frombuffer(data[4 * start : 4 * end], dtype="<f4").astype(np.float32)


class Float16:
    """Two bytes with one power of two for the packet, rounded to nearest."""

    code, bits = 1, 16.0

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""
        return 2 * count

    def exponent(self, largest: np.float32) -> int:
        """Return the power of two that brings the largest number just below 2**15."""
        if largest == 0.0:
            return 0
        return int(np.clip(_FP16_TOP - np.frexp(largest)[1], -128, 127))

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the scaled numbers in half precision."""
        if abs(exponent) < 127:  # a power of two that float32 has: faster, and as exact
            return (numbers * np.float32(2.0**exponent)).astype("<f2").tobytes()
        return np.ldexp(numbers, exponent).astype("<f2").tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Return the largest magnitude; refuse NaN and infinity."""
        bits = np.frombuffer(data, dtype="<u2") & np.uint16(0x7FFF)
        return float(np.ldexp(_bound(bits, 0x7C00, np.float16), -exponent))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return some of the numbers."""
        numbers = np.frombuffer(data[2 * start : 2 * end], dtype="<f2").astype(np.float32)
        if abs(exponent) < 127:  # a power of two that float32 has: faster, and as exact
            numbers *= np.float32(2.0**-exponent)
            return numbers
        return np.ldexp(numbers, -exponent)


class BFloat16:
    """The upper two bytes of float32, rounded to nearest: less precise, any magnitude."""

    code, bits = 2, 16.0

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""
        return 2 * count

    def exponent(self, largest: np.float32) -> int:
        """Return 0: bfloat16 has float32's range."""
        return 0

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the numbers rounded to nearest, ties to even."""
        bits = np.ascontiguousarray(numbers).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype("<u2").tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Return the largest magnitude; refuse NaN and infinity."""
        _check_exponent(exponent, 0, 0)
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return _bound(bits & np.uint32(0x7FFFFFFF), 0x7F800000, np.float32)

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return some of the numbers."""
        bits = np.frombuffer(data[2 * start : 2 * end], dtype="<u2").astype(np.uint32)
        return (bits << np.uint32(16)).view(np.float32)


CODINGS: dict[str, Coding] = {
    "fp32": Float32(),
    "fp16": Float16(),
    "bf16": BFloat16(),
    "int8": BlockInteger(code=3, width=8),
    "int4": BlockInteger(code=4, width=4),
    "sign": Sign(),
}


def dense_coding(values: str) -> Coding:
    """Return how whole tensors are written beside survivors: never narrower than fp16.

    A fresh head and running statistics are few numbers, and no random mask averages their
    rounding away.
    """
    return CODINGS["fp32" if values == "fp32" else "fp16"]


def _check_exponent(found: int, lowest: int, highest: int) -> None:
    if not lowest <= found <= highest:
        raise PacketError(
            f"the packet's exponent is {found}, allowed: {lowest} to {highest}", Reason.VALUES
        )


def _bound(
    magnitudes: NDArray[np.unsignedinteger], infinity: int, kind: type[np.floating]
) -> float:
    """Return the largest of some floating-point numbers given as bits without their sign."""
    largest = magnitudes.max() if magnitudes.size else magnitudes.dtype.type(0)
    if int(largest) >= infinity:
        raise PacketError("the packet holds NaN or infinite values", Reason.VALUES)
    return float(largest.view(kind))

"""Floating-point numbers of eight, of four and of two bytes.

``fp16`` carries one power of two for the whole packet, chosen so that the largest number nearly
fills the range: deltas are small and would otherwise fall among float16's subnormal numbers.
``bf16`` is the upper half of float32: less precise, any magnitude. ``fp64`` alone has more than
float32's precision and range, for models in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import Reason
from fl_darex.positions.mask import refuse
from fl_darex.wire.codings.coding import Coding, Numbers, check_no_exponent

_FP16_TOP = 15  # numbers below 2**15 keep clear of float16's largest, 65504


class _Float(Coding):
    def size(self, count: int) -> int:
        return int(self.bits) // 8 * count


class _Float64(_Float):
    name, code, bits = "fp64", 6, 64.0
    dtype = np.float64

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        return numbers.astype("<f8", copy=False).tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        check_no_exponent(exponent)
        bits = np.frombuffer(data, dtype="<u8") & np.uint64(0x7FFFFFFFFFFFFFFF)
        return _bound(bits, 0x7FF0000000000000, np.float64)

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        return np.frombuffer(data[8 * start : 8 * end], dtype="<f8").astype(np.float64)


class _Float32(_Float):
    name, code, bits = "fp32", 0, 32.0

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        return numbers.astype("<f4", copy=False).tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        check_no_exponent(exponent)
        bits = np.frombuffer(data, dtype="<u4") & np.uint32(0x7FFFFFFF)
        return _bound(bits, 0x7F800000, np.float32)

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        return np.frombuffer(data[4 * start : 4 * end], dtype="<f4").astype(np.float32)


class _Float16(_Float):
    name, code, bits = "fp16", 1, 16.0

    def exponent(self, largest: np.floating[Any]) -> int:
        if largest == 0.0:
            return 0
        return int(np.clip(_FP16_TOP - np.frexp(largest)[1], -128, 127))

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        if abs(exponent) < 127:  # a power of two that float32 has: faster, and as exact
            return (numbers * np.float32(2.0**exponent)).astype("<f2").tobytes()
        return np.ldexp(numbers, exponent).astype("<f2").tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        bits = np.frombuffer(data, dtype="<u2") & np.uint16(0x7FFF)
        return float(np.ldexp(_bound(bits, 0x7C00, np.float16), -exponent))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        numbers = np.frombuffer(data[2 * start : 2 * end], dtype="<f2").astype(np.float32)
        if abs(exponent) < 127:  # a power of two that float32 has: faster, and as exact
            numbers *= np.float32(2.0**-exponent)
            return numbers
        return np.ldexp(numbers, -exponent)


class _BFloat16(_Float):
    name, code, bits = "bf16", 2, 16.0

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        return to_bfloat16(numbers).astype("<u2", copy=False).tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        check_no_exponent(exponent)
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return _bound(bits & np.uint32(0x7FFFFFFF), 0x7F800000, np.float32)

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        return from_bfloat16(np.frombuffer(data[2 * start : 2 * end], dtype="<u2"))


FP64, FP32, FP16, BF16 = FLOATS = _Float64(), _Float32(), _Float16(), _BFloat16()


def from_bfloat16(bits: NDArray[np.uint16]) -> Numbers:
    """Return the numbers whose upper halves are given; exact, NaN's payload included."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(numbers: Numbers) -> NDArray[np.uint16]:
    """Return the upper halves of finite numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _bound(
    magnitudes: NDArray[np.unsignedinteger], infinity: int, kind: type[np.floating]
) -> float:
    """Return the largest of some floating-point numbers given as bits without their sign."""
    largest = magnitudes.max() if magnitudes.size else magnitudes.dtype.type(0)
    if int(largest) >= infinity:
        refuse("holds NaN or infinite values", Reason.VALUES)
    return float(largest.view(kind))

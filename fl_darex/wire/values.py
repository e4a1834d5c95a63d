"""How a packet writes numbers: one row of a table per coding.

A coding writes float32 numbers as bytes and reads them back. fp16 carries one power of two for
the whole packet, chosen so that the largest number nearly fills the range: deltas are small and
would otherwise fall among float16's subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FP16_TOP = 15  # numbers below 2**15 keep clear of float16's largest, 65504


@dataclass(frozen=True)
class Coding:
    """A way to write float32 numbers.

    Attributes:
        code: The byte that names it in a packet.
        width: Bytes per number.
        exponents: The powers of two that a packet may carry.
        exponent: Returns the power of two for a packet, given its largest magnitude.
        write: ``(numbers, exponent) -> bytes``.
        read: ``(bytes, exponent) -> float32 numbers``; ``len(bytes)`` is a multiple of width.
    """

    code: int
    width: int
    exponents: range
    exponent: Callable[[np.float32], int]
    write: Callable[[NDArray[np.float32], int], bytes]
    read: Callable[[memoryview, int], NDArray[np.float32]]


def _write_fp32(numbers: NDArray[np.float32], exponent: int) -> bytes:
    return numbers.astype("<f4", copy=False).tobytes()


def _read_fp32(data: memoryview, exponent: int) -> NDArray[np.float32]:
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _fp16_exponent(largest: np.float32) -> int:
    if largest == 0.0:
        return 0
    return int(np.clip(_FP16_TOP - np.frexp(largest)[1], -128, 127))


def _write_fp16(numbers: NDArray[np.float32], exponent: int) -> bytes:
    return np.ldexp(numbers, exponent).astype("<f2").tobytes()


def _read_fp16(data: memoryview, exponent: int) -> NDArray[np.float32]:
    return np.ldexp(np.frombuffer(data, dtype="<f2").astype(np.float32), -exponent)


CODINGS = {
    "fp32": Coding(0, 4, range(1), lambda largest: 0, _write_fp32, _read_fp32),
    "fp16": Coding(1, 2, range(-128, 128), _fp16_exponent, _write_fp16, _read_fp16),
}

"""Blocks of ``BLOCK`` numbers with one scale each: two bytes, the upper half of a float32."""

from __future__ import annotations

import numpy as np

from fl_darex.errors import Reason
from fl_darex.positions.bits import padding_is_zero
from fl_darex.positions.mask import refuse
from fl_darex.wire.codings.coding import Numbers, check_no_exponent
from fl_darex.wire.codings.floats import from_bfloat16

BLOCK = 256
"""Numbers that share one scale of two bytes."""

BITS = 16 / BLOCK
"""What scales add to each number."""


def size(count: int) -> int:
    """Return the bytes of the scales of ``count`` numbers."""
    return 2 * -(-count // BLOCK)


def rounded_up(scales: Numbers) -> Numbers:
    """Round up to numbers of which float32's lower two bytes are zero."""
    bits = (scales.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def written(scales: Numbers) -> bytes:
    """Return the bytes of scales that were rounded up."""
    return (scales.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def largest(data: memoryview, count: int, exponent: int) -> np.float32:
    """Return the largest scale of ``count`` numbers; refuse what is never written."""
    check_no_exponent(exponent)
    upper = np.frombuffer(data[: size(count)], dtype="<u2")
    if (upper >= 0x7F80).any():  # infinite, NaN, or negative
        refuse("holds a scale that is no number above 0", Reason.VALUES)
    found: np.float32 = from_bfloat16(upper).max(initial=np.float32(0))
    return found


def check_padding(data: memoryview, count: int, width: int) -> None:
    """Refuse set bits behind ``count`` numbers of ``width`` bits."""
    if not padding_is_zero(data, count, width):
        refuse("has bits set that mean nothing", Reason.VALUES)


def read(data: memoryview, start: int, end: int) -> Numbers:
    """Return the scale of each of the numbers ``start`` to ``end - 1``."""
    first = start // BLOCK
    upper = np.frombuffer(data[2 * first : size(end)], dtype="<u2")
    return spread(from_bfloat16(upper), start - first * BLOCK, end - first * BLOCK)


def spread(scales: Numbers, start: int, end: int) -> Numbers:
    """Return each scale as often as it is used by the numbers ``start`` to ``end - 1``."""
    if start >= end:
        return np.zeros(0, dtype=np.float32)
    first = start // BLOCK
    repeated = np.repeat(scales[first : -(-end // BLOCK)], BLOCK)
    return repeated[start - first * BLOCK : end - first * BLOCK]

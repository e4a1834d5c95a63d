"""Geometric gaps from uniform integers, by table.

Gaps between survivors are sampled instead of one draw per entry, so work is proportional to the
survivors. Gap g has probability ``p**(g-1) * (1-p)``: it is 1 + the number of g with
``u < p**g``, where u is uniform.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fl_darex.masks.keys import BLOCK, ONE

GUIDED_BITS = 14  # of a draw: 32 KB of guide, which stay near a core
_FRACTION_BITS = 96  # of the fixed-point powers p**g: far below the 32 bits that are kept


def gaps(uniform: NDArray[np.uint32], keep: int) -> NDArray[np.int32]:
    """Return the gap that each 32-bit number stands for, in the same shape; 1 is the next entry."""
    guide, table = tables(keep)
    found: NDArray[np.int32] = guide.take(uniform >> np.uint32(16))
    flat = found.reshape(-1)
    unsure = np.flatnonzero(flat <= 0)
    if unsure.size:
        flat[unsure] = _look_closer(-flat[unsure], uniform.reshape(-1)[unsure], table)
    return found


def _look_closer(
    least: NDArray[np.int32], uniform: NDArray[np.uint32], table: NDArray[np.uint32]
) -> NDArray[np.int32]:
    """Return gaps that the upper 16 bits leave open; ``least`` is 0 where they say nothing."""
    # The table falls, and entry number `least` is the only one that the draw can be above or below.
    gap = least + (table.take(least - 1, mode="clip") > uniform)
    far = np.flatnonzero(least == 0)
    gap[far] = 1 + table.size - np.searchsorted(table[::-1], uniform[far], "right")
    return gap


@lru_cache(maxsize=16)
def tables(keep: int) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Return a 16-bit guide and the falling table ``p**g`` in units of 2**-32.

    The guide holds the gap that the upper 16 bits of a draw stand for; minus the smaller one where
    they leave two open; 0 where they leave more. A gap longer than a block is as good as any
    other, so the table ends there.
    """
    dropped = (ONE - keep) << (_FRACTION_BITS - 32)
    power = dropped
    powers: list[int] = []
    while len(powers) < BLOCK:
        rounded = (power + (1 << (_FRACTION_BITS - 33))) >> (_FRACTION_BITS - 32)
        if rounded == 0:
            break
        powers.append(rounded)
        power = (power * dropped) >> _FRACTION_BITS
    table = np.array(powers, dtype=np.uint32)
    rising = table[::-1]
    lowest = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    at_low = 1 + table.size - np.searchsorted(rising, lowest, "right")
    at_high = 1 + table.size - np.searchsorted(rising, lowest | np.uint32(0xFFFF), "right")
    cases = [at_low == at_high, at_low == at_high + 1]
    guide = np.select(cases, [at_low, -at_high], 0).astype(np.int32)
    guide.setflags(write=False)
    table.setflags(write=False)
    return guide, table


@lru_cache(maxsize=16)
def guided(keep: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Return a guide and a table for a compiled loop, `fl_darex.kernels`.

    The guide is looked up by the upper ``GUIDED_BITS`` of a draw. It holds the smaller one of two
    gaps that they leave open; 0 where they leave more, or where it has no room. The table is that
    of `tables` and a 0.
    """
    table = np.append(tables(keep)[1], np.uint32(0))
    lowest = np.arange(1 << GUIDED_BITS, dtype=np.uint32) << np.uint32(32 - GUIDED_BITS)
    highest = lowest + np.uint32((1 << 32 - GUIDED_BITS) - 1)
    longest, shortest = (
        1 + table.size - np.searchsorted(table[::-1], end, "right") for end in (lowest, highest)
    )
    known = (longest - shortest <= 1) & (longest < 1 << 16)
    return np.where(known, shortest, 0).astype(np.uint16), table


def draws(length: int, keep: int) -> int:
    """Return how many gaps to draw for ``length`` entries: enough to pass the end nearly always.

    The mean and four deviations. It is rounded up to even because one 64-bit output gives two
    draws. The number drawn does not change the result, only the work.
    """
    mean = length * keep // ONE
    return (mean + 4 * int(mean**0.5) + 5) & ~1

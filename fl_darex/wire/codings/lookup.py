"""Two bits a number, which choose among four numbers of their own block; biased.

As SparseLoCo quantises what its top-k keeps (Sarfi, Thérien, Lidin, Belilovsky, "Communication
Efficient LLM Pre-training with SparseLoCo", 2025, https://arxiv.org/abs/2508.15706, 2-bit values):
bins of 1.5 standard deviations around the mean, each read as the mean of what is in it. Its error
is meant to be fed back. Here a block is 4,096 numbers, whatever their tensors, and the four are of
two bytes each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import Reason
from fl_darex.positions.bits import pack, unpack
from fl_darex.positions.mask import refuse
from fl_darex.wire.codings import scales
from fl_darex.wire.codings.coding import Coding, Nature, Numbers, check_no_exponent
from fl_darex.wire.codings.floats import from_bfloat16, to_bfloat16

BLOCK = 1 << 12
"""Numbers that share four."""

_FOUR, _WIDTH = 4, 2  # numbers of a block, and the bits that choose one
_BIN = 1.5  # standard deviations


class _Lookup2(Coding):
    name, code, bits = "lookup2", 14, _WIDTH + 8 * 2 * _FOUR / BLOCK
    nature = Nature(biased=True, zeros=False)

    def size(self, count: int) -> int:
        return _table_size(count) + (count * _WIDTH + 7) // 8

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        tables, codes = [], np.empty(numbers.size, dtype=np.int64)
        for start in range(0, numbers.size, BLOCK):
            part = numbers[start : start + BLOCK].astype(np.float64)
            chosen = codes[start : start + part.size] = _binned(part)
            inside = np.bincount(chosen, minlength=_FOUR)
            sums = np.bincount(chosen, weights=part, minlength=_FOUR)
            means = (sums / np.maximum(inside, 1)).astype(np.float32)
            tables.append(to_bfloat16(means).astype("<u2").tobytes())
        return b"".join([*tables, pack(codes, _WIDTH)])

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        check_no_exponent(exponent)
        upper = np.frombuffer(data[: _table_size(count)], dtype="<u2") & np.uint16(0x7FFF)
        if (upper >= 0x7F80).any():
            refuse("holds NaN or infinite values", Reason.VALUES)
        scales.check_padding(data, count, _WIDTH)
        return float(from_bfloat16(upper).max(initial=np.float32(0)))

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        each = 8 // _WIDTH
        first = start // each * each
        body = data[_table_size(count) :][first // each : -(-end // each)]
        chosen = unpack(body, each * len(body), _WIDTH)[start - first : end - first]
        table = from_bfloat16(np.frombuffer(data[: _table_size(count)], dtype="<u2"))
        found: Numbers = table[np.arange(start, end) // BLOCK * _FOUR + chosen]
        return found


def _binned(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return in which of four bins numbers are: two below the mean's, its own, one above."""
    centred = numbers - numbers.mean()
    deviation = centred.std(ddof=1) if numbers.size > 1 else 0.0
    bins: NDArray[np.float64] = np.rint(centred / (_BIN * deviation or 1.0)) + 2
    return bins.clip(0, _FOUR - 1).astype(np.int64)


def _table_size(count: int) -> int:
    return 2 * _FOUR * -(-count // BLOCK)


LOOKUP2 = _Lookup2()

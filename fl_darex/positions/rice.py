"""Positions that depend on the values: Rice-coded gaps, within 1 % of the entropy.

A gap is what lies between a survivor and the one before it. Its low k bits (k chosen for each
tensor) are written as they are; what is above them in unary: so many zeros, then a one. Kept apart,
both parts are read and written without a loop over survivors. Golomb, "Run-length encodings",
1966; Rice & Plaunt, 1971.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.masks import Positions
from fl_darex.positions.bits import pack, packed_size, padding_is_zero, unpack
from fl_darex.positions.mask import refuse

_LARGEST_K = 40
_VARINT_BYTES = 6


@dataclass(frozen=True)
class _Entry:
    """One tensor's part of the section: all but the name follows from the counts and k."""

    count: int
    k: int
    first_bit: int
    end_bit: int
    remainders: memoryview


def write_positions(layout: Layout, where: Mapping[str, Positions]) -> bytes:
    """Return the positions section of a packet.

    Args:
        layout: Its pruned tensors, in order.
        where: Sorted flat positions by tensor, without repeats.
    """
    table, remainders, lengths = bytearray(), [], []
    for spec in layout.pruned:
        positions = where[spec.name]
        table += _varint(positions.size)
        if positions.size:
            gaps = np.diff(positions, prepend=-1) - 1
            k = rice_parameter(gaps)
            table.append(k)
            remainders.append(pack(gaps & ((1 << k) - 1), k))
            lengths.append((gaps >> k) + 1)
    ends = np.cumsum(np.concatenate(lengths)) if lengths else np.zeros(0, dtype=np.int64)
    unary = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    return b"".join([bytes(table), np.packbits(unary, bitorder="little").tobytes(), *remainders])


def rice_parameter(gaps: NDArray[np.int64]) -> int:
    """Return the k that writes these gaps in the fewest bits, of those near the usual rule."""
    usual = max(0, int(np.log2(max(1.0, (float(gaps.mean()) + 1) * np.log(2)))))
    tried = range(max(0, usual - 1), usual + 2)
    return min(tried, key=lambda k: gaps.size * k + int((gaps >> k).sum()))


class ListedPositions(Mapping[str, Positions]):
    """Positions by tensor, decoded when they are asked for and not kept, but for the last ones.

    Args:
        layout: The receiver's layout.
        data: The positions section, from a stranger.
        count: Survivors in all, as the header says.

    Raises:
        PacketError: If the section is not what `write_positions` writes for this layout.
    """

    def __init__(self, layout: Layout, data: memoryview, count: int) -> None:
        self._sizes = {spec.name: spec.numel for spec in layout.pruned}
        # The receiver's own tensors bound what is about to be unpacked.
        size, numel = len(data), sum(self._sizes.values())
        bits = numel + count * (1 + _LARGEST_K)
        if count > numel or size > (_VARINT_BYTES + 2) * len(self._sizes) + bits // 8 + 1:
            refuse(f"lists {count} positions in {size} bytes; the tensors have {numel} entries")
        table, start = self._read_table(data)
        found = sum(count for count, _ in table)
        if found != count:
            refuse(f"lists {found} positions, its header says {count}")
        end = size - sum(packed_size(count, k) for count, k in table)
        if start > end:
            refuse("has a positions section that is too short")
        # A gap of g bits in unary covers g << k entries: more bits than that are never written.
        tensors = zip(self._sizes.values(), table, strict=True)
        longest = count + sum(numel >> k for numel, (listed, k) in tensors if listed)
        if end - start > (longest + 7) // 8:
            refuse("has a positions section that is too long")
        self._unary = data[start:end]
        self._entries = self._locate(table, data[end:])
        self._last: tuple[str, Positions] | None = None
        for name in self:  # all is checked before anything is used
            self[name]
        self._last = None  # as long as nobody asks, a packet holds its bytes alone

    def __getitem__(self, name: str) -> Positions:
        if self._last is None or self._last[0] != name:
            self._last = (name, self._decode(name))
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def _read_table(self, data: memoryview) -> tuple[list[tuple[int, int]], int]:
        """Return each tensor's count and k, and where the table ends."""
        table, at = [], 0
        for name, size in self._sizes.items():
            count, at = _read_varint(data, at)
            k = 0
            if count:
                if count > size or at >= len(data):
                    refuse(f"lists {count} positions of {name!r}, which has {size} entries")
                k, at = data[at], at + 1
                if k > _LARGEST_K or 1 << k > size:
                    refuse(f"has the Rice parameter {k} for {name!r}, too large for {size} entries")
            table.append((count, k))
        return table, at

    def _locate(self, table: list[tuple[int, int]], remainders: memoryview) -> dict[str, _Entry]:
        bits = np.unpackbits(np.frombuffer(self._unary, dtype=np.uint8), bitorder="little")
        bounds = np.cumsum([0, *(count for count, _ in table)])
        if np.count_nonzero(bits) != bounds[-1]:
            refuse("has another number of gaps than of positions")
        # A tensor's part ends behind its last one.
        bounds = np.append(-1, np.flatnonzero(bits))[bounds] + 1
        if len(self._unary) != (bounds[-1] + 7) // 8:
            refuse("has a positions section that is too long")
        entries, at = {}, 0
        spans = pairwise(bounds.tolist())
        for name, (count, k), span in zip(self._sizes, table, spans, strict=True):
            part = remainders[at : at + packed_size(count, k)]
            if not padding_is_zero(part, count, k):
                refuse("has bits set that mean nothing")
            entries[name] = _Entry(count, k, *span, part)
            at += len(part)
        return entries

    def _decode(self, name: str) -> Positions:
        entry, size = self._entries[name], self._sizes[name]
        if not entry.count:
            return np.empty(0, dtype=np.int64)
        low, end = entry.first_bit // 8, entry.end_bit
        part = np.frombuffer(self._unary[low : (end + 7) // 8], dtype=np.uint8)
        bits = np.unpackbits(part, bitorder="little")[entry.first_bit - 8 * low : end - 8 * low]
        high = np.diff(np.flatnonzero(bits), prepend=-1) - 1
        gaps = high << entry.k | unpack(entry.remainders, entry.count, entry.k)
        positions: Positions = np.cumsum(gaps + 1) - 1
        if positions[-1] >= size:
            refuse(f"lists position {positions[-1]} of {name!r}, which has {size} entries")
        return positions


def _varint(number: int) -> bytes:
    """Write seven bits a byte, the low ones first; the high bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(data[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                break
            return number, at + index + 1
    refuse("has a damaged table of positions")

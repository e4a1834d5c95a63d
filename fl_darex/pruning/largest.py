"""The k largest magnitudes of many tensors, exactly, without sorting a tensor.

A histogram of the magnitudes' upper bits finds the bin in which the smallest survivor lies; only
that bin is looked at closer. Equal magnitudes survive in canonical order: the first tensor, the
lowest position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex.positions import Positions
from fl_darex.survivors import Numbers

_AT_ONCE = 1 << 20  # entries: their temporaries stay in cache
_HIGH_BITS = 16  # of a magnitude: its exponent and the beginning of its fraction

Bits = NDArray[np.unsignedinteger[Any]]


class Pieces(Protocol):
    """Numbers that are worked out piece by piece, so that they are never all in memory."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    @property
    def size(self) -> int:
        """How many numbers there are."""

    def __getitem__(self, piece: slice, /) -> Numbers:
        """Return the numbers from one place to another, of the flattened tensor."""


Tensors = Mapping[str, Numbers | Pieces]


@dataclass(frozen=True)
class Cut:
    """Which magnitudes survive.

    Attributes:
        threshold: The smallest one, as bits.
        equal: How many of that size survive, of those that are still to be looked at.
    """

    threshold: int
    equal: int


def largest(tensors: Tensors, count: int) -> dict[str, Positions]:
    """Return the flat positions of the ``count`` largest magnitudes over all tensors.

    Zeros never survive, so there are fewer where fewer entries are not zero.

    Args:
        tensors: Contiguous arrays without NaN, float32 or float64 alike; their order is the
            canonical one.
        count: How many entries survive, 0 or more.

    Raises:
        TypeError: If they are of other types, or not all of one.
    """
    return above(tensors, find_cut(tensors, count))[0]


def find_cut(tensors: Tensors, count: int) -> Cut | None:
    """Return where the ``count`` largest magnitudes end; None: nothing survives.

    See `largest`. Two passes over the tensors.
    """
    histogram = np.zeros(1 << _HIGH_BITS, dtype=np.int64)
    zeros = 0
    for _, _, bits in _pieces(tensors):
        histogram += np.bincount(_high(bits).astype(np.int64, copy=False), minlength=histogram.size)
        zeros += int(bits.size - np.count_nonzero(bits))
    histogram[0] -= zeros
    count = min(count, int(histogram.sum()))
    if not count:
        return None
    reached = np.cumsum(histogram[::-1])[::-1]  # entries in a bin or a higher one
    edge = int(np.flatnonzero(reached >= count)[-1])
    left = count - int(reached[edge] - histogram[edge])  # of the edge's own entries
    return _cut(tensors, edge, left)


def above(tensors: Tensors, cut: Cut | None) -> tuple[dict[str, Positions], Cut | None]:
    """Return the flat positions of what survives, and the cut for tensors that come after these."""
    if cut is None:
        return {name: np.empty(0, dtype=np.int64) for name in tensors}, None
    threshold, equal = cut.threshold, cut.equal
    parts: dict[str, list[Positions]] = {name: [] for name in tensors}
    for name, start, bits in _pieces(tensors):
        found = np.flatnonzero(bits >= threshold)
        ties = np.flatnonzero(bits[found] == threshold)
        found = np.delete(found, ties[equal:])
        equal = max(0, equal - ties.size)
        parts[name].append(found + start)
    where = {
        name: np.concatenate(some) if some else np.empty(0, dtype=np.int64)
        for name, some in parts.items()
    }
    return where, Cut(threshold, equal)


def _pieces(tensors: Tensors) -> Iterator[tuple[str, int, Bits]]:
    """Yield each tensor's name, a position, and the bits of the magnitudes from there on."""
    first: np.dtype[Any] | None = None
    for name, tensor in tensors.items():
        kind = tensor.dtype
        first = kind if first is None else first
        if kind != first or kind not in (np.float32, np.float64):
            raise TypeError(f"{name!r} is of type {kind}; all must be float32, or all float64")
        flat = tensor.reshape(-1) if isinstance(tensor, np.ndarray) else tensor
        magnitude = np.dtype(f"u{kind.itemsize}").type(2 ** (8 * kind.itemsize - 1) - 1)
        for start in range(0, flat.size, _AT_ONCE):
            # All but the sign.
            yield name, start, as_bits(flat[start : start + _AT_ONCE]) & magnitude


def as_bits(numbers: Numbers) -> Bits:
    """Return the bits of contiguous numbers, flattened: for those >= 0 in the numbers' order."""
    return numbers.reshape(-1).view(f"u{numbers.dtype.itemsize}")


def _high(bits: Bits) -> Bits:
    shift = 8 * bits.dtype.itemsize - 1 - _HIGH_BITS
    high: Bits = bits >> bits.dtype.type(shift)
    return high


def _cut(tensors: Tensors, edge: int, left: int) -> Cut:
    parts = []
    for _, _, bits in _pieces(tensors):
        parts.append(bits[(_high(bits) == edge) & (bits > 0)])
    candidates = np.concatenate(parts)
    place = candidates.size - left
    threshold = int(np.partition(candidates, place)[place])
    return Cut(threshold, left - int(np.count_nonzero(candidates > threshold)))

"""The k largest magnitudes of many tensors, exactly, without sorting a tensor.

A histogram of the magnitudes' upper bits finds the bin in which the smallest survivor lies; only
that bin is looked at closer. Equal magnitudes survive in canonical order: the first tensor, the
lowest position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fl_darex.positions import Positions

_AT_ONCE = 1 << 20  # entries: their temporaries stay in cache
_LOW_BITS = 15
_BINS = 1 << (31 - _LOW_BITS)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


def largest(tensors: Mapping[str, NDArray[np.float32]], count: int) -> dict[str, Positions]:
    """Return the flat positions of the ``count`` largest magnitudes over all tensors.

    Zeros never survive, so there are fewer where fewer entries are not zero.

    Args:
        tensors: Contiguous float32 arrays without NaN; their order is the canonical one.
        count: How many entries survive, 0 or more.
    """
    histogram = np.zeros(_BINS, dtype=np.int64)
    zeros = 0
    for _, _, bits in _pieces(tensors):
        histogram += np.bincount(bits >> np.uint32(_LOW_BITS), minlength=_BINS)
        zeros += int(bits.size - np.count_nonzero(bits))
    histogram[0] -= zeros
    count = min(count, int(histogram.sum()))
    if not count:
        return {name: np.empty(0, dtype=np.int64) for name in tensors}
    above = np.cumsum(histogram[::-1])[::-1]  # entries in a bin or a higher one
    edge = int(np.flatnonzero(above >= count)[-1])
    left = count - int(above[edge] - histogram[edge])  # of the edge's own entries
    threshold, equal = _threshold(tensors, edge, left)
    return _collect(tensors, threshold, equal)


def _pieces(
    tensors: Mapping[str, NDArray[np.float32]],
) -> Iterator[tuple[str, int, NDArray[np.uint32]]]:
    """Yield each tensor's name, a position, and the bits of the magnitudes from there on."""
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1).view(np.uint32)
        for start in range(0, flat.size, _AT_ONCE):
            yield name, start, flat[start : start + _AT_ONCE] & _MAGNITUDE


def _threshold(tensors: Mapping[str, NDArray[np.float32]], edge: int, left: int) -> tuple[int, int]:
    """Return the smallest surviving magnitude as bits, and how many of that size survive."""
    parts = []
    for _, _, bits in _pieces(tensors):
        parts.append(bits[(bits >> np.uint32(_LOW_BITS) == edge) & (bits > 0)])
    candidates = np.concatenate(parts)
    place = candidates.size - left
    threshold = int(np.partition(candidates, place)[place])
    return threshold, left - int(np.count_nonzero(candidates > threshold))


def _collect(
    tensors: Mapping[str, NDArray[np.float32]], threshold: int, equal: int
) -> dict[str, Positions]:
    parts: dict[str, list[Positions]] = {name: [] for name in tensors}
    for name, start, bits in _pieces(tensors):
        found = np.flatnonzero(bits >= threshold)
        ties = np.flatnonzero(bits[found] == threshold)
        found = np.delete(found, ties[equal:])
        equal = max(0, equal - ties.size)
        parts[name].append(found + start)
    return {
        name: np.concatenate(some) if some else np.empty(0, dtype=np.int64)
        for name, some in parts.items()
    }

"""Each entry survives independently with the keep rate.

A tensor is cut into blocks of ``BLOCK`` entries; each block has a stream of its own and can be
drawn alone. Drawing past a block's end and forgetting the overshoot is exact because the
geometric distribution has no memory. Blocks of equal length are drawn together: a model has
hundreds of blocks and NumPy's cost is per call.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_darex import compiled
from fl_darex.compiled import Kernels
from fl_darex.masks.gaps import draws, gaps, guided
from fl_darex.masks.keys import BLOCK, ONE, Words, streams, words

_AT_ONCE = 1 << 16  # draws at once: their temporaries stay in a core's cache

Positions = NDArray[np.int64]


def survivors(key: int, numel: int, keep: int) -> Positions:
    """Return the sorted positions that survive in a flattened tensor of ``numel`` entries.

    Each position survives independently with probability ``keep / ONE`` (to 2**-32).

    Args:
        key: From `fl_darex.masks.mask_key`.
        numel: Number of entries, 0 or more.
        keep: Keep threshold from `fl_darex.masks.keep_threshold`; ``ONE`` keeps all.
    """
    return joined(draw(*blocks_of(key, numel), keep))


def blocks_of(key: int, numel: int) -> tuple[Words, Positions, Positions]:
    """Return streams, starts and lengths of one tensor's blocks."""
    starts = np.arange(0, numel, BLOCK, dtype=np.int64)
    numbers = np.arange(starts.size, dtype=np.uint64)
    keys = np.full(starts.size, key, dtype=np.uint64)
    return streams(keys, numbers), starts, np.minimum(BLOCK, numel - starts)


def draw(stream: Words, start: Positions, length: Positions, keep: int) -> list[Positions]:
    """Return the sorted positions that survive in each of many blocks.

    Args:
        stream: The blocks' streams, from `fl_darex.masks.streams`; shape ``(blocks,)``.
        start: What is added to a block's positions.
        length: Entries of each block, 1 to ``BLOCK``.
        keep: Keep threshold in [1, ONE], one for all.
    """
    if (kernels := compiled.loaded()) and keep < ONE:
        return _draw_compiled(kernels, stream, start, length, keep)
    found: list[Positions] = [np.empty(0, dtype=np.int64)] * stream.size
    for size in np.unique(length).tolist():
        rows = np.flatnonzero(length == size)
        if keep == ONE:
            whole = np.arange(size, dtype=np.int64)
            for row in rows.tolist():
                found[row] = whole + start[row]
            continue
        at_once = max(1, _AT_ONCE // draws(size, keep))
        for first in range(0, rows.size, at_once):
            some = rows[first : first + at_once]
            for row, positions in zip(
                some.tolist(), _draw_equal(stream[some], start[some], size, keep), strict=True
            ):
                found[row] = positions
    return found


def _draw_compiled(
    kernels: Kernels, stream: Words, start: Positions, length: Positions, keep: int
) -> list[Positions]:
    counts, numel = np.empty(stream.size, dtype=np.int64), int(length.sum())
    for room in (draws(numel, keep), numel + 2):  # nearly always enough; always enough
        found = np.empty(room, dtype=np.int64)
        if kernels.draw(stream, start, length, *guided(keep), found, counts):
            break
    ends = np.cumsum(counts).tolist()
    return [found[first:end] for first, end in pairwise([0, *ends])]


def _draw_equal(stream: Words, start: Positions, length: int, keep: int) -> list[Positions]:
    """Draw blocks of one length."""
    uniform = words(stream[:, None], 0, draws(length, keep))
    reached = np.cumsum(gaps(uniform, keep), axis=1, dtype=np.int64)  # counted from 1
    inside = np.count_nonzero(reached <= length, axis=1)
    short = np.flatnonzero(inside == reached.shape[1])
    reached += (start - 1)[:, None]
    found = [row[:count] for row, count in zip(reached, inside.tolist(), strict=True)]
    for row in short.tolist():
        found[row] = _draw_on(stream[row : row + 1], found[row], int(start[row]), length, keep)
    return found


def _draw_on(stream: Words, drawn: Positions, start: int, length: int, keep: int) -> Positions:
    """Draw on where the usual number of draws did not reach the block's end."""
    parts = [drawn]
    # All draws so far lie inside, so there are as many as were made.
    count = drawn.size
    while (last := int(parts[-1][-1])) < start + length - 1:
        more = draws(start + length - 1 - last, keep)
        parts.append(last + np.cumsum(gaps(words(stream, count, more), keep), dtype=np.int64))
        count += more
    positions = joined(parts)
    return positions[: np.searchsorted(positions, start + length)]


def joined(parts: Iterable[Positions]) -> Positions:
    """Return the parts as one array."""
    listed = list(parts)
    if len(listed) == 1:
        return listed[0]
    return np.concatenate(listed) if listed else np.empty(0, dtype=np.int64)

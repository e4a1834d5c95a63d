"""Each entry survives independently with the keep rate.

A tensor is cut into blocks of ``BLOCK`` entries; each block has a stream of its own and can be
drawn alone. Drawing past a block's end and forgetting the overshoot is exact because the
geometric distribution has no memory. Blocks of equal length are drawn together: a model has
hundreds of blocks and NumPy's cost is per call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_darex.masks.gaps import draws, gaps
from fl_darex.masks.keys import BLOCK, ONE
from fl_darex.masks.splitmix import streams, words

_AT_ONCE = 1 << 16  # draws at once: their temporaries stay in a core's cache

Positions = NDArray[np.int64]


def survivors(key: int, numel: int, kept: int) -> Positions:
    """Return the sorted positions that survive in a flattened tensor of ``numel`` entries.

    Each position survives independently with probability ``kept / ONE`` (to 2**-32).

    Args:
        key: From `fl_darex.masks.mask_key`.
        numel: Number of entries, 0 or more.
        kept: Keep threshold from `fl_darex.masks.keep_threshold`; ``ONE`` keeps all.
    """
    return joined(draw(*blocks_of(key, numel), kept))


def block_survivors(key: int, block: int, length: int, kept: int) -> Positions:
    """Return the sorted positions that survive in one block, counted from its start.

    Args:
        key: From `fl_darex.masks.mask_key`.
        block: The block's number in its tensor, from 0.
        length: Entries in this block, at most ``BLOCK`` (the last block may be shorter).
        kept: Keep threshold in [1, ONE].
    """
    stream = streams(np.array([key], dtype=np.uint64), np.array([block], dtype=np.uint64))
    return draw(stream, np.zeros(1, dtype=np.int64), np.array([length]), kept)[0]


def blocks_of(key: int, numel: int) -> tuple[NDArray[np.uint64], Positions, Positions]:
    """Return streams, starts and lengths of one tensor's blocks."""
    starts = np.arange(0, numel, BLOCK, dtype=np.int64)
    numbers = np.arange(starts.size, dtype=np.uint64)
    keys = np.full(starts.size, key, dtype=np.uint64)
    return streams(keys, numbers), starts, np.minimum(BLOCK, numel - starts)


def draw(
    stream: NDArray[np.uint64], start: Positions, length: Positions, kept: int
) -> list[Positions]:
    """Return the sorted positions that survive in each of many blocks.

    Args:
        stream: The blocks' streams, from `fl_darex.masks.streams`; shape ``(blocks,)``.
        start: What is added to a block's positions.
        length: Entries of each block, 1 to ``BLOCK``.
        kept: Keep threshold in [1, ONE], one for all.
    """
    found: list[Positions] = [np.empty(0, dtype=np.int64)] * stream.size
    for size in np.unique(length).tolist():
        rows = np.flatnonzero(length == size)
        if kept == ONE:
            whole = np.arange(size, dtype=np.int64)
            for row in rows.tolist():
                found[row] = whole + start[row]
            continue
        at_once = max(1, _AT_ONCE // draws(size, kept))
        for first in range(0, rows.size, at_once):
            some = rows[first : first + at_once]
            for row, positions in zip(
                some.tolist(), _draw_equal(stream[some], start[some], size, kept), strict=True
            ):
                found[row] = positions
    return found


def _draw_equal(
    stream: NDArray[np.uint64], start: Positions, length: int, kept: int
) -> list[Positions]:
    """Draw blocks of one length."""
    uniform = words(stream[:, None], 0, draws(length, kept))
    reached = np.cumsum(gaps(uniform, kept), axis=1, dtype=np.int64)  # counted from 1
    inside = np.count_nonzero(reached <= length, axis=1)
    short = np.flatnonzero(inside == reached.shape[1])
    reached += (start - 1)[:, None]
    found = [row[:count] for row, count in zip(reached, inside.tolist(), strict=True)]
    for row in short.tolist():
        found[row] = _draw_on(stream[row : row + 1], found[row], int(start[row]), length, kept)
    return found


def _draw_on(
    stream: NDArray[np.uint64], drawn: Positions, start: int, length: int, kept: int
) -> Positions:
    """Draw on where the usual number of draws did not reach the block's end."""
    parts = [drawn]
    # All draws so far lie inside, so there are as many as were made.
    count = drawn.size
    while (last := int(parts[-1][-1])) < start + length - 1:
        more = draws(start + length - 1 - last, kept)
        parts.append(last + np.cumsum(gaps(words(stream, count, more), kept), dtype=np.int64))
        count += more
    positions = joined(parts)
    return positions[: np.searchsorted(positions, start + length)]


def joined(parts: list[Positions]) -> Positions:
    """Return the parts as one array."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

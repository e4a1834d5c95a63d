"""An exact number of survivors: as many in each block as its share, every choice equally likely.

A tensor of n entries keeps ``floor(n * rate + u)`` of them, where u in [0, 1) is drawn once per
tensor; its first i entries hold ``floor(i * rate + u)``, so a block's number is a difference of
two of these, known without the other blocks. On average each number is exactly the rate's share:
a bias of ten entries is not always dropped at p = .99.

A block takes its independent draw (`fl_darex.masks.bernoulli`) and then drops survivors, or adds
dropped entries, at random until the number is right. Given its size, the independent draw is
equally likely to be any set of that size, and so is the result (random numbers below m are
``u32 * m >> 32``: even to m * 2**-32).
"""

from __future__ import annotations

import numpy as np

from fl_darex.masks.bernoulli import Positions, blocks_of, draw, joined
from fl_darex.masks.keys import ONE, Words, mix, words

# Far behind every draw of the independent mask, which has at most 2**18 gaps a block.
_FIRST_CORRECTION = 1 << 32


def exact_survivors(key: int, numel: int, keep: int) -> Positions:
    """Return the sorted positions that survive in a flattened tensor of ``numel`` entries.

    Their number is ``numel * keep / ONE``, rounded up or down at random so that its mean is that
    number; each position survives with probability ``keep / ONE``.

    Args:
        key: From `fl_darex.masks.mask_key`.
        numel: Number of entries, 0 or more.
        keep: Keep threshold from `fl_darex.masks.keep_threshold`; ``ONE`` keeps all.
    """
    stream, start, length = blocks_of(key, numel)
    keys = np.full(start.size, key, dtype=np.uint64)
    return joined(draw_exact(keys, stream, start, start, length, keep))


def draw_exact(
    key: Words, stream: Words, first: Positions, start: Positions, length: Positions, keep: int
) -> list[Positions]:
    """Return the sorted positions that survive in each of many blocks.

    Args:
        key: The key of each block's tensor; shape ``(blocks,)``, as all that follows.
        stream: The blocks' streams, from `fl_darex.masks.streams`.
        first: Where each block begins in its tensor.
        start: What is added to a block's positions.
        length: Entries of each block, 1 to ``BLOCK``.
        keep: Keep threshold in [1, ONE], one for all.
    """
    drawn = draw(stream, start, length, keep)
    if keep == ONE:
        return drawn
    offsets = (mix(key) & np.uint64(ONE - 1)).tolist()
    found = []
    for i, positions in enumerate(drawn):
        begin, size = int(first[i]), int(length[i])
        share = ((begin + size) * keep + offsets[i] >> 32) - (begin * keep + offsets[i] >> 32)
        found.append(_corrected(positions, stream[i : i + 1], int(start[i]), size, share))
    return found


def _corrected(
    positions: Positions, stream: Words, start: int, length: int, count: int
) -> Positions:
    surplus = positions.size - count
    if surplus > 0:
        return np.delete(positions, _choose(stream, surplus, positions.size))
    if surplus < 0:
        ranks = np.sort(_choose(stream, -surplus, length - positions.size))
        # Entry number r among the dropped ones has that many survivors before it.
        before = np.searchsorted(positions - start - np.arange(positions.size), ranks, "right")
        return np.sort(np.concatenate([positions, ranks + before + start]))
    return positions


def _choose(stream: Words, count: int, among: int) -> Positions:
    """Return ``count`` different numbers below ``among`` (R. Floyd's algorithm, 1987)."""
    uniform = words(stream, _FIRST_CORRECTION, (count + 1) & ~1).tolist()
    chosen: dict[int, None] = {}
    for number, top in zip(uniform, range(among - count, among), strict=False):
        picked = number * (top + 1) >> 32
        chosen[picked if picked not in chosen else top] = None
    return np.array(list(chosen), dtype=np.int64)

"""A seeded random rotation of many numbers in blocks, by additions alone.

One block v of N = 2**m numbers becomes ``H D2 H D1 v``: D1 and D2 flip signs at random, and H is
the Walsh-Hadamard matrix, of entries +1 and -1. That is N times a rotation. Twice, as after one H
the entries of a block with few numbers other than 0 take few values, and what is rounded there is
not unbiased. Everything is float32 additions in a fixed order, so all machines find the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fl_darex.masks import streams, words
from fl_darex.wire.codings.coding import Numbers

BLOCK = 1 << 14
"""Numbers that are rotated together, until fewer are left."""

SMALLEST = 1 << 6
"""Numbers of the smallest block; as many as there are go up to a multiple of it, with zeros."""

_AT_ONCE = 16  # blocks: two arrays of 1 MB, which stay in cache
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = _BITS.astype(np.uint32) << np.uint32(31)  # of eight numbers, by the byte that says them
_NARROW = 128  # below that distance NumPy's inner loops are too short; the blocks are transposed


def padded(count: int) -> int:
    """Return how many numbers are rotated where there are ``count``."""
    return -(-count // SMALLEST) * SMALLEST


def block_count(count: int) -> int:
    """Return the number of blocks of ``count`` numbers."""
    whole, rest = divmod(padded(count), BLOCK)
    return whole + rest.bit_count()


def batches(count: int, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the blocks that hold the numbers ``start`` to ``end - 1`` of ``count``.

    The last numbers, which fill no block, are cut into falling powers of two.

    Yields:
        Number of the first block, position of its first number, how many blocks of one size
        follow, and this size.
    """
    end = min(end, count)
    whole, rest = divmod(padded(count), BLOCK)
    first, last = start // BLOCK, min(whole, -(-end // BLOCK))
    for block in range(first, last, _AT_ONCE):
        yield block, block * BLOCK, min(_AT_ONCE, last - block), BLOCK
    block, position = whole, whole * BLOCK
    for size in (1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1):
        if start < position + size and position < end:
            yield block, position, 1, size
        block, position = block + 1, position + size


def rotate(blocks: Numbers, key: NDArray[np.uint64], position: int) -> Numbers:
    """Return ``H D2 H D1 v`` of each block, which is as many times longer as a block has numbers.

    Args:
        blocks: Shape ``(blocks, size)``, size a power of two, at least `SMALLEST`; changed.
        key: What the signs are drawn from, shape ``(1,)``.
        position: Of the first number.
    """
    for signs in (0, 1):
        _flip(blocks, key, signs, position)
        blocks = _hadamard(blocks)
    return blocks


def rotate_back(blocks: Numbers, key: NDArray[np.uint64], position: int) -> Numbers:
    """Return ``D1 H D2 H r`` of each block: the transpose of `rotate`, with the same arguments."""
    for signs in (1, 0):
        blocks = _hadamard(blocks)
        _flip(blocks, key, signs, position)
    return blocks


def _flip(blocks: Numbers, key: NDArray[np.uint64], number: int, position: int) -> None:
    """Flip the signs of about half of the numbers, in place."""
    stream = streams(key, np.array([number], dtype=np.uint64))
    drawn = words(stream, position // 32, blocks.size // 32)
    flat = blocks.reshape(-1, 8).view(np.uint32)
    flat ^= _SIGNS[drawn.view(np.uint8)]


def _hadamard(blocks: Numbers) -> Numbers:
    """Return the Walsh-Hadamard transform of each row; the rows are overwritten.

    Numbers ``size / 2`` apart are added and subtracted first, then ``size / 4``, and so on.
    """
    rows, size = blocks.shape
    narrow = min(size, _NARROW)
    shorter = size // narrow
    now, other = _butterflies(blocks.reshape(-1), np.empty(blocks.size, np.float32), size, narrow)
    # What is left stays within `narrow` neighbours: side by side they are rows of equal distance.
    np.copyto(
        other.reshape(rows, narrow, shorter),
        now.reshape(rows, shorter, narrow).transpose(0, 2, 1),
    )
    now, other = _butterflies(other, now, size, shorter)
    np.copyto(
        other.reshape(rows, shorter, narrow),
        now.reshape(rows, narrow, shorter).transpose(0, 2, 1),
    )
    return other.reshape(rows, size)


def _butterflies(now: Numbers, other: Numbers, above: int, lowest: int) -> tuple[Numbers, Numbers]:
    """Add and subtract numbers at distances ``above / 2`` down to ``lowest``, halving it.

    Returns:
        Where the result is, and an array of no meaning.
    """
    distance = above // 2
    while distance >= lowest:
        pairs, out = now.reshape(-1, 2, distance), other.reshape(-1, 2, distance)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        now, other = other, now
        distance //= 2
    return now, other

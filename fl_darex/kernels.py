"""Inner loops, compiled by Numba; `fl_darex.compiled` says when they are used.

Each has the bits of the code that it stands for: integers, and float32 operations in the
same order, none of them contracted. No threads, so that a process can still be forked. All in one
file, as Numba's cache on disk looks at the time of one file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

# SplitMix64's, as in `fl_darex.masks.keys`, which is above this.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
# Numba makes floating point of an unsigned and a signed number.
_0, _1, _27, _30, _31, _32 = (np.uint64(number) for number in (0, 1, 27, 30, 31, 32))
# Of float16: its exponent lies 112 below float32's, its fraction ends 13 bits earlier.
_13, _REBIASED, _SMALLEST = np.uint32(13), np.uint32(112 << 23), np.float32(2.0**-24)
_MAGNITUDE, _NORMAL, _SIGN = np.uint32(0x7FFF), np.uint32(0x0400), np.uint16(0x8000)
_NAN = np.float32(np.nan)
_LOW, _GUIDED = np.uint64((1 << 32) - 1), np.uint64(18)

if config.DISABLE_JIT:
    raise ImportError("the environment variable NUMBA_DISABLE_JIT is set")

Function = TypeVar("Function", bound=Callable[..., Any])


def _inner(function: Function) -> Function:
    return cast(Function, njit(function))


def _compiled(types: str) -> Callable[[Function], Function]:
    """Compile a loop for arguments of some types, or take it from the cache on disk."""

    def compiled(function: Function) -> Function:
        try:
            return cast(Function, njit(types, cache=True)(function))
        except (RuntimeError, OSError):  # no folder for the cache, or it cannot be written
            return cast(Function, njit(types)(function))

    return compiled


@_inner
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@_inner
def _gap(uniform: np.uint64, guide: NDArray[np.uint16], table: NDArray[np.uint32]) -> np.uint64:
    least = np.uint64(guide[uniform >> _GUIDED])
    if least != _0:
        return least + np.uint64(np.uint64(table[least - _1]) > uniform)
    low, high = _0, np.uint64(table.size)
    while low < high:
        middle = (low + high) >> _1
        if np.uint64(table[middle]) > uniform:
            low = middle + _1
        else:
            high = middle
    return low + _1


@_inner
def _draw_block(
    stream: np.uint64,
    length: np.uint64,
    guide: NDArray[np.uint16],
    table: NDArray[np.uint32],
    found: NDArray[Any],
    first: np.uint64,
    base: np.int64,
) -> np.uint64:
    """Write positions, counted from ``base + 1``, to ``found[first:]`` and return where they end.

    If there is no room for the last two of them, return ``found.size``.
    """
    drawn, reached, room = first, _0, np.uint64(found.size)
    while drawn + _1 < room:
        word = _mix(stream)
        stream += _GOLDEN
        reached += _gap(word & _LOW, guide, table)
        if reached > length:
            return drawn
        found[drawn] = base + np.int64(reached)
        drawn += _1
        reached += _gap(word >> _32, guide, table)
        if reached > length:
            return drawn
        found[drawn] = base + np.int64(reached)
        drawn += _1
    return room


@_compiled("b1(u8[:], i8[:], i8[:], u2[::1], u4[::1], i8[::1], i8[::1])")
def draw(
    stream: NDArray[np.uint64],
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    guide: NDArray[np.uint16],
    table: NDArray[np.uint32],
    found: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> bool:
    """Draw the positions of `fl_darex.masks.draw`, block after block.

    Args:
        stream: The blocks' streams; shape ``(blocks,)``.
        start: What is added to a block's positions.
        length: Entries of each block.
        guide: From `fl_darex.masks.gaps.guided`, of the keep threshold.
        table: The same.
        found: Where the positions go.
        counts: Where the number of each block's positions goes.

    Returns:
        Whether ``found`` had room for them and two more.
    """
    room, drawn = np.uint64(found.size), _0
    for row in range(stream.size):
        end = _draw_block(
            stream[row], np.uint64(length[row]), guide, table, found, drawn, start[row] - 1
        )
        if end == room:
            return False
        counts[row] = end - drawn
        drawn = end
    return True


@_inner
def _half(bits: np.uint16) -> np.float32:
    """Return a finite float16 as float32.

    Subnormal ones by way of integers: a processor may be told to take float32's own for 0.
    """
    magnitude = np.uint32(bits) & _MAGNITUDE
    small = np.float32(np.int32(magnitude)) * _SMALLEST
    normal = np.uint32((magnitude << _13) + _REBIASED).view(np.float32)
    number = small if magnitude < _NORMAL else normal
    return -number if bits >= _SIGN else number


@_compiled(
    "i8(f4[::1], i8[::1], i8[::1], u8[:, :], u2[::1], u4[::1], f4[:, ::1], u2[:, ::1],"
    " i8[::1], i8[::1], f8[:, ::1], i8)"
)
def add_halves(
    total: NDArray[np.float32],
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    stream: NDArray[np.uint64],
    guide: NDArray[np.uint16],
    table: NDArray[np.uint32],
    scales: NDArray[np.float32],
    bits: NDArray[np.uint16],
    held: NDArray[np.int64],
    read: NDArray[np.int64],
    squares: NDArray[np.float64],
    place: int,
) -> int:
    """Add many clients' numbers where independent draws say, block after block.

    That is, for each block and each client in it, draw, decode, multiply by both scales, add the
    squares, and add to the total.

    Args:
        total: What is added to.
        start: Where each block begins in it; shape ``(blocks,)``.
        length: Entries of each block.
        stream: The blocks' streams; shape ``(clients, blocks)``.
        guide: From `fl_darex.masks.gaps.guided`, of the keep threshold.
        table: The same.
        scales: What each client's numbers are multiplied by, in this order; shape ``(clients, 2)``.
        bits: Of each client, float16 numbers at the end of its row; shape ``(clients, room)``.
        held: How many of its numbers there are up to that end, shape ``(clients,)``; below 0: the
            client is left out.
        read: How many have been read; changed.
        squares: Sums of squares; number i of a client goes to ``squares[client, i % lanes]``, where
            lanes are a power of two.
        place: Where to begin: ``block * clients + client``.

    Returns:
        The place where a client's bits do not suffice; or the number of all places.
    """
    clients, lanes = stream.shape[0], np.uint64(squares.shape[1] - 1)
    found = np.empty(bits.shape[1] + 2, dtype=np.int32)
    numbers = np.empty(bits.shape[1], dtype=np.float32)
    while place < stream.size:
        block, client = place // clients, place % clients
        if held[client] < 0:
            place += 1
            continue
        count = _draw_block(
            stream[client, block], np.uint64(length[block]), guide, table, found, _0, np.int64(0)
        )
        before = read[client]
        if count > np.uint64(held[client] - before):
            return place
        part = total[start[block] : start[block] + length[block]]
        first, second = scales[client]
        mine, sums = bits[client, before - held[client] :], squares[client]
        lane = np.uint64(before)
        for i in range(count):  # alone: a loop that the compiler makes vector instructions of
            numbers[i] = _half(mine[i]) * first * second
        for i in range(count):
            sums[lane & lanes] += np.float64(numbers[i]) ** 2
            lane += _1
            part[np.uint64(found[i]) - _1] += numbers[i]
        read[client] = before + np.int64(count)
        place += 1
    return place


@_compiled("void(f4[::1], f4[::1], f4)")
def approach(theta: NDArray[np.float32], goal: NDArray[np.float32], step: np.float32) -> None:
    """Take ``theta = clamp(goal, theta - step, theta + step)`` in place, NaN as torch does.

    But for the sign of a zero, which in torch depends on the place in the tensor.
    """
    for i in range(theta.size):
        low, high = theta[i] - step, theta[i] + step
        near = goal[i] if goal[i] >= low else low
        near = near if near <= high else high
        theta[i] = near if goal[i] == goal[i] and low == low else _NAN

"""Masks that share no entry: each slot takes its own part of a permutation of a block.

With keep rate K, ``m = ONE // K`` masks fit side by side. Slots 0 to m-1 are the places of one
group, m to 2m-1 of the next; slots of one group never keep the same entry, those of different
groups are independent. Each mask alone is as if it were alone: every entry survives with
probability K / ONE, and a tensor keeps its share, rounded up or down at random.

A keyed permutation of a block's positions (a Feistel network that is walked until it lands inside
the block: Luby & Rackoff, 1988; Black & Rogaway, 2002) is asked for a place's images alone, so the
work is O(survivors). Behind a random rotation every position is equally likely to be any image,
exactly; the network makes sets of them look random.

Place j's first i entries hold ``floor((i * K + o + floor(j * ONE / m)) / ONE)`` survivors, where o
is drawn once per tensor and group. By Hermite's identity the m places together never hold more than
a block has. Disjoint masks of many senders are PermK of Szlendak, Tyurin & Richtarik, ICLR 2022,
https://arxiv.org/abs/2110.03300.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fl_darex.masks.bernoulli import Positions, blocks_of, joined
from fl_darex.masks.keys import GOLDEN, ONE, Words, mix

_ROUNDS, _ROUNDS_OF_FEW = 6, 24
_FEW_BITS = 3  # halves of 1 or 2 bits mix slowly
_AT_ONCE = 1 << 16  # survivors at once: their temporaries stay in a core's cache


def places(keep: int) -> int:
    """Return how many masks with a keep threshold in [1, ONE] fit side by side."""
    return ONE // keep


def fitting(keep: int) -> int:
    """Return a keep threshold, one less where a mask more then fits beside the others.

    At p = .9, which is no whole number of 2**-32, ten masks are a hair more than everything.
    """
    return keep - 1 if keep > 1 and places(keep - 1) > places(keep) else keep


def disjoint_key(seed: int, round_: int, slot: int, keep: int, name: str) -> int:
    """Return the 64-bit key of one tensor's masks in a slot's group.

    Args:
        seed: The run's seed, in [0, 2**63).
        round_: The federated round, from 1.
        slot: The client's partition.
        keep: Keep threshold in [1, ONE].
        name: The tensor's name.
    """
    head = f"darex.disjoint.v1|{seed}|{round_}|{slot // places(keep)}|".encode()
    digest = hashlib.blake2b(head + name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def disjoint_survivors(key: int, slot: int, numel: int, keep: int) -> Positions:
    """Return the sorted positions that survive in a flattened tensor of ``numel`` entries.

    Args:
        key: From `disjoint_key`, of this slot.
        slot: The client's partition.
        numel: Number of entries, 0 or more.
        keep: Keep threshold in [1, ONE]; ``ONE`` keeps all.
    """
    stream, start, length = blocks_of(key, numel)
    keys = np.full(start.size, key, dtype=np.uint64)
    return joined(draw_disjoint(keys, stream, start, start, length, slot, keep))


def draw_disjoint(
    key: Words,
    stream: Words,
    first: Positions,
    start: Positions,
    length: Positions,
    slot: int,
    keep: int,
) -> list[Positions]:
    """Return the sorted positions that survive in each of many blocks.

    Args:
        key: The key of each block's tensor; shape ``(blocks,)``, as all that follows.
        stream: The blocks' streams, from `fl_darex.masks.streams`.
        first: Where each block begins in its tensor.
        start: What is added to a block's positions.
        length: Entries of each block, 1 to ``BLOCK``.
        slot: Whose mask.
        keep: Keep threshold in [1, ONE], one for all.
    """
    place, among = slot % places(keep), places(keep)
    offsets = (mix(key) & np.uint64(ONE - 1)).tolist()
    ends = [
        _part(begin, begin + size, offset, keep, place, among)
        for begin, size, offset in zip(first.tolist(), length.tolist(), offsets, strict=True)
    ]
    bounds = np.array(ends, dtype=np.int64).reshape(-1, 2)
    found: list[Positions] = [np.empty(0, dtype=np.int64)] * length.size
    for size in np.unique(length).tolist():
        rows = np.flatnonzero(length == size)
        at_once = max(1, _AT_ONCE // (size * keep // ONE + 1))
        for at in range(0, rows.size, at_once):
            some = rows[at : at + at_once]
            images = _images(stream[some], start[some], size, bounds[some])
            for row, positions in zip(some.tolist(), images, strict=True):
                found[row] = positions
    return found


def _part(begin: int, end: int, offset: int, keep: int, place: int, among: int) -> tuple[int, int]:
    """Return which part of a permutation of entries ``begin`` to ``end - 1`` is a place's."""
    low, high = begin * keep + offset, end * keep + offset
    first, last = (_before(high, j, among) - _before(low, j, among) for j in (place, place + 1))
    return first, last


def _before(reached: int, place: int, among: int) -> int:
    """Return the sum of ``(reached + i * ONE // among) // ONE`` over the places i before one."""
    whole, part = divmod(reached, ONE)
    # The places from this one on are rounded up.
    up = -(-among * (ONE - part) // ONE)
    return whole * place + max(0, place - up)


def _images(stream: Words, start: Positions, size: int, bounds: Positions) -> list[Positions]:
    """Return the sorted images of the numbers from each block's first bound up to its second."""
    counts = bounds[:, 1] - bounds[:, 0]
    ends = np.cumsum(counts)
    row, length = np.repeat(np.arange(counts.size), counts), np.uint64(size)
    turned = bounds[:, 0] + (mix(stream) % length).astype(np.int64) - (ends - counts)
    image = ((np.arange(row.size) + turned[row]) % size).astype(np.uint64)
    image = _permuted(image, stream[row], (size - 1).bit_length())
    outside = np.flatnonzero(image >= length)
    while outside.size:
        again = _permuted(image[outside], stream[row[outside]], (size - 1).bit_length())
        image[outside] = again
        outside = outside[again >= length]
    # Blocks rise, so that one sort is all blocks' own.
    placed = np.sort(image.astype(np.int64) + (row << 32)) & (ONE - 1)
    return [
        placed[end - count : end] + base
        for end, count, base in zip(ends.tolist(), counts.tolist(), start.tolist(), strict=True)
    ]


def _permuted(number: Words, stream: Words, bits: int) -> Words:
    """Return the images of numbers below ``2**bits`` under each one's own permutation."""
    high = bits // 2
    low = np.uint64(bits - high)
    lower, upper = np.uint64((1 << (bits - high)) - 1), np.uint64((1 << high) - 1)
    left, right = number >> low, number & lower
    for turn in range(1, (_ROUNDS if bits > _FEW_BITS else _ROUNDS_OF_FEW) + 1, 2):
        left ^= _output(stream, turn, right) & upper
        right ^= _output(stream, turn + 1, left) & lower
    return left << low | right


def _output(stream: Words, turn: int, number: Words) -> Words:
    """Return 64-bit output ``turn * 2**32 + number`` of each stream."""
    return mix(stream + (number + np.uint64(turn << 32)) * np.uint64(GOLDEN))

"""The weighted sum of many clients' survivors, stretch by stretch of the model.

All clients' survivors in one stretch are added before the next one begins, so that stretch of the
accumulator stays in cache, no client is ever decoded in full, and the result depends on the order
of the packets alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.positions import Blocks, Draws, Mask, Positions, joined
from fl_darex.wire.reader import Packet

_SPAN = 1 << 20  # entries of a stretch: 4 MB of accumulator
_AT_ONCE = 1 << 18  # survivors of a stretch that are drawn at once, about

Numbers = NDArray[np.float32]


@dataclass
class Share:
    """One client's packet and its share of the sum.

    Attributes:
        packet: The packet, checked.
        share: What its ``survivors / q`` are multiplied by, were it not for ``factor``.
        factor: At most 1; less where the client's update was clipped.
        read: How many of its survivors have been added.
        odd: Whether its mask keeps more entries than the packet has.
    """

    packet: Packet
    share: float
    factor: float = 1.0
    read: int = 0
    odd: bool = False

    def next(self, counts: Positions, tensors: Positions) -> Numbers:
        """Return the next survivors, scaled; zeros if the packet does not have as many.

        Args:
            counts: How many of them lie in each of the blocks that are next.
            tensors: Which tensor each of these blocks belongs to.
        """
        start, self.read = self.read, self.read + int(counts.sum())
        if self.odd or self.read > self.packet.header.survivors:
            self.odd = True
            return np.zeros(self.read - start, dtype=np.float32)
        share = self.share * self.factor
        if isinstance(self.packet.q, float):
            return self.packet.numbers(start, self.read, scale=share / self.packet.q)
        scale = (share / self.packet.q.astype(np.float64)).astype(np.float32)
        return self.packet.numbers(start, self.read) * np.repeat(scale[tensors], counts)


def add_packets(
    total: Numbers, layout: Layout, shares: Sequence[Share], *, clear: bool = False
) -> list[Share]:
    """Add ``share * survivors / q`` of packets to a vector of all pruned tensors, in place.

    Args:
        total: All pruned tensors in canonical order, flattened into one vector.
        layout: The model's layout.
        shares: In the order in which they are added; none of them read before.
        clear: Begin with zeros, whatever the vector holds.

    Returns:
        The packets that have more or fewer survivors than their masks keep; if there are any,
        the sum means nothing.
    """
    blocks = Blocks.of(layout)
    batches = _batches(shares, blocks)
    for start, end in _spans(blocks):
        if clear:
            first, size = int(blocks.offset[start]), int(blocks.length[start:end].sum())
            total[first : first + size] = 0.0  # brings it into cache, too
        for batch in batches:
            np.add.at(total, *batch.next(start, end))
    return [share for share in shares if share.odd or share.read != share.packet.header.survivors]


def _spans(blocks: Blocks) -> Iterator[tuple[int, int]]:
    """Cut the rows into runs of at most ``_SPAN`` entries, or one block."""
    start, size = 0, 0
    for row, length in enumerate(blocks.length.tolist()):
        if size and size + length > _SPAN:
            yield start, row
            start, size = row, 0
        size += length
    if size:
        yield start, blocks.length.size


class _Batch(Protocol):
    """Clients whose survivors are found together."""

    def next(self, start: int, end: int) -> tuple[Positions, Numbers]:
        """Return positions of the survivors in some blocks, and what is added there."""


class _Apart:
    """Clients that have a mask each."""

    def __init__(self, shares: Sequence[Share], blocks: Blocks) -> None:
        self._shares, self._tensors = shares, blocks.tensor
        self._draws = Draws([share.packet.mask for share in shares], blocks)

    def next(self, start: int, end: int) -> tuple[Positions, Numbers]:
        """Return all clients' survivors, client after client."""
        drawn, tensors = self._draws.rows(start, end), self._tensors[start:end]
        numbers = [
            share.next(np.array([positions.size for positions in mine]), tensors)
            for share, mine in zip(self._shares, drawn, strict=True)
        ]
        return joined(part for mine in drawn for part in mine), np.concatenate(numbers)


class _Together:
    """Clients that share a mask: their numbers are added up before they are put in place."""

    def __init__(self, shares: Sequence[Share], blocks: Blocks) -> None:
        self._shares, self._tensors = shares, blocks.tensor
        self._draws = Draws([shares[0].packet.mask], blocks)

    def next(self, start: int, end: int) -> tuple[Positions, Numbers]:
        """Return the mask's positions and the clients' sum."""
        (drawn,), tensors = self._draws.rows(start, end), self._tensors[start:end]
        counts = np.array([positions.size for positions in drawn])
        total = self._shares[0].next(counts, tensors)
        for share in self._shares[1:]:
            total += share.next(counts, tensors)
        return joined(drawn), total


def _batches(shares: Sequence[Share], blocks: Blocks) -> list[_Batch]:
    """Group clients in order; the grouping depends on the packets alone."""
    groups: dict[Mask, list[Share]] = {}
    for share in shares:
        groups.setdefault(share.packet.mask, []).append(share)
    batches: list[_Batch] = [_Together(g, blocks) for g in groups.values() if len(g) > 1]
    alone = [group[0] for group in groups.values() if len(group) == 1]
    if alone:
        numel = int(blocks.length.sum())
        each = alone[0].packet.header.survivors * min(_SPAN, numel) // max(1, numel)
        size = max(1, _AT_ONCE // max(1, each))
        batches += [_Apart(alone[i : i + size], blocks) for i in range(0, len(alone), size)]
    return batches

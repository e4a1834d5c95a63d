"""The weighted sum of many clients' survivors, block by block.

All clients' survivors in one stretch of the model are added before the next stretch begins, so
the accumulator stays in cache, no client is ever decoded in full, and the result depends on the
order of the packets alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.positions import Blocks, Mask, joined
from fl_darex.wire.reader import Packet

_SPAN = 1 << 21  # entries added at once: 8 MB of accumulator


@dataclass
class Share:
    """One client's packet and its share of the sum.

    Attributes:
        packet: The packet, checked.
        share: What its ``survivors / q`` are multiplied by.
        read: How many of its survivors have been added.
        odd: Whether its mask keeps more entries than the packet has.
    """

    packet: Packet
    share: float
    read: int = 0
    odd: bool = False

    def next(
        self, counts: NDArray[np.int64], tensors: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """Return the next survivors, scaled; None if the packet does not have as many.

        Args:
            counts: How many of them lie in each of the blocks that are next.
            tensors: Which tensor each of these blocks belongs to.
        """
        end = self.read + int(counts.sum())
        if self.odd or end > self.packet.header.survivors:
            self.odd = True
            return None
        numbers = self.packet.numbers(self.read, end)
        self.read = end
        if isinstance(self.packet.q, float):
            numbers *= np.float32(self.share / self.packet.q)
        else:
            scale = (self.share / self.packet.q.astype(np.float64)).astype(np.float32)
            numbers *= np.repeat(scale[tensors], counts)
        return numbers


def add_packets(total: NDArray[np.float32], layout: Layout, shares: Sequence[Share]) -> list[Share]:
    """Add ``share * survivors / q`` of packets to a vector of all pruned tensors, in place.

    Args:
        total: All pruned tensors in canonical order, flattened into one vector.
        layout: The model's layout.
        shares: In the order in which they are added; none of them read before.

    Returns:
        The packets that have more or fewer survivors than their masks keep; if there are any,
        the sum means nothing.
    """
    blocks = Blocks.of(layout)
    groups: dict[Mask, list[Share]] = {}
    for share in shares:
        groups.setdefault(share.packet.mask, []).append(share)
    for start, end in _spans(blocks):
        span = blocks.rows(start, end)
        first = int(span.offset[0])
        part = total[first : first + int(span.length.sum())]
        for mask, members in groups.items():
            _add(part, span, mask, members)
    return [share for share in shares if share.odd or share.read != share.packet.header.survivors]


def _add(part: NDArray[np.float32], span: Blocks, mask: Mask, members: list[Share]) -> None:
    """Add the survivors of clients that share a mask."""
    drawn = mask.in_blocks(span, span.offset - span.offset[0])
    counts = np.array([positions.size for positions in drawn])
    total: NDArray[np.float32] | None = None
    for member in members:
        numbers = member.next(counts, span.tensor)
        if numbers is not None:
            total = numbers if total is None else np.add(total, numbers, out=total)
    if total is not None:
        # A packet has each position once, so += on an index array adds them all.
        part[joined(drawn)] += total


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

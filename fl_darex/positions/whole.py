"""Positions of a layout: of all tensors, tensor by tensor, or of many masks in the same blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fl_darex import masks
from fl_darex.delta import Layout
from fl_darex.masks import Positions, joined
from fl_darex.positions.mask import Blocks, Mask


def positions_in(layout: Layout, mask: Mask) -> dict[str, Positions]:
    """Return the surviving flat positions of every pruned tensor."""
    return mask.in_layout(layout)


def by_tensor(layout: Layout, mask: Mask) -> Iterator[tuple[str, Positions]]:
    """Yield each pruned tensor's name and surviving flat positions, one tensor at a time."""
    blocks = Blocks.of(layout)
    for name, start, end in blocks.by_tensor():
        rows = blocks.rows(start, end)
        yield name, joined(mask.in_blocks(rows, rows.first))


class Draws:
    """Several masks over the same blocks, drawn stretch by stretch.

    Independent masks of one threshold are drawn together, which costs less than one by one, and
    their streams are worked out once.

    Args:
        drawn: The masks; at least one.
        blocks: All blocks.
    """

    def __init__(self, drawn: Sequence[Mask], blocks: Blocks) -> None:
        self._masks, self._blocks, self._keep = drawn, blocks, drawn[0].chance
        alike = all(mask.chance == self._keep for mask in drawn)
        found = [mask.plain_streams(blocks) if alike else None for mask in drawn]
        plain = [streams for streams in found if streams is not None]
        self._streams = np.stack(plain) if len(plain) == len(drawn) else None

    def rows(self, start: int, end: int) -> list[list[Positions]]:
        """Return, for each mask, the sorted positions in each of some blocks.

        They are counted in the vector of all pruned entries.
        """
        some = self._blocks.rows(start, end)
        if self._streams is None:
            return [mask.in_blocks(some, some.offset) for mask in self._masks]
        streams = self._streams[:, start:end].reshape(-1)
        times, size = len(self._masks), end - start
        offset, length = np.tile(some.offset, times), np.tile(some.length, times)
        rows = masks.draw(streams, offset, length, self._keep)
        return [rows[at : at + size] for at in range(0, size * times, size)]

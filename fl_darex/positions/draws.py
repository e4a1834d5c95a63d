"""Many masks over the same blocks, drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_darex import masks
from fl_darex.masks import Positions
from fl_darex.positions.mask import Blocks, Mask


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
        return self.counted_from(self._blocks.offset, start, end)

    def counted_from(self, origin: Positions, start: int, end: int) -> list[list[Positions]]:
        """Return what `rows` does, with what is added to the positions of each of all blocks."""
        some, first = self._blocks.rows(start, end), origin[start:end]
        if self._streams is None:
            return [mask.in_blocks(some, first) for mask in self._masks]
        streams = self._streams[:, start:end].reshape(-1)
        times, size = len(self._masks), end - start
        rows = masks.draw(streams, np.tile(first, times), np.tile(some.length, times), self._keep)
        return [rows[number * size : (number + 1) * size] for number in range(times)]

"""Positions that are listed because they depend on the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_darex.positions.blocks import Blocks, Positions


@dataclass(frozen=True, eq=False)
class ListedMask:
    """Positions that depend on the values, so that they have to be sent.

    Attributes:
        where: The sorted flat positions of each pruned tensor.
        seed: The run's seed, in [0, 2**64).
        round: The federated round, from 0.
        slot: Who pruned: the client's partition, or -1 for the server.
    """

    where: Mapping[str, Positions]
    seed: int = 0
    round: int = 0
    slot: int = -1

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        found = []
        for row, tensor in enumerate(blocks.tensor.tolist()):
            positions = self.where[blocks.names[tensor]]
            first, length = int(blocks.first[row]), int(blocks.length[row])
            low, high = np.searchsorted(positions, [first, first + length])
            found.append(positions[low:high] - first + start[row])
        return found

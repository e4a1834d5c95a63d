"""Positions that are listed because they depend on the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_darex.delta import Layout
from fl_darex.masks import ONE, SHARED, Positions
from fl_darex.positions.mask import Blocks, Mask, MaskFields, refuse
from fl_darex.positions.rice import ListedPositions, write_positions
from fl_darex.shown import described


@dataclass(frozen=True, eq=False)
class ListedMask(Mask):
    """Positions that depend on the values, so that they have to be sent.

    Attributes:
        where: The sorted flat positions of each pruned tensor.
        seed: The run's seed, in [0, 2**64).
        round: The federated round, from 0.
        slot: Who pruned: the client's partition, or `fl_darex.masks.SHARED` for the server.
        share: Largest part of the entries that it may list, in units of 2**-32, but for rounding
            in each row of each tensor.
    """

    __repr__ = described

    kind, code = "listed", 2

    where: Mapping[str, Positions]
    seed: int = 0
    round: int = 0
    slot: int = SHARED
    share: int = ONE

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the fewest and the most entries that it may list."""
        specs = layout.pruned
        rows = sum(spec.shape[0] if len(spec.shape) > 1 else 1 for spec in specs)
        numel = sum(spec.numel for spec in specs)
        return 0, min(numel, numel * self.share // ONE + rows)

    def in_layout(self, layout: Layout) -> dict[str, Positions]:
        """Return the positions as they are listed."""
        return {spec.name: self.where[spec.name] for spec in layout.pruned}

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        found = []
        for row, tensor in enumerate(blocks.tensor.tolist()):
            positions = self.where[blocks.specs[tensor].name]
            first, length = int(blocks.first[row]), int(blocks.length[row])
            low, high = np.searchsorted(positions, [first, first + length])
            found.append(positions[low:high] - first + start[row])
        return found

    @property
    def fields(self) -> MaskFields:
        """Whose packet it is; nothing is drawn."""
        return MaskFields(self.kind, "none", self.seed, self.round, self.slot, 0)

    def section(self, layout: Layout) -> bytes:
        """Return the Rice-coded gaps between positions."""
        return write_positions(layout, self.where)

    @classmethod
    def read(cls, header: MaskFields, section: memoryview, layout: Layout, count: int) -> Mask:
        """Return the positions that are listed, checked one by one."""
        if header.generator != "none" or header.keep:
            refuse("lists positions and names a random generator or a keep threshold")
        where = ListedPositions(layout, section, count)
        return cls(where, header.seed, header.round, header.slot)

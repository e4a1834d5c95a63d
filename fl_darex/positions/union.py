"""All entries that at least one of several seeded masks keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fl_darex import masks
from fl_darex.delta import Layout
from fl_darex.masks import Positions
from fl_darex.positions.draws import Draws
from fl_darex.positions.mask import Blocks, Mask, MaskFields, refuse
from fl_darex.positions.seeded import SeededMask
from fl_darex.shown import described


@dataclass(frozen=True)
class UnionMask(Mask):
    """All entries that at least one of several seeded masks keeps.

    Attributes:
        members: Masks of one seed, round and threshold, with different slots; at least one.
    """

    __repr__ = described

    kind, code = "union", 3

    members: tuple[SeededMask, ...]

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        draws = Draws(self.members, blocks)
        drawn = draws.counted_from(np.zeros_like(start), 0, start.size)
        flags = np.zeros(masks.BLOCK, dtype=bool)
        found = []
        for row, parts in enumerate(zip(*drawn, strict=True)):
            for positions in parts:
                flags[positions] = True
            union = np.flatnonzero(flags[: blocks.length[row]])
            flags[union] = False
            found.append(union + start[row])
        return found

    @property
    def fields(self) -> MaskFields:
        """Those of any member, but for its slot."""
        return replace(self.members[0].fields, mask_kind=self.kind, slot=masks.SHARED)

    @property
    def chance(self) -> int:
        """0: each member has its own."""
        return 0

    def section(self, layout: Layout) -> bytes:
        """Return the members' slots."""
        return np.array([member.slot for member in self.members], dtype="<i8").tobytes()

    @classmethod
    def read(cls, header: MaskFields, section: memoryview, layout: Layout, count: int) -> Mask:
        """Return the union of the slots that are listed."""
        drawn = SeededMask.of(header)
        if len(section) % 8 or not len(section):
            refuse(f"lists slots in {len(section)} bytes")
        slots = np.frombuffer(section, dtype="<i8").tolist()
        if drawn.slot != masks.SHARED or slots[0] < masks.SHARED or any(np.diff(slots) <= 0):
            refuse("lists slots that do not rise")
        return cls(tuple(replace(drawn, slot=slot) for slot in slots))


def united(some: Iterable[Mask]) -> Mask | None:
    """Return the mask of what several masks keep; None if no packet could carry it.

    Args:
        some: Masks of one seed, round and threshold.
    """
    different = set(some)
    if len(different) == 1 and (only := next(iter(different))).chance:
        return only
    members = [mask for mask in different if isinstance(mask, SeededMask)]
    if not members or len(members) < len(different):
        return None
    return UnionMask(tuple(sorted(members, key=lambda mask: mask.slot)))

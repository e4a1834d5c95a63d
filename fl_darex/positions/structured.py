"""Structured pruning: a part of the input columns, and a part of the entries inside them.

"DARE the Extreme", Sec. C.10: keep a % of the input dimensions of a layer and b % of the deltas in
them. Both are drawn from the seed, so neither is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl_darex import masks
from fl_darex.delta import Layout
from fl_darex.masks import Positions
from fl_darex.positions.mask import Blocks, Mask, MaskFields, refuse
from fl_darex.positions.seeded import SeededMask


@dataclass(frozen=True)
class StructuredMask(Mask):
    """A seeded mask whose survivors lie in few input columns.

    The rows of a tensor are its first axis, its columns all others: a linear layer's weight is
    (outputs, inputs). The number of columns is exact, rounded up or down at random. A tensor with
    fewer than two axes has no columns and is masked as `drawn` says.

    Attributes:
        drawn: Seed, round, slot and the keep threshold of all entries.
        columns: Keep threshold of columns in units of 2**-32, at least ``drawn.keep``.

    Raises:
        ValueError: If fewer columns than entries would be kept, or masks are to share no entry:
            where columns differ, nothing keeps entries apart.
    """

    kind, code = "structured", 4

    drawn: SeededMask
    columns: int

    def __post_init__(self) -> None:
        if self.drawn.disjoint:
            raise ValueError("disjoint masks are drawn entry by entry, not in columns")
        if not self.drawn.keep <= self.columns <= masks.ONE:
            raise ValueError(
                f"the keep threshold of columns must be in [{self.drawn.keep}, 2**32], "
                f"got {self.columns}"
            )

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        found = []
        for row, tensor in enumerate(blocks.tensor.tolist()):
            spec, one = blocks.specs[tensor], blocks.rows(row, row + 1)
            if len(spec.shape) < 2:
                found += self.drawn.in_blocks(one, start[row : row + 1])
            else:
                width = spec.numel // spec.shape[0]
                key = self.drawn.key(f"{spec.name}|columns")
                columns = masks.exact_survivors(key, width, self.columns)
                found.append(self._inside(one, columns, width) + start[row])
        return found

    @property
    def fields(self) -> MaskFields:
        """Those of the seeded mask."""
        return replace(self.drawn.fields, mask_kind=self.kind)

    @property
    def details(self) -> dict[str, object]:
        """The columns' threshold."""
        return {"share of columns": self.columns}

    def section(self, layout: Layout) -> bytes:
        """Return the columns' threshold."""
        return self.columns.to_bytes(8, "little")

    @classmethod
    def read(cls, header: MaskFields, section: memoryview, layout: Layout, count: int) -> Mask:
        """Return the mask of a packet that names a threshold of columns."""
        drawn, columns = SeededMask.of(header), int.from_bytes(section, "little")
        if drawn.disjoint:
            refuse("draws disjoint masks in columns")
        if len(section) != 8 or not drawn.keep <= columns <= masks.ONE:
            refuse(f"keeps columns by {bytes(section[:8]).hex()!r}, which is no share of them")
        return cls(drawn, columns)

    def _inside(self, block: Blocks, columns: Positions, width: int) -> Positions:
        """Return the positions in one block, counted from its start.

        The entries of the kept columns are counted through, row after row, and drawn by number.
        """
        inside = max(1, (self.drawn.keep << 32) // self.columns)
        first, end = int(block.first[0]), int(block.first[0] + block.length[0])
        low, high = (
            at // width * columns.size + int(np.searchsorted(columns, at % width))
            for at in (first, end)
        )
        if low == high:
            return np.empty(0, dtype=np.int64)
        start = np.array([low])
        entries = replace(block, first=start, length=np.array([high - low]))
        (number,) = replace(self.drawn, keep=inside).in_blocks(entries, start)
        return number // columns.size * width + columns[number % columns.size] - first

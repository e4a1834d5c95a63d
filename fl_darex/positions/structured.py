"""Structured pruning: a part of the input columns, and a part of the entries inside them.

"DARE the Extreme", Sec. C.10: keep a % of the input dimensions of a layer and b % of the deltas in
them. Both are drawn from the seed, so neither is sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_darex import masks
from fl_darex.positions.blocks import Blocks, Positions
from fl_darex.positions.seeded import SeededMask


@dataclass(frozen=True)
class StructuredMask:
    """A seeded mask whose survivors lie in few input columns.

    The rows of a tensor are its first axis, its columns all others: a linear layer's weight is
    (outputs, inputs). The number of columns is exact, rounded up or down at random. A tensor with
    fewer than two axes has no columns and is masked as `drawn` says.

    Attributes:
        drawn: Seed, round, slot and the keep threshold of all entries.
        columns: Keep threshold of columns in units of 2**-32, at least ``drawn.kept``.

    Raises:
        ValueError: If fewer columns than entries would be kept.
    """

    drawn: SeededMask
    columns: int

    def __post_init__(self) -> None:
        if not self.drawn.kept <= self.columns <= masks.ONE:
            raise ValueError(
                f"the keep threshold of columns must be in [{self.drawn.kept}, 2**32], "
                f"got {self.columns}"
            )

    @property
    def kept(self) -> int:
        """Keep threshold of all entries, in units of 2**-32."""
        return self.drawn.kept

    @property
    def slot(self) -> int:
        """Whose mask it is."""
        return self.drawn.slot

    @property
    def inside(self) -> int:
        """Keep threshold of the entries of a column that is kept."""
        return max(1, (self.kept << 32) // self.columns)

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        found = []
        for row, tensor in enumerate(blocks.tensor.tolist()):
            spec, one = blocks.specs[tensor], blocks.rows(row, row + 1)
            if len(spec.shape) < 2:
                found += self.drawn.in_blocks(one, start[row : row + 1])
            else:
                width = spec.numel // spec.shape[0]
                columns = columns_of(self, spec.name, width)
                found.append(self._inside(one, columns, width) + start[row])
        return found

    def _inside(self, block: Blocks, columns: Positions, width: int) -> Positions:
        """Return the positions in one block, counted from its start.

        The entries of the kept columns are counted through, row after row, and drawn by number.
        """
        first, end = int(block.first[0]), int(block.first[0] + block.length[0])
        low, high = (
            at // width * columns.size + int(np.searchsorted(columns, at % width))
            for at in (first, end)
        )
        if low == high:
            return np.empty(0, dtype=np.int64)
        zero, length = np.zeros(1, dtype=np.int64), np.array([high - low])
        stream = self.drawn.streams(block)
        if self.drawn.exact:
            key = np.array([self.drawn.key(block.names[int(block.tensor[0])])], dtype=np.uint64)
            number = masks.draw_exact(key, stream, zero + low, zero, length, self.inside)[0]
        else:
            number = masks.draw(stream, zero, length, self.inside)[0]
        number = number + low
        return number // columns.size * width + columns[number % columns.size] - first


def columns_of(mask: StructuredMask, name: str, width: int) -> Positions:
    """Return the sorted columns of one tensor that are kept."""
    drawn = mask.drawn
    key = masks.mask_key(drawn.seed, drawn.round, drawn.slot, f"{name}|columns")
    return masks.exact_survivors(key, width, mask.columns)

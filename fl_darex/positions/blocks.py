"""The pruned tensors of a layout, cut into blocks that can be looked at one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex import masks
from fl_darex.delta import Layout, TensorSpec

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of all pruned tensors in canonical order, one row each.

    Attributes:
        specs: The pruned tensors.
        tensor: Which tensor each block belongs to.
        number: Its number in that tensor.
        first: Where it begins in that tensor.
        offset: Where it begins in the vector of all pruned entries.
        length: Its entries.
    """

    specs: tuple[TensorSpec, ...]
    tensor: Positions
    number: NDArray[np.uint64]
    first: Positions
    offset: Positions
    length: Positions

    @classmethod
    def of(cls, layout: Layout) -> Blocks:
        """Cut the pruned tensors of a layout into mask blocks."""
        sizes = np.array([spec.numel for spec in layout.pruned], dtype=np.int64)
        counts = -(-sizes // masks.BLOCK)
        tensor = np.repeat(np.arange(sizes.size), counts)
        number = np.arange(tensor.size) - np.repeat(np.cumsum(counts) - counts, counts)
        first = number * masks.BLOCK
        return cls(
            specs=layout.pruned,
            tensor=tensor,
            number=number.astype(np.uint64),
            first=first,
            offset=first + (np.cumsum(sizes) - sizes)[tensor],
            length=np.minimum(masks.BLOCK, sizes[tensor] - first),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The pruned tensors' names."""
        return tuple(spec.name for spec in self.specs)

    def rows(self, start: int, end: int) -> Blocks:
        """Return some of the rows."""
        some = slice(start, end)
        return Blocks(
            self.specs,
            self.tensor[some],
            self.number[some],
            self.first[some],
            self.offset[some],
            self.length[some],
        )


class Mask(Protocol):
    """Says which entries survive."""

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""


def joined(parts: Iterable[Positions]) -> Positions:
    """Return the parts as one array."""
    listed = list(parts)
    if len(listed) == 1:
        return listed[0]
    return np.concatenate(listed) if listed else np.empty(0, dtype=np.int64)

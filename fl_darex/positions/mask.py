"""What a mask is: which entries survive, block by block, and how that stands in a packet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from fl_darex import masks
from fl_darex.delta import Layout, TensorSpec
from fl_darex.errors import PacketError, Reason
from fl_darex.masks import Positions, joined

GENERATORS = {
    "none": 0,
    "splitmix64": 1,
    "splitmix64-exact": 2,
    "splitmix64-fixed": 3,
    "splitmix64-exact-fixed": 4,
    "splitmix64-disjoint": 5,
    "splitmix64-disjoint-fixed": 6,
}
"""How seeded masks are drawn (`fl_darex.masks`), and the bytes that say so."""

_ROWS = 16  # blocks that are drawn at once, 4 M entries: NumPy's cost is per call


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
        offset = first + (np.cumsum(sizes) - sizes)[tensor]
        length = np.minimum(masks.BLOCK, sizes[tensor] - first)
        return cls(layout.pruned, tensor, number.astype(np.uint64), first, offset, length)

    def rows(self, start: int, end: int) -> Blocks:
        """Return some of the rows."""
        columns: tuple[Any, ...] = (self.tensor, self.number, self.first, self.offset, self.length)
        return Blocks(self.specs, *(column[start:end] for column in columns))

    def by_tensor(self) -> Iterator[tuple[str, int, int]]:
        """Yield each tensor's name, its first row, and the one behind its last."""
        ends = np.searchsorted(self.tensor, np.arange(len(self.specs)), "right").tolist()
        for spec, (start, end) in zip(self.specs, pairwise([0, *ends]), strict=True):
            yield spec.name, start, end


@dataclass(frozen=True)
class MaskFields:
    """The part of a packet's header that says where survivors are; see the specification."""

    mask_kind: str
    generator: str
    seed: int
    round: int
    slot: int
    keep: int


class Mask(ABC):
    """Says which entries survive.

    A kind of mask is a subclass in a file of its own and a row in `fl_darex.positions.KINDS`.
    """

    kind: ClassVar[str]
    """Its name in the header's fields."""

    code: ClassVar[int]
    """The byte that names it in a packet."""

    @abstractmethod
    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""

    @property
    @abstractmethod
    def fields(self) -> MaskFields:
        """What the header of a packet says of it."""

    def section(self, layout: Layout) -> bytes:
        """Return the positions section of a packet."""
        return b""

    @classmethod
    @abstractmethod
    def read(cls, header: MaskFields, section: memoryview, layout: Layout, count: int) -> Mask:
        """Return the mask that a packet describes, checked as far as nothing has to be drawn.

        Args:
            header: Its fields, from a stranger.
            section: Its positions section.
            layout: The receiver's.
            count: Survivors in all, as the header says.

        Raises:
            PacketError: If they do not fit each other or the layout.
        """

    @property
    def details(self) -> dict[str, object]:
        """What the section says and a receiver knows beforehand, in words."""
        return {}

    @property
    def chance(self) -> int:
        """Probability with which every entry survives, in units of 2**-32; 0: there is none."""
        return self.fields.keep

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the fewest and the most entries that it may keep, without drawing it."""
        return 0, sum(spec.numel for spec in layout.pruned)

    def in_layout(self, layout: Layout) -> dict[str, Positions]:
        """Return the sorted flat positions that survive in each pruned tensor."""
        blocks = Blocks.of(layout)
        parts = self.in_blocks(blocks, blocks.first)
        return {name: joined(parts[start:end]) for name, start, end in blocks.by_tensor()}

    def by_tensor(self, layout: Layout) -> Iterator[tuple[str, Positions]]:
        """Yield what `in_layout` returns, drawing some tensors, or one large one, at a time."""
        blocks = Blocks.of(layout)
        for some in _together(list(blocks.by_tensor())):
            first = some[0][1]
            rows = blocks.rows(first, some[-1][2])
            parts = self.in_blocks(rows, rows.first)
            for name, start, end in some:
                yield name, joined(parts[start - first : end - first])

    def plain_streams(self, blocks: Blocks) -> NDArray[np.uint64] | None:
        """Return the blocks' streams if every entry is an independent draw; None: it is not."""
        return None


def _together(tensors: list[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    """Cut tensors and their rows into runs of at most ``_ROWS`` rows, or one tensor."""
    some: list[tuple[str, int, int]] = []
    for tensor in tensors:
        if some and tensor[2] - some[0][1] > _ROWS:
            yield some
            some = []
        some.append(tensor)
    if some:
        yield some


def refuse(what: str, reason: Reason = Reason.POSITIONS) -> NoReturn:
    """Raise the error of a packet that makes no sense."""
    raise PacketError(f"the packet {what}", reason)

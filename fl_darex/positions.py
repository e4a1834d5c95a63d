"""Where survivors are: drawn from a seed, the union of several draws, or listed.

A mask says which entries of a layout's pruned tensors survive. It is asked for whole tensors, or
block by block in canonical order (tensor after tensor, by name), which is how a server adds many
clients without holding any delta in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex import masks
from fl_darex.delta import Layout

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of all pruned tensors in canonical order, one row each.

    Attributes:
        names: The pruned tensors' names.
        tensor: Which tensor each block belongs to.
        number: Its number in that tensor.
        first: Where it begins in that tensor.
        offset: Where it begins in the vector of all pruned entries.
        length: Its entries.
    """

    names: tuple[str, ...]
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
            names=tuple(spec.name for spec in layout.pruned),
            tensor=tensor,
            number=number.astype(np.uint64),
            first=first,
            offset=first + (np.cumsum(sizes) - sizes)[tensor],
            length=np.minimum(masks.BLOCK, sizes[tensor] - first),
        )

    def rows(self, start: int, end: int) -> Blocks:
        """Return some of the rows."""
        some = slice(start, end)
        return Blocks(
            self.names,
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


@dataclass(frozen=True)
class SeededMask:
    """The numbers from which both ends derive the same random mask.

    Attributes:
        seed: The run's seed, in [0, 2**64).
        round: The federated round, from 0.
        slot: The client's partition, or -1 for the mask that all clients of a round share.
        kept: Keep threshold in units of 2**-32 (`fl_darex.masks.keep_threshold`).
        exact: Whether each tensor keeps an exact number (`fl_darex.masks.exact_survivors`).

    Raises:
        ValueError: If seed or round is outside [0, 2**64), where a packet could not carry it.
    """

    seed: int
    round: int
    slot: int
    kept: int
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("seed", "round"):
            if not 0 <= getattr(self, name) < 1 << 64:
                raise ValueError(f"{name} must be in [0, 2**64), got {getattr(self, name)}")

    def key(self, name: str) -> int:
        """Return the key of one tensor's mask."""
        return masks.mask_key(self.seed, self.round, self.slot, name)

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        if not self.exact:
            return masks.draw(self.streams(blocks), start, blocks.length, self.kept)
        keys, streams = self._keys(blocks), self.streams(blocks)
        return masks.draw_exact(keys, streams, blocks.first, start, blocks.length, self.kept)

    def streams(self, blocks: Blocks) -> NDArray[np.uint64]:
        """Return the stream of each block."""
        return masks.streams(self._keys(blocks), blocks.number)

    def _keys(self, blocks: Blocks) -> NDArray[np.uint64]:
        tensors, row = np.unique(blocks.tensor, return_inverse=True)
        keys = [self.key(blocks.names[tensor]) for tensor in tensors.tolist()]
        return np.array(keys, dtype=np.uint64)[row]


@dataclass(frozen=True)
class UnionMask:
    """All entries that at least one of several seeded masks keeps.

    Attributes:
        members: Masks of one seed, round and threshold, with different slots; at least one.
    """

    members: tuple[SeededMask, ...]

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        zero = np.zeros_like(start)
        drawn = [member.in_blocks(blocks, zero) for member in self.members]
        flags = np.zeros(masks.BLOCK, dtype=bool)
        found = []
        for row, parts in enumerate(zip(*drawn, strict=True)):
            for positions in parts:
                flags[positions] = True
            union = np.flatnonzero(flags[: blocks.length[row]])
            flags[union] = False
            found.append(union + start[row])
        return found


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


class Draws:
    """Several masks over the same blocks, drawn stretch by stretch.

    Independent masks of one threshold are drawn together, which costs less than one by one, and
    their streams are worked out once.

    Args:
        drawn: The masks; at least one.
        blocks: All blocks.
    """

    def __init__(self, drawn: Sequence[Mask], blocks: Blocks) -> None:
        self._masks, self._blocks = drawn, blocks
        plain = [mask for mask in drawn if isinstance(mask, SeededMask) and not mask.exact]
        self._kept = plain[0].kept if plain else 0
        self._streams: NDArray[np.uint64] | None = None
        if len(plain) == len(drawn) and all(mask.kept == self._kept for mask in plain):
            self._streams = np.stack([mask.streams(blocks) for mask in plain])

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
        rows = masks.draw(streams, offset, length, self._kept)
        return [rows[at : at + size] for at in range(0, size * times, size)]


def positions_in(layout: Layout, mask: Mask) -> dict[str, Positions]:
    """Return the surviving flat positions of every pruned tensor."""
    if isinstance(mask, ListedMask):
        return {spec.name: mask.where[spec.name] for spec in layout.pruned}
    blocks = Blocks.of(layout)
    parts = mask.in_blocks(blocks, blocks.first)
    ends = np.searchsorted(blocks.tensor, np.arange(len(blocks.names)), "right").tolist()
    starts = [0, *ends][:-1]
    return {
        name: joined(parts[start:end])
        for name, start, end in zip(blocks.names, starts, ends, strict=True)
    }


def by_tensor(layout: Layout, mask: Mask) -> Iterator[tuple[str, Positions]]:
    """Yield each pruned tensor's name and surviving flat positions, one tensor at a time."""
    blocks = Blocks.of(layout)
    for index, name in enumerate(blocks.names):
        start, end = np.searchsorted(blocks.tensor, [index, index + 1]).tolist()
        rows = blocks.rows(start, end)
        yield name, joined(mask.in_blocks(rows, rows.first))


def joined(parts: Iterable[Positions]) -> Positions:
    """Return the parts as one array."""
    listed = list(parts)
    if len(listed) == 1:
        return listed[0]
    return np.concatenate(listed) if listed else np.empty(0, dtype=np.int64)

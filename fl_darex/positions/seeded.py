"""Positions that are drawn from a seed, block by block, and several such draws at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_darex import masks
from fl_darex.positions.blocks import Blocks, Mask, Positions


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

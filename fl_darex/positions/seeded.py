"""Positions that are drawn from a seed, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_darex import masks
from fl_darex.delta import Layout
from fl_darex.masks import Positions
from fl_darex.positions.mask import Blocks, Mask, MaskFields, refuse

_FIXED = 0  # in place of the round, which begins at 1


@dataclass(frozen=True)
class SeededMask(Mask):
    """The numbers from which both ends derive the same random mask.

    Attributes:
        seed: The run's seed, in [0, 2**64).
        round: The federated round, from 0.
        slot: The client's partition, or `fl_darex.masks.SHARED`.
        keep: Keep threshold in units of 2**-32 (`fl_darex.masks.keep_threshold`).
        exact: Whether each tensor keeps an exact number (`fl_darex.masks.exact_survivors`).
        disjoint: Whether it shares no entry with those of the slots beside it
            (`fl_darex.masks.disjoint`); its number is exact, too.
        fixed: Whether it is the same in all rounds of a run; the round then only says which packet
            this is.

    Raises:
        ValueError: If seed or round is outside [0, 2**64), where a packet could not carry it.
    """

    kind, code = "seeded", 1

    seed: int
    round: int
    slot: int
    keep: int
    exact: bool = False
    disjoint: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "exact", self.exact or self.disjoint)
        for name in ("seed", "round"):
            if not 0 <= getattr(self, name) < 1 << 64:
                raise ValueError(f"{name} must be in [0, 2**64), got {getattr(self, name)}")

    def key(self, name: str) -> int:
        """Return the key of one tensor's mask."""
        round_ = _FIXED if self.fixed else self.round
        if self.disjoint:
            return masks.disjoint_key(self.seed, round_, self.slot, self.keep, name)
        return masks.mask_key(self.seed, round_, self.slot, name)

    def in_blocks(self, blocks: Blocks, start: Positions) -> list[Positions]:
        """Return the sorted positions in each block, counted from ``start`` of that block."""
        streams = self.streams(blocks)
        if not self.exact:
            return masks.draw(streams, start, blocks.length, self.keep)
        where = (self._keys(blocks), streams, blocks.first, start, blocks.length)
        if self.disjoint:
            return masks.draw_disjoint(*where, self.slot, self.keep)
        return masks.draw_exact(*where, self.keep)

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the fewest and the most entries that it keeps.

        Where each entry is drawn by itself there are more or fewer with a probability of 2**-79
        (Bernstein's inequality).
        """
        numel, share = sum(spec.numel for spec in layout.pruned), self.keep / masks.ONE
        if self.exact or self.keep == masks.ONE:  # rounded up or down in each tensor
            off = len(layout.pruned) if self.exact else 0
        else:
            variance, third = numel * share * (1 - share), 80 * math.log(2) / 3
            off = math.ceil(third + math.sqrt(third**2 + 6 * third * variance))
        expected = numel * self.keep // masks.ONE
        return max(0, expected - off), min(numel, expected + 1 + off)

    def plain_streams(self, blocks: Blocks) -> NDArray[np.uint64] | None:
        """Return the blocks' streams, unless each tensor keeps an exact number."""
        return None if self.exact else self.streams(blocks)

    def streams(self, blocks: Blocks) -> NDArray[np.uint64]:
        """Return the stream of each block."""
        return masks.streams(self._keys(blocks), blocks.number)

    @property
    def fields(self) -> MaskFields:
        """All that is needed to draw it again."""
        how = "-disjoint" if self.disjoint else "-exact" * self.exact
        generator = f"splitmix64{how}{'-fixed' * self.fixed}"
        return MaskFields(self.kind, generator, self.seed, self.round, self.slot, self.keep)

    @classmethod
    def of(cls, header: MaskFields) -> SeededMask:
        """Return the mask that the fields of any kind that is drawn describe."""
        if header.generator == "none" or not 0 < header.keep <= masks.ONE:
            refuse(f"has the keep threshold {header.keep} with the generator {header.generator!r}")
        how = header.generator.split("-")
        exact, disjoint, fixed = "exact" in how, "disjoint" in how, "fixed" in how
        return cls(header.seed, header.round, header.slot, header.keep, exact, disjoint, fixed)

    @classmethod
    def read(cls, header: MaskFields, section: memoryview, layout: Layout, count: int) -> Mask:
        """Return the mask of a packet without a section."""
        drawn = cls.of(header)
        if len(section):
            refuse("lists positions although they follow from its seed")
        return drawn

    def _keys(self, blocks: Blocks) -> NDArray[np.uint64]:
        tensors, row = np.unique(blocks.tensor, return_inverse=True)
        keys = [self.key(blocks.specs[tensor].name) for tensor in tensors.tolist()]
        return np.array(keys, dtype=np.uint64)[row]

"""The sum of many clients' survivors, added where they are.

All clients' survivors in one stretch of the model are added before the next stretch begins, so that
stretch of the accumulator stays in cache, no client is ever decoded in full, and the result depends
on the order of the updates alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.change import Array
from fl_darex.compression.half_sum import Halves
from fl_darex.compression.rho import LANES, add_squares
from fl_darex.delta import Layout
from fl_darex.masks import ONE
from fl_darex.positions import Blocks, Draws, Mask, Positions, joined
from fl_darex.survivors import Numbers

if TYPE_CHECKING:
    from fl_darex.compression.weighted_sum import Part

_SPAN = 1 << 20  # entries of a stretch: 4 MB of accumulator
_AT_ONCE = 1 << 18  # survivors of a stretch that are drawn at once, about


@dataclass
class Share:
    """One client's survivors on their way into the sum.

    Attributes:
        part: The client's part, with a mask.
        share: What its ``survivors / q`` are multiplied by, were it not for the part's factor.
        read: How many of its survivors have been added.
        odd: Whether its mask keeps more entries than it has survivors.
        squares: The squares of what has been added, in lanes (`rho.add_squares`).
    """

    part: Part
    share: float
    read: int = 0
    odd: bool = False
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(LANES))

    @property
    def mask(self) -> Mask:
        """Where the survivors are."""
        if self.part.update.mask is None:
            raise TypeError("whole tensors are no survivors")
        return self.part.update.mask

    @property
    def weight(self) -> float | None:
        """What its survivors are multiplied by; None: that differs by tensor."""
        q = self.part.update.q
        return self.share * self.part.factor / q if isinstance(q, float) else None

    @property
    def square(self) -> float:
        """The squared norm of what has been added."""
        with np.errstate(over="ignore"):
            return float(self.squares.sum())

    def next(self, counts: Positions, tensors: Positions) -> Numbers:
        """Return the next survivors, scaled; zeros if there are not as many.

        Args:
            counts: How many of them lie in each of the blocks that are next.
            tensors: Which tensor each of these blocks belongs to.
        """
        update = self.part.update
        start, self.read = self.read, self.read + int(counts.sum())
        if self.odd or self.read > update.count:
            self.odd = True
            return np.zeros(self.read - start, dtype=np.float32)
        if self.weight is not None:
            numbers = update.numbers(start, self.read, self.weight)
            add_squares(self.squares, numbers, start)
            return numbers
        numbers, share = update.numbers(start, self.read), self.share * self.part.factor
        scale = (share / np.asarray(update.q, dtype=np.float64)).astype(numbers.dtype)
        return numbers * np.repeat(scale[tensors], counts)


def add_sparse(
    total: Array, layout: Layout, shares: Sequence[Share], *, clear: bool = False
) -> list[Share]:
    """Add ``share * survivors / q`` of updates to a vector of all pruned tensors, in place.

    Args:
        total: All pruned tensors in canonical order, flattened into one vector, float32 or wider.
        layout: The model's layout.
        shares: In the order in which they are added; none of them read before.
        clear: Begin with zeros, whatever the vector holds.

    Returns:
        The updates that have more or fewer survivors than their masks keep; if there are any,
        the sum means nothing.
    """
    blocks = Blocks.of(layout)
    batches = _batches(shares, blocks, total.dtype)
    for start, end in _spans(blocks):
        if clear:
            first, size = int(blocks.offset[start]), int(blocks.length[start:end].sum())
            total[first : first + size] = 0.0  # brings it into cache, too
        for batch in batches:
            batch.add(total, start, end)
    return [share for share in shares if share.odd or share.read != share.part.update.count]


def _spans(blocks: Blocks) -> Iterator[tuple[int, int]]:
    """Cut the rows into runs of at most ``_SPAN`` entries, or one block."""
    start, size = 0, 0
    for row, length in enumerate(blocks.length.tolist()):
        if size and size + length > _SPAN:
            yield start, row
            start, size = row, 0
        size += length
    if size:
        yield start, blocks.length.size


class _Apart:
    """Clients that have a mask each."""

    def __init__(self, shares: Sequence[Share], blocks: Blocks) -> None:
        self._shares, self._tensors = shares, blocks.tensor
        self._draws = Draws([share.mask for share in shares], blocks)

    def add(self, total: Array, start: int, end: int) -> None:
        """Add all clients' survivors, client after client."""
        drawn, tensors = self._draws.rows(start, end), self._tensors[start:end]
        numbers = [
            share.next(np.array([positions.size for positions in mine]), tensors)
            for share, mine in zip(self._shares, drawn, strict=True)
        ]
        positions = joined(part for mine in drawn for part in mine)
        np.add.at(total, positions, np.concatenate(numbers))


class _Together:
    """Clients that share a mask: their numbers are added up before they are put in place."""

    def __init__(self, shares: Sequence[Share], blocks: Blocks) -> None:
        self._shares, self._tensors = shares, blocks.tensor
        self._draws = Draws([shares[0].mask], blocks)

    def add(self, total: Array, start: int, end: int) -> None:
        """Add the clients' sum at the mask's positions."""
        (drawn,), tensors = self._draws.rows(start, end), self._tensors[start:end]
        counts = np.array([positions.size for positions in drawn])
        numbers = self._shares[0].next(counts, tensors)
        for share in self._shares[1:]:
            numbers += share.next(counts, tensors)
        np.add.at(total, joined(drawn), numbers)


def _batches(
    shares: Sequence[Share], blocks: Blocks, kind: np.dtype[Any]
) -> list[_Apart | _Together | Halves]:
    """Group clients in order; the grouping depends on the updates alone."""
    groups: dict[Mask, list[Share]] = {}
    for share in shares:
        groups.setdefault(share.mask, []).append(share)
    batches: list[_Apart | _Together | Halves] = [
        _Together(g, blocks) for g in groups.values() if len(g) > 1
    ]
    alone = [group[0] for group in groups.values() if len(group) == 1]
    if halves := Halves.of(alone, blocks, kind):
        return [*batches, halves]
    if alone:
        numel, drawn = int(blocks.length.sum()), alone[0].mask.chance
        # What is drawn follows from the mask; how many survivors there are is a stranger's word.
        count = numel * drawn // ONE if drawn else alone[0].part.update.count
        each = count * min(_SPAN, numel) // max(1, numel)
        size = max(1, _AT_ONCE // max(1, each))
        batches += [_Apart(alone[i : i + size], blocks) for i in range(0, len(alone), size)]
    return batches

"""Which part of the server's step goes to the clients, as one packet.

``update`` sends the step itself. It is zero outside what clients sent, so its positions follow
from their masks; where it is not (momentum, a client without the mod), non-zero positions are
listed or everything is sent, whichever is smaller. ``server`` sends the largest entries and keeps
the rest for the next round (error feedback: Stich et al., "Sparsified SGD with memory", 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Delta
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, Mask, SeededMask, StructuredMask, UnionMask
from fl_darex.pruning.gather import gather
from fl_darex.pruning.largest import largest
from fl_darex.pruning.scores import kept_count
from fl_darex.survivors import Survivors
from fl_darex.wire.reader import Packet
from fl_darex.wire.values import Coding

SERVER = -1


class Step(Protocol):
    """Chooses what is sent of a step, and learns what the clients made of it."""

    def survivors(self, delta: Delta, sent: Sequence[Mask] | None, round_: int) -> Survivors:
        """Return what is sent of a step.

        Args:
            delta: The step.
            sent: The masks of all packets that entered it; None if something else did, too.
            round_: The federated round.
        """

    def applied(self, packet: Packet) -> None:
        """Take note of what a packet says of the survivors, after its rounding."""

    def forget(self) -> None:
        """Forget what was kept: the step could not be sent."""


class WholeStep:
    """``update``: everything that changed, in the form that takes the fewest bytes.

    Args:
        seed: The run's seed.
        coding: How the numbers will be written.
    """

    def __init__(self, seed: int, coding: Coding) -> None:
        self._seed, self._coding = seed, coding

    def survivors(self, delta: Delta, sent: Sequence[Mask] | None, round_: int) -> Survivors:
        """Return the whole step."""
        layout = delta.layout
        count = sum(delta.count_nonzero(spec.name) for spec in layout.pruned)
        numel = sum(spec.numel for spec in layout.pruned)
        everything = SeededMask(self._seed, round_, SERVER, ONE)
        listed = self._coding.size(count) + count * _entropy(count, numel) / 8
        found = self._united(delta, sent, count, limit=min(listed, self._coding.size(numel)))
        if found is not None:
            return found
        if listed < self._coding.size(numel):
            where = {spec.name: delta.nonzero(spec.name) for spec in layout.pruned}
            return gather(delta, ListedMask(where, self._seed, round_, SERVER), 1.0)
        return gather(delta, everything, 1.0)

    def applied(self, packet: Packet) -> None:
        """Nothing is kept: what rounding took away is gone."""

    def forget(self) -> None:
        """Nothing was kept."""

    def _united(
        self, delta: Delta, sent: Sequence[Mask] | None, count: int, limit: float
    ) -> Survivors | None:
        """Return the step where clients sent something; None if that is not all, or larger."""
        mask = _union(sent or ())
        if mask is None:
            return None
        found = gather(delta, mask, 1.0)
        size = self._coding.size(found.count)
        size += 8 * len(mask.members) if isinstance(mask, UnionMask) else 0
        return found if np.count_nonzero(found.numbers) == count and size <= limit else None


def _union(sent: Sequence[Mask]) -> Mask | None:
    """Return the mask of what several masks keep; None if no packet could carry it."""
    if len(set(sent)) == 1 and isinstance(sent[0], SeededMask | StructuredMask):
        return sent[0]
    seeded = {mask for mask in sent if isinstance(mask, SeededMask)}
    if not seeded or len(seeded) < len(set(sent)):
        return None
    return UnionMask(tuple(sorted(seeded, key=lambda mask: mask.slot)))


class LargestOfStep:
    """``server``: the largest entries of the step and of what was not sent before.

    Args:
        seed: The run's seed.
        kept: Fraction that is sent, in units of 2**-32.
    """

    def __init__(self, seed: int, kept: int) -> None:
        self._seed, self._kept = seed, kept
        self._left: dict[str, NDArray[np.float32]] = {}

    def survivors(self, delta: Delta, sent: Sequence[Mask] | None, round_: int) -> Survivors:
        """Return the largest entries; tensors that are never pruned are sent whole."""
        layout = delta.layout
        for spec in (*layout.pruned, *layout.dense):
            self._left[spec.name] = self._left.get(spec.name, np.float32(0)) + delta.whole(
                spec.name
            )
        pruned = {spec.name: self._left[spec.name] for spec in layout.pruned}
        numel = sum(tensor.size for tensor in pruned.values())
        where = largest(pruned, kept_count(numel, self._kept))
        parts = [pruned[name][positions] for name, positions in where.items()]
        return Survivors(
            layout=layout,
            mask=ListedMask(where, self._seed, round_, SERVER),
            numbers=np.concatenate(parts) if parts else np.empty(0, dtype=np.float32),
            counts=tuple(part.size for part in parts),
            dense={spec.name: self._left[spec.name] for spec in layout.dense},
            raw={spec.name: delta.raw(spec.name) for spec in layout.raw},
            q=1.0,
        )

    def applied(self, packet: Packet) -> None:
        """Keep what was not sent, and what rounding took away."""
        update = packet.survivors()
        for name, numbers in update.values.items():
            self._left[name][update.positions[name]] -= numbers
        for name, numbers in update.dense.items():
            self._left[name] -= numbers

    def forget(self) -> None:
        """Forget what was not sent so far."""
        self._left = {}


def _entropy(count: int, numel: int) -> float:
    """Return the bits that a position takes when ``count`` of ``numel`` are listed."""
    share = count / numel if numel else 0.0
    if not 0.0 < share < 1.0:
        return 0.0
    return float(-np.log2(share) - (1 - share) / share * np.log2(1 - share))

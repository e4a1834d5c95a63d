"""The sum of survivors that are written in float16, at independent draws, by a compiled loop.

It has the bits of the general way, `fl_darex.compression.sparse_sum`, at a fraction of the time:
a number is drawn, decoded, scaled and added while it is in a register.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_darex import compiled
from fl_darex.change import Array
from fl_darex.compression.rho import LANES
from fl_darex.masks.gaps import guided
from fl_darex.positions import Blocks

if TYPE_CHECKING:
    from fl_darex.compression.sparse_sum import Share

_ROOM = 1 << 14  # numbers of a client that are handed to the loop at once
_SECONDS = 14e-9  # that NumPy takes for a survivor, about
_NONE = -1  # held of a client that is left out: it has fewer numbers than its mask keeps


class Halves:
    """Clients that have a mask each."""

    def __init__(
        self,
        shares: Sequence[Share],
        blocks: Blocks,
        streams: NDArray[np.uint64],
        halves: Sequence[tuple[NDArray[np.uint16], np.float32]],
        kernels: compiled.Kernels,
    ) -> None:
        self._shares, self._blocks, self._streams, self._kernels = shares, blocks, streams, kernels
        self._packets = [bits for bits, _ in halves]
        scales = [(own, share.weight) for (_, own), share in zip(halves, shares, strict=True)]
        self._scales = np.array(scales, dtype=np.float32)
        self._guide, self._table = guided(shares[0].mask.chance)
        room = min(_ROOM, max(1, *(bits.size for bits in self._packets)))
        self._bits = np.empty((len(shares), room), dtype=np.uint16)
        self._held = np.zeros(len(shares), dtype=np.int64)
        self._read = np.zeros(len(shares), dtype=np.int64)
        self._squares = np.zeros((len(shares), LANES))
        for share, squares in zip(shares, self._squares, strict=True):
            share.squares = squares

    @classmethod
    def of(cls, shares: Sequence[Share], blocks: Blocks, kind: np.dtype[Any]) -> Self | None:
        """Return the sum of some shares; None where it has to be added in the general way.

        Args:
            shares: With masks that differ, and none of them read before.
            blocks: All blocks.
            kind: Of the vector of all pruned tensors.
        """
        kernels = compiled.load(_SECONDS * sum(share.part.update.count for share in shares))
        if kernels is None or not shares or kind != np.float32:
            return None
        keep, streams, halves = shares[0].mask.chance, [], []
        for share in shares:
            stream, bits = share.mask.plain_streams(blocks), share.part.update.halves()
            if stream is None or bits is None or share.weight is None or share.mask.chance != keep:
                return None
            streams.append(stream)
            halves.append(bits)
        return cls(shares, blocks, np.stack(streams), halves, kernels)

    def add(self, total: Array, start: int, end: int) -> None:
        """Add all clients' survivors in some blocks, client after client in each block."""
        some, streams = self._blocks.rows(start, end), self._streams[:, start:end]
        low = (self._held != _NONE) & (self._held - self._read < self._bits.shape[1] // 2)
        for client in np.flatnonzero(low).tolist():  # or the loop returns for each of them
            self._refill(client)
        place = 0
        while True:
            place = self._kernels.add_halves(
                *(total, some.offset, some.length, streams, self._guide, self._table),
                *(self._scales, self._bits, self._held, self._read, self._squares, place),
            )
            if place == streams.size:
                break
            client = place % len(self._shares)
            if not self._refill(client):
                self._shares[client].odd, self._held[client] = True, _NONE
        for share, read in zip(self._shares, self._read.tolist(), strict=True):
            share.read = read

    def _refill(self, client: int) -> bool:
        """Hand the loop a client's next numbers; return whether it has more of them now."""
        packet, held, read = self._packets[client], self._held[client], int(self._read[client])
        if held == min(packet.size, read + self._bits.shape[1]):
            if held == packet.size:
                return False
            # One block has more survivors than there is room for.
            self._bits = np.hstack([np.empty_like(self._bits), self._bits])
        end = min(packet.size, read + self._bits.shape[1])
        self._bits[client, self._bits.shape[1] - (end - read) :] = packet[read:end]
        self._held[client] = end
        return True

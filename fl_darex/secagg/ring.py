"""Integers modulo a power of 256, and how wide they must be for a sum to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason

Residues = NDArray[Any]
"""Unsigned integers of a ring: uint32 for up to 4 bytes, else uint64. Upper bytes mean nothing."""

WIDEST = 8


@dataclass(frozen=True)
class Ring:
    """The integers modulo ``256**width``.

    NumPy's own wrap-around does the arithmetic: 256**width divides 2**32 or 2**64, so bytes above
    the width may be anything, and are cut off when numbers are written or lifted.

    Attributes:
        width: Bytes of a number, 1 to 8.
    """

    width: int

    @property
    def dtype(self) -> Any:
        """The type that numbers are held in."""
        return np.uint32 if self.width <= 4 else np.uint64

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""
        return self.width * count

    def read(self, data: memoryview | bytes, count: int) -> Residues:
        """Return the numbers of exactly ``size(count)`` bytes, low bytes first.

        Raises:
            PacketError: If there are more or fewer bytes.
        """
        if len(data) != self.size(count):
            raise PacketError(
                f"{count} numbers of {self.width} bytes came in {len(data)} bytes", Reason.SIZE
            )
        item = np.dtype(self.dtype).itemsize
        wide = np.zeros((count, item), dtype=np.uint8)
        wide[:, : self.width] = np.frombuffer(data, dtype=np.uint8).reshape(count, self.width)
        numbers: Residues = wide.reshape(-1).view(f"<u{item}").astype(self.dtype, copy=False)
        return numbers

    def write(self, numbers: Residues) -> bytes:
        """Return the low bytes of numbers."""
        item = np.dtype(self.dtype).itemsize
        low = numbers.astype(f"<u{item}", copy=False).view(np.uint8).reshape(-1, item)
        return low[:, : self.width].tobytes()

    def residues(self, numbers: NDArray[np.int64]) -> Residues:
        """Return signed numbers as numbers of the ring."""
        found: Residues = numbers.astype(np.uint64).astype(self.dtype)
        return found

    def signed(self, numbers: Residues) -> NDArray[np.int64]:
        """Return each number as the integer of its class that is nearest to 0."""
        shift = 64 - 8 * self.width
        top = numbers.astype(np.uint64) << np.uint64(shift)
        return top.view(np.int64) >> np.int64(shift)


def bits_needed(clients: int, largest: int) -> int:
    """Return the bits of a ring in which ``clients`` numbers of +- ``largest`` can be added.

    ``ceil(log2(clients * largest + 1)) + 1``; the last one is for the sign.
    """
    return (clients * largest).bit_length() + 1


def ring_for(clients: int, largest: int) -> Ring:
    """Return the narrowest ring of whole bytes in which such a sum fits.

    Raises:
        ValueError: If 64 bits are not enough.
    """
    needed = bits_needed(clients, largest)
    if needed > 8 * WIDEST:
        raise ValueError(
            f"the sum of {clients} clients with numbers up to {largest} needs a ring of {needed} "
            f"bits, {8 * WIDEST} are allowed; ask for fewer bits"
        )
    return Ring(-(-needed // 8))

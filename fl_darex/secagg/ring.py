"""Integers modulo a power of 256, how wide they must be for a sum to fit, and vectors of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason

Residues = NDArray[Any]
"""Unsigned integers of a ring: uint32 for up to 4 bytes, else uint64. Upper bytes mean nothing."""

WIDEST = 8

TAIL = 2
"""Wide numbers at the end of a vector: the weight, and how many numbers were clipped."""


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
    def dtype(self) -> np.dtype[Any]:
        """The type that numbers are held in."""
        return np.dtype(np.uint32 if self.width <= 4 else np.uint64)

    def read(self, data: memoryview | bytes) -> Residues:
        """Return the numbers of bytes, low bytes first; a whole number of them."""
        item = self.dtype.itemsize
        low = np.frombuffer(data, dtype=np.uint8).reshape(-1, self.width)
        wide = np.zeros((len(low), item), dtype=np.uint8)
        wide[:, : self.width] = low
        numbers: Residues = wide.reshape(-1).view(f"<u{item}").astype(self.dtype, copy=False)
        return numbers

    def write(self, numbers: Residues) -> bytes:
        """Return the low bytes of numbers."""
        item = self.dtype.itemsize
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


_WIDE = Ring(8)


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


@dataclass(frozen=True)
class Shape:
    """How many integers one client has, or a sum, and how wide they are.

    Attributes:
        ring: Of survivors and of dense numbers.
        narrow: How many of these there are.
        counters: Numbers that are not floating point, in 64 bits each; `TAIL` more follow.
    """

    ring: Ring
    narrow: int
    counters: int = 0

    @property
    def size(self) -> int:
        """Bytes of all numbers."""
        return self.ring.width * self.narrow + _WIDE.width * (self.counters + TAIL)

    def zeros(self) -> Vector:
        """Return a vector of zeros."""
        return self.read(bytes(self.size))

    def read(self, data: memoryview | bytes) -> Vector:
        """Return a vector from its bytes, which may be a mask's random ones.

        Raises:
            PacketError: If there are more or fewer of them.
        """
        if len(data) != self.size:
            raise PacketError(
                f"masked numbers have {len(data)} bytes, expected {self.size}", Reason.SIZE
            )
        end = self.ring.width * self.narrow
        return Vector(self, self.ring.read(data[:end]), _WIDE.read(data[end:]))


@dataclass(frozen=True, eq=False)
class Vector:
    """Integers of a ring, and wide ones modulo 2**64; added in place.

    Attributes:
        shape: How many.
        narrow: Survivors, then dense numbers.
        wide: Counters, then `TAIL` numbers.
    """

    shape: Shape
    narrow: Residues
    wide: NDArray[np.uint64]

    def add(self, other: Vector) -> None:
        """Add another vector, modulo the ring."""
        np.add(self.narrow, other.narrow, out=self.narrow)
        np.add(self.wide, other.wide, out=self.wide)

    def subtract(self, other: Vector) -> None:
        """Take another vector away, modulo the ring."""
        np.subtract(self.narrow, other.narrow, out=self.narrow)
        np.subtract(self.wide, other.wide, out=self.wide)

    def write(self) -> bytes:
        """Return the vector's bytes."""
        return self.shape.ring.write(self.narrow) + _WIDE.write(self.wide)

    def signed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return narrow and wide numbers as the integers nearest to 0."""
        return self.shape.ring.signed(self.narrow), _WIDE.signed(self.wide)

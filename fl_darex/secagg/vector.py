"""The integers of one client, or of a sum: what is masked, bytes in and bytes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason
from fl_darex.secagg.ring import Residues, Ring

TAIL = 2
"""Wide numbers at the end: the weight, and how many numbers were clipped."""

_WIDE = Ring(8)


@dataclass(frozen=True)
class Shape:
    """How many integers there are, and how wide.

    Attributes:
        ring: Of survivors and of dense numbers.
        narrow: How many of these there are.
        counters: Numbers that are not floating point, in 64 bits each.
    """

    ring: Ring
    narrow: int
    counters: int = 0

    @property
    def wide(self) -> int:
        """How many numbers have 64 bits."""
        return self.counters + TAIL

    @property
    def size(self) -> int:
        """Bytes of all numbers."""
        return self.ring.size(self.narrow) + _WIDE.size(self.wide)

    def zeros(self) -> Vector:
        """Return a vector of zeros."""
        return Vector(
            self, np.zeros(self.narrow, self.ring.dtype), np.zeros(self.wide, dtype=np.uint64)
        )

    def read(self, data: memoryview | bytes) -> Vector:
        """Return a vector from its bytes, which may be a mask's random ones.

        Raises:
            PacketError: If there are more or fewer of them.
        """
        if len(data) != self.size:
            raise PacketError(
                f"masked numbers have {len(data)} bytes, expected {self.size}", Reason.SIZE
            )
        end = self.ring.size(self.narrow)
        return Vector(
            self, self.ring.read(data[:end], self.narrow), _WIDE.read(data[end:], self.wide)
        )


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
        self._change(np.add, other)

    def subtract(self, other: Vector) -> None:
        """Take another vector away, modulo the ring."""
        self._change(np.subtract, other)

    def write(self) -> bytes:
        """Return the vector's bytes."""
        return self.shape.ring.write(self.narrow) + _WIDE.write(self.wide)

    def signed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return narrow and wide numbers as the integers nearest to 0."""
        return self.shape.ring.signed(self.narrow), _WIDE.signed(self.wide)

    def _change(self, operation: Any, other: Vector) -> None:
        operation(self.narrow, other.narrow, out=self.narrow)
        operation(self.wide, other.wide, out=self.wide)

"""What a coding is: a way to write numbers as bytes, and to read any part of them back."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason

Numbers = NDArray[np.floating[Any]]
"""Numbers of a packet: float32, or of the type that their coding names (`type_of`)."""


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What becomes of numbers that a coding writes, as far as others have to know.

    Attributes:
        nmse: Mean of ``||read - written||^2 / ||written||^2``, whatever is written; 0: next to
            nothing, or not to be said so. Who writes with some keeps what was rounded away.
        biased: Whether the mean of what is read is something else than what was written.
        zeros: Whether 0 is read as 0, whatever stands beside it.
        rotated: Whether numbers are mixed first, so that codes of two packets do not add up.
    """

    nmse: float = 0.0
    biased: bool = False
    zeros: bool = True
    rotated: bool = False


@runtime_checkable
class Coding(Protocol):
    """A way to write float32 numbers; or float64 ones, with an attribute ``dtype = np.float64``.

    One that rounds coarsely says so in an attribute ``nature``, a `Nature`.

    Whoever writes an own one may derive it from this class, or not.
    """

    @property
    def name(self) -> str:
        """The name by which it is chosen."""

    @property
    def code(self) -> int:
        """The byte that names it in a packet: 128 to 255 for an own one."""

    @property
    def bits(self) -> float:
        """Bits per number, scales included, for many numbers."""

    @abstractmethod
    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""

    def exponent(self, largest: np.floating[Any]) -> int:
        """Return the power of two for the header, in [-128, 127], given the largest magnitude."""
        return 0

    @abstractmethod
    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the bytes of finite numbers.

        Args:
            numbers: What to write.
            exponent: From `exponent`.
            noise: The stream of stochastic rounding, shape ``(1,)`` (`fl_darex.masks.words`).
        """

    @abstractmethod
    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Check bytes from a stranger and return a bound of what they can stand for.

        Args:
            data: As many bytes as `size` says.
            count: How many numbers they are.
            exponent: From the header; as strange as the bytes.

        Raises:
            PacketError: If they are not what `write` writes for finite numbers.
        """

    @abstractmethod
    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of ``count``, checked by `largest` before.

        They are the caller's own: an array that shares no memory with the packet.
        """


def type_of(coding: Coding) -> np.dtype[Any]:
    """Return the NumPy type of the numbers that a coding takes and gives: float32 or float64."""
    return np.dtype(getattr(coding, "dtype", np.float32))  # no part of the protocol: few have it


def check_no_exponent(found: int) -> None:
    """Refuse a power of two where a coding needs none."""
    if found:
        raise PacketError(f"the packet's exponent is {found}, allowed: 0 to 0", Reason.VALUES)


def noise_of(seed: int, round_: int, sender: int) -> NDArray[np.uint64]:
    """Return the stream of an update's stochastic rounding, as `Coding.write` takes it.

    Args:
        seed: The run's seed.
        round_: The federated round.
        sender: Who writes, also where a mask is shared, so that clients round independently.
    """
    text = f"darex.noise.v1|{seed}|{round_}|{sender}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.array([int.from_bytes(digest, "little")], dtype=np.uint64)

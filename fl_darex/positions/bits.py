"""Numbers of a few bits, packed without gaps; little-endian, the low bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def packed_size(count: int, width: int) -> int:
    """Return the bytes of ``count`` numbers of ``width`` bits: whole bytes first, then the rest."""
    return count * (width // 8) + (count * (width % 8) + 7) // 8


def pack(numbers: NDArray[np.int64], width: int) -> bytes:
    """Write numbers below ``2**width``; ``width`` in [0, 56].

    Each full byte of all numbers goes into a plane of its own, the lowest byte first; the
    remaining ``width % 8`` high bits follow as one bit stream, number after number.
    """
    planes = [((numbers >> 8 * i) & 0xFF).astype(np.uint8).tobytes() for i in range(width // 8)]
    return b"".join([*planes, _pack_small(numbers >> 8 * (width // 8), width % 8)])


def unpack(data: memoryview, count: int, width: int) -> NDArray[np.int64]:
    """Read what `pack` wrote; ``len(data)`` is ``packed_size(count, width)``."""
    numbers = _unpack_small(data[count * (width // 8) :], count, width % 8).astype(np.int64)
    for i in reversed(range(width // 8)):
        plane = np.frombuffer(data[i * count : (i + 1) * count], dtype=np.uint8)
        numbers = numbers << 8 | plane
    return numbers


def padding_is_zero(data: memoryview, count: int, width: int) -> bool:
    """Return whether the unused bits of the last byte are zero, as `pack` leaves them."""
    used = count * (width % 8) % 8
    return not used or data[-1] >> used == 0


def _pack_small(numbers: NDArray[np.int64], width: int) -> bytes:
    # Eight numbers of up to seven bits fill one 64-bit word, of which ``width`` bytes are kept.
    count = numbers.size
    padded = np.zeros(-(-count // 8) * 8, dtype=np.uint64)
    padded[:count] = numbers
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(width)
    words = np.bitwise_or.reduce(padded.reshape(-1, 8) << shifts, axis=1)
    kept: NDArray[np.uint8] = words.astype("<u8", copy=False).view(np.uint8)
    return kept.reshape(-1, 8)[:, :width].tobytes()[: (count * width + 7) // 8]


def _unpack_small(data: memoryview, count: int, width: int) -> NDArray[np.uint64]:
    if not width:
        return np.zeros(count, dtype=np.uint64)
    groups = -(-count // 8)
    flat = np.zeros(groups * width, dtype=np.uint8)
    flat[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    words = np.zeros((groups, 8), dtype=np.uint8)
    words[:, :width] = flat.reshape(groups, width)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(width)
    numbers: NDArray[np.uint64] = (words.view("<u8") >> shifts) & np.uint64((1 << width) - 1)
    return numbers.reshape(-1)[:count]

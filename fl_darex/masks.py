"""Seeded random masks from integers alone: the same on every machine.

DARE drops entries without looking at them, so a mask need not be sent: both ends derive it from
(run seed, round, slot, tensor name). The generator is counter-based (SplitMix64's finalizer over
``key + i * GOLDEN``), and only integer additions, multiplications, shifts and look-ups are used:
no floating point, no library distribution whose stream may change. NumPy is all it needs.

Gaps between survivors are sampled instead of one draw per entry, so work is proportional to the
survivors. A tensor is cut into blocks of ``BLOCK`` entries; each block has a stream of its own
and can be drawn alone. Drawing past a block's end and forgetting the overshoot is exact because
the geometric distribution has no memory.

Source: DARE is Yu et al., "Language Models are Super Mario", https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18
"""Entries per block; a block's survivors depend on the key and the block's number only."""

ONE = 1 << 32
"""The integer that stands for probability 1; a keep threshold is in [1, ONE]."""

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_FRACTION_BITS = 96  # of the fixed-point powers p**g: far below the 32 bits that are kept


def keep_threshold(p: float) -> int:
    """Return the exact integer keep rate for drop rate ``p``, in units of 2**-32.

    This integer, not ``p``, defines the mask; ``keep_threshold(p) / ONE`` is the keep rate to
    use as q. It differs from 1-p by at most 2**-33, in any dtype of the model.

    Args:
        p: Fraction dropped, in [0, 1). ``p = 0`` keeps every entry.

    Raises:
        ValueError: If ``p`` is outside [0, 1) or so close to 1 that nothing could survive.
    """
    p = float(p)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p!r}; to send nothing, skip the client")
    kept = ONE - round(p * ONE)
    if kept == 0:
        raise ValueError(f"p = {p!r} keeps less than 2**-32 of the entries; use a smaller p")
    return kept


def mask_key(seed: int, round_: int, slot: int, name: str) -> int:
    """Return the 64-bit key of one tensor's mask.

    Args:
        seed: The run's seed, in [0, 2**63).
        round_: The federated round, from 1.
        slot: The client's partition, or -1 for the mask that all clients of a round share.
        name: The tensor's name; only its hash enters, so masks do not depend on tensor order.
    """
    head = f"darex.mask.v1|{seed}|{round_}|{slot}|".encode()
    digest = hashlib.blake2b(head + name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def survivors(key: int, numel: int, kept: int) -> NDArray[np.int64]:
    """Return the sorted positions that survive in a flattened tensor of ``numel`` entries.

    Each position survives independently with probability ``kept / ONE`` (to 2**-32).

    Args:
        key: From :func:`mask_key`.
        numel: Number of entries, 0 or more.
        kept: Keep threshold from :func:`keep_threshold`; ``ONE`` keeps all.
    """
    if kept == ONE:
        return np.arange(numel, dtype=np.int64)
    parts = [
        block_survivors(key, start // BLOCK, min(BLOCK, numel - start), kept) + start
        for start in range(0, numel, BLOCK)
    ]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def block_survivors(key: int, block: int, length: int, kept: int) -> NDArray[np.int64]:
    """Return the sorted positions that survive in one block, counted from its start.

    Args:
        key: From :func:`mask_key`.
        block: The block's number in its tensor, from 0.
        length: Entries in this block, at most ``BLOCK`` (the last block may be shorter).
        kept: Keep threshold in [1, ONE).
    """
    stream = _mix(np.array([(key + (block + 1) * _GOLDEN) & _WORD], dtype=np.uint64))
    reached, drawn, parts = -1, 0, []
    while reached < length - 1:
        count = _draws(length - 1 - reached, kept)
        positions = reached + np.cumsum(_gaps(stream, drawn, count, kept))
        parts.append(positions)
        reached, drawn = int(positions[-1]), drawn + count
    positions = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return positions[: np.searchsorted(positions, length)]


def _draws(length: int, kept: int) -> int:
    # Enough gaps to pass the end in one go nearly always: the mean and four deviations. It is
    # rounded up to even because one 64-bit output gives two draws. The number drawn does not
    # change the result, only the work.
    mean = length * kept // ONE
    return (mean + 4 * int(mean**0.5) + 5) & ~1


def _gaps(stream: NDArray[np.uint64], first: int, count: int, kept: int) -> NDArray[np.int64]:
    # Draw number i is half (i & 1) of output i >> 1; ``first`` and ``count`` are even.
    counters = np.arange(first // 2, (first + count) // 2, dtype=np.uint64)
    outputs = _mix(stream + counters * np.uint64(_GOLDEN))
    uniform = outputs.astype("<u8", copy=False).view("<u4")
    guide, table = _gap_tables(kept)
    gaps: NDArray[np.int64] = guide[uniform >> np.uint32(16)]
    unsure = np.flatnonzero(gaps == 0)
    if unsure.size:
        # The table falls; a gap is 1 + the number of entries above the draw.
        gaps[unsure] = 1 + table.size - np.searchsorted(table[::-1], uniform[unsure], "right")
    return gaps


@lru_cache(maxsize=16)
def _gap_tables(kept: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return a 16-bit guide (0 = look closer) and the falling table ``p**g`` in units of 2**-32.

    Gap g has probability ``p**(g-1) * (1-p)``: it is 1 + the number of g with u < p**g. A gap
    longer than a block is as good as any other, so the table ends there.
    """
    dropped = (ONE - kept) << (_FRACTION_BITS - 32)
    power = dropped
    powers: list[int] = []
    while len(powers) < BLOCK:
        rounded = (power + (1 << (_FRACTION_BITS - 33))) >> (_FRACTION_BITS - 32)
        if rounded == 0:
            break
        powers.append(rounded)
        power = (power * dropped) >> _FRACTION_BITS
    table = np.array(powers, dtype=np.uint32)
    rising = table[::-1]
    lowest = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    at_low = 1 + table.size - np.searchsorted(rising, lowest, "right")
    at_high = 1 + table.size - np.searchsorted(rising, lowest | np.uint32(0xFFFF), "right")
    guide = np.where(at_low == at_high, at_low, 0).astype(np.int64)
    for array in (guide, table):
        array.setflags(write=False)
    return guide, table


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014); arithmetic is modulo 2**64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

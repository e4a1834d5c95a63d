"""What defines a mask: an integer keep threshold, a key from the tensor's name, random words.

SplitMix64 is a counter-based generator: output i of stream s is ``mix(s + i * GOLDEN)``, all modulo
2**64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

BLOCK = 1 << 18
"""Entries per block; a block's survivors depend on the key and the block's number only."""

ONE = 1 << 32
"""The integer that stands for probability 1; a keep threshold is in [1, ONE]."""

SHARED = -1
"""The slot of what is no single client's: a mask that all clients share, or the server's own."""

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def keep_threshold(p: float) -> int:
    """Return the exact integer keep rate for drop rate ``p``, in units of 2**-32.

    This integer, not ``p``, defines the mask; ``keep_threshold(p) / ONE`` is the keep rate to
    use as q. It differs from 1-p by at most 2**-33, in any dtype of the model.

    Args:
        p: Fraction dropped, in [0, 1). ``p = 0`` keeps every entry.

    Raises:
        TypeError: If ``p`` is a text or a truth value.
        ValueError: If ``p`` is outside [0, 1) or so close to 1 that nothing could survive.
    """
    if isinstance(p, str | bytes | bool | np.bool_):
        raise TypeError(f"p must be a number in [0, 1), got {p!r}")
    p = float(p)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p!r}; to send nothing, skip the client")
    keep = ONE - round(p * ONE)
    if keep == 0:
        raise ValueError(f"p = {p!r} keeps less than 2**-32 of the entries; use a smaller p")
    return keep


def mask_key(seed: int, round_: int, slot: int, name: str) -> int:
    """Return the 64-bit key of one tensor's mask.

    Args:
        seed: The run's seed, in [0, 2**63).
        round_: The federated round, from 1.
        slot: The client's partition, or `SHARED` for the mask that all clients of a round share.
        name: The tensor's name; only its hash enters, so masks do not depend on tensor order.
    """
    head = f"darex.mask.v1|{seed}|{round_}|{slot}|".encode()
    digest = hashlib.blake2b(head + name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(z: Words) -> Words:
    """Return SplitMix64's finalizer of each number, as a new array."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


def streams(keys: Words, blocks: Words) -> Words:
    """Return the stream of each block.

    Args:
        keys: 64-bit keys of the blocks' tensors, from `fl_darex.masks.mask_key`.
        blocks: The blocks' numbers in their tensors, from 0.
    """
    return mix(keys + (blocks + np.uint64(1)) * np.uint64(GOLDEN))


def words(stream: Words, first: int, count: int) -> NDArray[np.uint32]:
    """Return 32-bit draws ``first`` to ``first + count - 1`` of each stream.

    Draw i is half ``i & 1`` of output ``i >> 1``, the low half first.

    Args:
        stream: Streams, shape ``(rows, 1)``, or one stream, shape ``(1,)``.
        first: An even number.
        count: An even number.

    Returns:
        Shape ``(rows, count)`` or ``(count,)``.
    """
    counters = np.arange(first // 2, (first + count) // 2, dtype=np.uint64)
    outputs = mix(stream + counters * np.uint64(GOLDEN))
    return outputs.astype("<u8", copy=False).view("<u4")

"""What defines a mask: an integer keep threshold, and a key from the tensor's name."""

from __future__ import annotations

import hashlib

BLOCK = 1 << 18
"""Entries per block; a block's survivors depend on the key and the block's number only."""

ONE = 1 << 32
"""The integer that stands for probability 1; a keep threshold is in [1, ONE]."""


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

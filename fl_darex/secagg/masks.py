"""The masks of the protocol, and the letters that carry shares: what both halves must agree on."""

from __future__ import annotations

from fl_darex.secagg import keys


def self_mask(seed: bytes, session: bytes, slot: int, size: int) -> bytes:
    """Return the bytes of a client's own mask, which only its seed gives."""
    return keys.keystream(keys.derived(seed, session, f"self|{slot}"), size)


def pair_mask(
    secret: bytes, public: bytes, session: bytes, slot: int, peer: int, size: int
) -> bytes:
    """Return the bytes of the mask of two clients, from either one's secret.

    The one with the lower slot adds it, the other one takes it away.
    """
    low, high = sorted((slot, peer))
    return keys.keystream(keys.agree(secret, public, session, f"pair|{low}|{high}"), size)


def seal_shares(
    secret: bytes, public: bytes, session: bytes, sender: int, receiver: int, shares: bytes
) -> bytes:
    """Return shares that only the receiver can read, and nobody can change."""
    key = keys.agree(secret, public, session, f"letter|{sender}|{receiver}")
    return keys.seal(key, shares, f"{sender}|{receiver}".encode())


def unseal_shares(
    secret: bytes, public: bytes, session: bytes, sender: int, receiver: int, sealed: bytes
) -> bytes:
    """Return the shares of `seal_shares`, as the receiver.

    Raises:
        PacketError: If they were changed.
    """
    key = keys.agree(secret, public, session, f"letter|{sender}|{receiver}")
    return keys.unseal(key, sealed, f"{sender}|{receiver}".encode())

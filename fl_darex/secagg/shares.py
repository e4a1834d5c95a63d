"""Shamir's secret sharing of 16-byte secrets, from the ``pycryptodome`` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping

SHARE_BYTES = 16


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Return one share for each holder; ``threshold`` of them give the secret, fewer say nothing.

    A share's number is not in it: holder i, from 0, has share number i + 1.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, holders, secret, ssss=False)]


def combine(
    shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]
) -> bytes | None:
    """Return the secret that enough shares give, or None.

    Args:
        shares: By holder, from 0.
        threshold: As in `split`.
        right: Tells the secret. A wrong share gives a wrong secret; other shares are then tried in
            its place, as long as there are more than ``threshold``.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    numbered = [(holder + 1, share) for holder, share in sorted(shares.items())]
    if len(numbered) < threshold:
        return None
    spare = len(numbered) - threshold
    for start in range(len(numbered) if spare else 1):
        some = [*numbered, *numbered][start : start + threshold]
        secret: bytes = Shamir.combine(some, ssss=False)
        if right(secret):
            return secret
    return None

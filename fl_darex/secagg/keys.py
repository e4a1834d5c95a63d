"""Secrets: key agreement, sealed letters and random streams, all from ``cryptography``.

Every secret that may have to be rebuilt is 16 bytes long: an X25519 key pair is derived from them,
and so is the key of a mask. 128 bits are X25519's own strength.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_darex.errors import PacketError, Reason
from fl_darex.secagg.shares import SHARE_BYTES

SECRET_BYTES = SESSION_BYTES = 16
PUBLIC_BYTES = COMMITMENT_BYTES = 32
LETTER_BYTES = 2 * SHARE_BYTES + 16
"""Two shares, sealed."""

_FIELD = 2**255 - 19


def new_secret() -> bytes:
    """Return 16 bytes from the operating system's generator."""
    return os.urandom(SECRET_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the 32 bytes of the X25519 public key that belongs to a secret."""
    return bytes(_private(secret).public_key().public_bytes_raw())


def halves(both: bytes) -> tuple[bytes, bytes]:
    """Return a client's two public keys: for letters, and for masks."""
    return both[:PUBLIC_BYTES], both[PUBLIC_BYTES:]


def agree(secret: bytes, public: bytes, session: bytes, label: str) -> bytes:
    """Return the 32-byte key that two clients share (X25519, then HKDF-SHA256).

    Args:
        secret: One's own.
        public: The other's public key.
        session: Of this round: the same key pair would give another key in another session.
        label: What the key is for.

    Raises:
        PacketError: If the public key is one of the few with which nothing is secret.
    """
    try:
        shared = _private(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PacketError("a public key of secure aggregation is no key", Reason.VALUES) from None
    return derived(shared, session, label)


def check(public: bytes) -> None:
    """Raise `PacketError` if a public key is one with which nothing is secret.

    Nor may it be written in another way than `public_key` does: X25519 takes several for the same
    key, and a secret that is rebuilt would not be known by its key.
    """
    if int.from_bytes(public, "little") >= _FIELD:
        raise PacketError("a public key of secure aggregation is no key", Reason.VALUES)
    agree(bytes(SECRET_BYTES), public, b"", "check")


def derived(secret: bytes, session: bytes, label: str) -> bytes:
    """Return a 32-byte key for one use (HKDF-SHA256 with the session as salt)."""
    info = f"darex.secagg.v1|{label}".encode()
    return bytes(HKDF(algorithm=SHA256(), length=32, salt=session, info=info).derive(secret))


def commitment(secret: bytes, session: bytes) -> bytes:
    """Return 32 bytes that fix a random secret without telling it."""
    return derived(secret, session, "commitment")


def keystream(key: bytes, size: int) -> bytes:
    """Return the first bytes of a 32-byte key's random stream (AES-256 in counter mode)."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return bytes(encryptor.update(bytes(size)))


def seal(
    secret: bytes, public: bytes, session: bytes, sender: int, receiver: int, letter: bytes
) -> bytes:
    """Return a letter that only the receiver can read, and nobody can change (AES-256-GCM).

    It takes the sender's secret and the receiver's public key. Two clients MUST seal one letter
    each way in a session: the nonce is constant.
    """
    key = agree(secret, public, session, f"letter|{sender}|{receiver}")
    return AESGCM(key).encrypt(bytes(12), letter, f"{sender}|{receiver}".encode())


def unseal(
    secret: bytes, public: bytes, session: bytes, sender: int, receiver: int, sealed: bytes
) -> bytes:
    """Return the letter of `seal`, from the receiver's secret and the sender's public key.

    Raises:
        PacketError: If it was not sealed by that sender for that receiver, or was changed.
    """
    key = agree(secret, public, session, f"letter|{sender}|{receiver}")
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, f"{sender}|{receiver}".encode())
    except InvalidTag:
        raise PacketError(
            "shares of secure aggregation were changed on their way", Reason.CHECKSUM
        ) from None


def _private(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derived(secret, b"", "x25519"))

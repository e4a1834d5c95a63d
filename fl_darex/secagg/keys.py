"""Keys, key agreement, sealed letters and masks, all from the ``cryptography`` library.

Every secret that may have to be rebuilt from shares is 16 bytes long: an X25519 key pair is
derived from them, and so is the key of a mask. 128 bits are X25519's own strength.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fl_darex.errors import PacketError, Reason

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SECRET_BYTES = 16
PUBLIC_BYTES = 32
COMMITMENT_BYTES = 32
SESSION_BYTES = 16
LETTER_BYTES = 2 * 16 + 16
"""Two shares, sealed."""


def new_secret() -> bytes:
    """Return 16 bytes from the operating system's generator."""
    return os.urandom(SECRET_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the 32 bytes of the X25519 public key that belongs to a secret."""
    return bytes(_private(secret).public_key().public_bytes_raw())


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
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        shared = _private(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PacketError("a public key of secure aggregation is no key", Reason.VALUES) from None
    return derived(shared, session, label)


def check(public: bytes) -> None:
    """Raise `PacketError` if a public key is one with which nothing is secret."""
    agree(bytes(SECRET_BYTES), public, b"", "check")


def derived(secret: bytes, session: bytes, label: str) -> bytes:
    """Return a 32-byte key for one use (HKDF-SHA256 with the session as salt)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = f"darex.secagg.v1|{label}".encode()
    return bytes(HKDF(algorithm=SHA256(), length=32, salt=session, info=info).derive(secret))


def seal(key: bytes, letter: bytes, note: bytes) -> bytes:
    """Encrypt a letter (AES-256-GCM). A key MUST seal one letter only: the nonce is constant.

    Args:
        key: From `agree`, for this sender and this receiver.
        letter: What only the receiver may read.
        note: What both know and nobody may change.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).encrypt(bytes(12), letter, note)


def unseal(key: bytes, sealed: bytes, note: bytes) -> bytes:
    """Return a sealed letter.

    Raises:
        PacketError: If it was not sealed with this key and note, or was changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(bytes(12), sealed, note)
    except InvalidTag:
        raise PacketError(
            "shares of secure aggregation were changed on their way", Reason.CHECKSUM
        ) from None


def keystream(key: bytes, size: int) -> bytes:
    """Return the first bytes of a 32-byte key's random stream (AES-256 in counter mode)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return bytes(encryptor.update(bytes(size)))


def commitment(secret: bytes, session: bytes) -> bytes:
    """Return 32 bytes that fix a random secret without telling it."""
    return derived(secret, session, "commitment")


def _private(secret: bytes) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(derived(secret, b"", "x25519"))

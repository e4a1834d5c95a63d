"""Versions of a model: eight bytes that say which bits a client holds.

The first version of a run is a hash of its content. Each later one is a hash of the version
before it and of the packet that leads from one to the other, so nobody hashes a model again
after its first version: whoever applies the same packets to the same bits holds the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION_BYTES = 8


def tensor_digests(arrays: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
    """Return a digest of each tensor's name, type, shape and content.

    Args:
        arrays: The tensors by name, in any order.
    """
    return {name: digest_of_tensor(name, array.dtype.name, array) for name, array in arrays.items()}


def digest_of_tensor(name: str, dtype: str, array: NDArray[Any]) -> bytes:
    """Return a digest of a tensor's name, type, shape and content.

    Args:
        name: Its name.
        dtype: Its type as NumPy or torch spells it.
        array: Its content; of types that NumPy lacks, such as bfloat16, the bits.
    """
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    head = repr((name, dtype, array.shape)).encode("utf-8", "surrogatepass")
    content = little.reshape(-1).view(np.uint8)
    return _hash([len(head).to_bytes(8, "little"), head, content])


def content_version(digests: Mapping[str, bytes]) -> bytes:
    """Return the version of a model from the digests of its tensors."""
    return _hash(digests[name] for name in sorted(digests))


def next_version(version: bytes, packet: bytes) -> bytes:
    """Return the version that a packet makes of another one."""
    return _hash([version, packet])


def _hash(parts: Iterable[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=VERSION_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()

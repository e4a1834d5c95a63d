"""Packets and tensors as Flower records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fl_darex.errors import PacketError

PACKET_STYPE = "darex.v1"
"""Serialisation type of the one Array that carries a packet; plain Flower refuses to open it."""

PACKET_NAME = "darex"


def packet_record(packet: bytes) -> ArrayRecord:
    """Return an ArrayRecord with one Array that holds a packet."""
    array = Array(dtype="uint8", shape=(len(packet),), stype=PACKET_STYPE, data=packet)
    return ArrayRecord({PACKET_NAME: array})


def packet_of(record: ArrayRecord) -> bytes | None:
    """Return the packet that a record carries; None if it holds ordinary arrays."""
    if len(record) != 1:
        return None
    array = next(iter(record.values()))
    return array.data if array.stype == PACKET_STYPE else None


def to_arrays(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return the NumPy arrays of a record by name.

    Raises:
        PacketError: If an array cannot be read.
    """
    return {name: _to_array(name, array) for name, array in record.items()}


def _to_array(name: str, array: Array) -> NDArray[Any]:
    try:
        found = array.numpy()
    except Exception as error:  # bytes from strangers: numpy raises what its parts raise
        raise PacketError(f"the array {name!r} cannot be read: {error}") from None
    if not isinstance(found, np.ndarray):
        raise PacketError(f"the array {name!r} is not one array but a {type(found).__name__}")
    return found


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return an ArrayRecord of NumPy arrays, in the mapping's order."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})

"""Messages and clients' states between processes: small ones cheap, large arrays copied once."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any

from flwr.app import Array

LARGE = 1 << 16
"""Bytes from which on arrays travel beside the pickle, records and states outside the driver."""

Parcel = tuple[bytes, Sequence[PickleBuffer]]
"""A pickle, and the bytes of large arrays, which Ray puts into its store as they are."""


class _Pickler(pickle.Pickler):
    """Takes what large arrays hold out of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        """Return how an array is made anew; leave everything else to its own way."""
        if type(value) is Array and len(value.data) >= LARGE:
            parts = (value.dtype, value.shape, value.stype, PickleBuffer(value.data))
            return _array, parts
        return NotImplemented


def pack(value: Any) -> Parcel:
    """Return something made of Flower's records and messages, ready to travel.

    Raises:
        Exception: What pickle raises where somebody put something else in.
    """
    buffers: list[PickleBuffer] = []
    written = io.BytesIO()
    _Pickler(written, protocol=5, buffer_callback=buffers.append).dump(value)
    return written.getvalue(), buffers


def unpack(parcel: Parcel) -> Any:
    """Return what was packed; it shares nothing with the original or the parcel."""
    data, buffers = parcel
    return pickle.loads(data, buffers=buffers)


def size(parcel: Parcel) -> int:
    """Return how many bytes travel."""
    data, buffers = parcel
    return len(data) + sum(memoryview(buffer).nbytes for buffer in buffers)


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    # Flower's arrays hold bytes, and apps may count on that.
    return Array(dtype=dtype, shape=shape, stype=stype, data=bytes(data))

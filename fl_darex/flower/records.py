"""Packets and tensors as Flower records."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl_darex.errors import PacketError, Reason
from fl_darex.flower.private import SType

PACKET_STYPE = "darex.v1"
"""Serialisation type of the one Array that carries a packet; plain Flower refuses to open it."""

SEALED_STYPE = "darex.masked.v1"
"""The same for a packet of secure aggregation, whose numbers are masked."""

_TIED = ".tied."
_USUAL_HEADER = 256  # bytes of a NumPy array's header, at most
_NAMES = {PACKET_STYPE: "darex", SEALED_STYPE: "darex.masked"}


def arrays_in(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the ArrayRecords among records by name.

    Flower's own ``content.array_records`` is a checked dictionary, made anew at each look: with
    thousands of small clients most of a round.
    """
    return {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}


def configs_in(content: RecordDict) -> dict[str, ConfigRecord]:
    """Return the ConfigRecords among records by name."""
    return {key: record for key, record in content.items() if isinstance(record, ConfigRecord)}


def metrics_in(content: RecordDict) -> dict[str, MetricRecord]:
    """Return the MetricRecords among records by name."""
    return {key: record for key, record in content.items() if isinstance(record, MetricRecord)}


def packet_array(packet: bytes, stype: str = PACKET_STYPE) -> Array:
    """Return an Array that holds a packet."""
    return Array(dtype="uint8", shape=(len(packet),), stype=stype, data=packet)


def packet_record(packet: bytes, stype: str = PACKET_STYPE, ties: str = "") -> ArrayRecord:
    """Return an ArrayRecord with one Array that holds a packet, and says what is tied in it."""
    return ArrayRecord({_NAMES[stype] + with_ties(ties): packet_array(packet, stype)})


def with_ties(ties: str) -> str:
    """Return what the name of a packet's Array ends in, given `fl_darex.ties.write_ties`."""
    return f"{_TIED}{ties}" if ties else ""


def ties_in(name: str) -> str:
    """Return what the name of a packet's Array says of ties; empty: there are none."""
    return name.partition(_TIED)[2]


def packet_of(record: ArrayRecord, stype: str = PACKET_STYPE) -> bytes | None:
    """Return the packet that a record carries; None if it holds anything else, or more."""
    arrays = list(record.values())
    return arrays[0].data if [array.stype for array in arrays] == [stype] else None


def model_among(
    records: Mapping[str, ArrayRecord], name: str, fits: Callable[[ArrayRecord], bool]
) -> str | None:
    """Return which record is the model: of that name, the only one, or the only one that fits."""
    if name in records:
        return name
    found = [key for key, record in records.items() if len(records) == 1 or fits(record)]
    return found[0] if len(found) == 1 else None


def to_arrays(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return the NumPy arrays of a record by name.

    Raises:
        PacketError: If an array cannot be read.
    """
    return {name: _to_array(name, array) for name, array in record.items()}


def _to_array(name: str, array: Array) -> NDArray[Any]:
    try:
        if array.stype == SType.NUMPY:
            shape, fortran, dtype, start = _header(array.data)
            if (said := start + math.prod(shape) * dtype.itemsize) > len(array.data):
                raise ValueError(f"its header speaks of {said} bytes, there are {len(array.data)}")
            if not dtype.hasobject:
                return _read_only(array.data, shape, fortran, dtype, start).copy("K")
        found = array.numpy()
    except Exception as error:  # bytes from strangers: numpy raises what its parts raise
        raise PacketError(f"the array {name!r} cannot be read: {error}", Reason.REPLY) from None
    if not isinstance(found, np.ndarray):
        kind = type(found).__name__
        raise PacketError(f"the array {name!r} is not one array but a {kind}", Reason.REPLY)
    return found


def _read_only(
    data: bytes, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any], start: int
) -> NDArray[Any]:
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, type and where the numbers begin; raise `ValueError` for others."""
    # Clients' arrays have a few headers among them, each of which numpy compiles anew.
    end = 10 + int.from_bytes(data[8:10], "little")  # of version 1.0
    if data[6:8] == b"\x01\x00" and end <= _USUAL_HEADER:
        return _usual_header(bytes(data[:end]))
    return _parsed(data)


@lru_cache(maxsize=1024)
def _usual_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    return _parsed(header)


def _parsed(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    file = io.BytesIO(data)  # shares the bytes
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = read[version](file)
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype, file.tell()


def view_arrays(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return the NumPy arrays of a record by name, read-only and without a copy.

    Raises:
        PacketError: If an array cannot be read.
    """
    return {name: _view(name, array) for name, array in record.items()}


def _view(name: str, array: Array) -> NDArray[Any]:
    if array.stype != SType.NUMPY:
        return _to_array(name, array)
    try:
        return _read_only(array.data, *_header(array.data))
    except Exception:  # an unusual header: numpy's own reader has the last word
        return _to_array(name, array)


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return an ArrayRecord of NumPy arrays, in the mapping's order."""
    return ArrayRecord({name: to_array(np.asarray(array)) for name, array in arrays.items()})


def into_record(arrays: dict[str, NDArray[Any]]) -> ArrayRecord:
    """Return `to_record` of arrays and empty the dictionary, so that few are held twice."""
    return ArrayRecord({name: to_array(np.asarray(arrays.pop(name))) for name in list(arrays)})


def to_array(array: NDArray[Any]) -> Array:
    """Return what Flower's ``Array(array)`` is, byte for byte, with one copy in place of two."""
    if not array.flags.c_contiguous or array.dtype.hasobject:
        return Array(array)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    data = b"".join([head.getvalue(), array.reshape(-1).view(np.uint8).data])
    return Array(dtype=str(array.dtype), shape=array.shape, stype=SType.NUMPY, data=data)


def copied(content: RecordDict) -> RecordDict:
    """Return records that share nothing with the given ones that can change, as a network would.

    What Flower keeps beside an array that it has hashed, views that cannot be pickled, stays away.
    """
    # The records' own `copy` does not look at each key and value again, as their constructors do.
    other: RecordDict = content.copy()
    for name, record in content.items():
        other[name] = _copied(record)
    return other


def _copied(record: ArrayRecord | MetricRecord | ConfigRecord) -> Any:
    other: Any = record.copy()
    for name, value in record.items():
        if isinstance(value, Array):
            other[name] = Array(
                dtype=value.dtype, shape=value.shape, stype=value.stype, data=value.data
            )
        elif isinstance(value, list):
            other[name] = list(value)
    return other

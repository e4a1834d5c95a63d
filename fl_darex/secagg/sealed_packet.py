"""The masked packet: a client's integers plus masks, which say nothing to whoever sees them alone.

``docs/wire-format.md`` is the specification. The receiver knows the size of everything before it
reads a byte.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import astuple, dataclass
from typing import NoReturn

from flwr.app import Array, ArrayRecord

from fl_darex.errors import PacketError, Reason

MASKED_STYPE = "darex.masked.v1"
"""Serialisation type of the one Array that carries a masked packet."""

MASKED_NAME = "darex.masked"

_MAGIC, _VERSION = b"DARM", 1
# magic, version, bytes of a number, 2 zeros | session | round, slot | layout fingerprint |
# version of the model | survivors | CRC-32
_STRUCT = struct.Struct("<4sBBH16sQQ16s8sQI")
_CHECKSUM = struct.Struct("<I")
MASKED_HEADER_BYTES = _STRUCT.size


@dataclass(frozen=True, kw_only=True)
class MaskedHeader:
    """What a masked packet says in the clear; the server knows all of it before.

    Attributes:
        width: Bytes of a number of the ring.
        session: The round's 16 bytes.
        round: The federated round.
        slot: Whose it is.
        fingerprint: Of the layout, 16 bytes.
        base: Version of the model that the numbers are changes to, 8 bytes.
        survivors: How many entries the mask keeps.
    """

    width: int
    session: bytes
    round: int
    slot: int
    fingerprint: bytes
    base: bytes
    survivors: int

    def seal(self, body: bytes) -> bytes:
        """Return the packet: this header, a checksum and the masked numbers."""
        width, *rest = astuple(self)
        head = _STRUCT.pack(_MAGIC, _VERSION, width, 0, *rest, 0)[: -_CHECKSUM.size]
        return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def open_masked(data: bytes, expected: MaskedHeader, size: int) -> memoryview:
    """Return the masked numbers of a packet that is exactly what was asked for.

    Args:
        data: Bytes from a stranger.
        expected: What its header must say.
        size: Bytes of the masked numbers.

    Raises:
        PacketError: If it is anything else.
    """
    if len(data) != MASKED_HEADER_BYTES + size:
        _refuse(
            f"has {len(data)} bytes, expected {MASKED_HEADER_BYTES + size}",
            Reason.SIZE,
        )
    magic, version, width, zeros, *rest, checksum = _STRUCT.unpack_from(data)
    if (magic, version, zeros) != (_MAGIC, _VERSION, 0):
        _refuse(f"begins with {data[:8].hex()}, which this receiver does not know", Reason.FORMAT)
    view = memoryview(data)
    head, body = view[: MASKED_HEADER_BYTES - _CHECKSUM.size], view[MASKED_HEADER_BYTES:]
    if zlib.crc32(body, zlib.crc32(head)) != checksum:
        _refuse("does not match its checksum: it was damaged on the way", Reason.CHECKSUM)
    names = ("width", "session", "round", "slot", "fingerprint", "base", "survivors")
    found = MaskedHeader(**dict(zip(names, (width, *rest), strict=True)))
    for name in names:
        if getattr(found, name) != getattr(expected, name):
            _refuse(
                f"has {name} {getattr(found, name)!r}, expected {getattr(expected, name)!r}",
                Reason.LAYOUT if name == "fingerprint" else Reason.UNEXPECTED,
            )
    return body


def masked_record(data: bytes) -> ArrayRecord:
    """Return an ArrayRecord with one Array that holds a masked packet."""
    array = Array(dtype="uint8", shape=(len(data),), stype=MASKED_STYPE, data=data)
    return ArrayRecord({MASKED_NAME: array})


def masked_of(record: ArrayRecord) -> bytes:
    """Return the masked packet that a record carries.

    Raises:
        PacketError: If it carries anything else: a client that answers in the clear.
    """
    if not is_masked(record):
        _refuse("was asked for, and something else came", Reason.UNEXPECTED)
    return next(iter(record.values())).data


def is_masked(record: ArrayRecord) -> bool:
    """Return whether a record carries a masked packet and nothing else."""
    return [array.stype for array in record.values()] == [MASKED_STYPE]


def _refuse(what: str, reason: Reason) -> NoReturn:
    raise PacketError(f"the masked packet {what}", reason)

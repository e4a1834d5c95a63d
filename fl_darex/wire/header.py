"""The fixed header of packet v1, and the checks that need nothing but the bytes.

``docs/wire-format.md`` is the specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_darex.errors import PacketError, Reason
from fl_darex.positions import KINDS
from fl_darex.positions.mask import GENERATORS, MaskFields, refuse

MAGIC = b"DARX"
VERSION = 1

NO_VERSION = bytes(8)

_CODES: Mapping[str, Mapping[str, int]] = {
    "mask_kind": {name: kind.code for name, kind in KINDS.items()},
    "generator": GENERATORS,
}


@dataclass(frozen=True, kw_only=True)
class Header(MaskFields):
    """A packet's header, field by field; the specification says what they mean."""

    coding: int
    q: float
    exponent: int
    dense_exponent: int
    q_count: int
    fingerprint: bytes
    base: bytes
    survivors: int
    position_bytes: int

    def seal(self, body: bytes) -> bytes:
        """Return the packet: this header, its checksum and the body."""
        fields = vars(self) | {name: codes[getattr(self, name)] for name, codes in _CODES.items()}
        head = _STRUCT.pack(MAGIC, VERSION, *(fields[name] for name in _NAMES))
        return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


# What lies between magic and version, which come first, and the checksum.
_NAMES = (
    *("mask_kind", "generator", "coding", "seed", "round", "slot", "keep"),
    *("q", "exponent", "dense_exponent", "q_count", "fingerprint", "base"),
    *("survivors", "position_bytes"),
)
_STRUCT = struct.Struct("<4sB BBBQQqQ dbbH16s8s QQ")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _STRUCT.size + _CHECKSUM.size

_WORDS = {"mask_kind": "mask kind", "generator": "random generator", "keep": "keep threshold"}


def expect(field: str, found: object, wanted: object, reason: Reason = Reason.UNEXPECTED) -> None:
    """Refuse a field that is not what the receiver expects."""
    if found != wanted:
        name = _WORDS.get(field, field)
        raise PacketError(f"the packet's {name} is {found!r}, expected {wanted!r}", reason)


def read_header(packet: bytes) -> Header:
    """Return the header of a packet whose frame is sound.

    Raises:
        PacketError: If the packet is too short, is no packet, is damaged, or has a version,
            mask kind or generator that this receiver does not know.
    """
    if len(packet) < HEADER_BYTES:
        refuse(f"has {len(packet)} bytes, a header alone {HEADER_BYTES}", Reason.SIZE)
    magic, version, *values = _STRUCT.unpack_from(packet)
    if magic != MAGIC:
        raise PacketError(f"not a fl-darex packet: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise PacketError(f"unknown packet version {version}; this receiver knows {VERSION}")
    view = memoryview(packet)
    checksum = zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _STRUCT.size]))
    if checksum != _CHECKSUM.unpack_from(packet, _STRUCT.size)[0]:
        refuse("was damaged on the way: its checksum does not match", Reason.CHECKSUM)
    found: dict[str, Any] = dict(zip(_NAMES, values, strict=True))
    for name, codes in _CODES.items():
        known = {code: known for known, code in codes.items()}
        if found[name] not in known:
            choices = ", ".join(f"{known} ({code})" for known, code in codes.items())
            raise PacketError(
                f"unknown {_WORDS[name]} {found[name]}; this receiver knows {choices}"
            )
        found[name] = known[found[name]]
    return Header(**found)

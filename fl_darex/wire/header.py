"""The fixed header of packet v1, and the checks that need nothing but the bytes.

``docs/wire-format.md`` is the specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from fl_darex.errors import PacketError, Reason

MAGIC = b"DARX"
VERSION = 1

METHODS = {1: "seeded", 2: "listed", 3: "union", 4: "structured"}
"""Where survivors are: drawn from the header's numbers, listed in the packet, the union of
several draws whose slots are listed, or drawn in few columns."""

GENERATORS = {0: "none", 1: "splitmix64", 2: "splitmix64-exact"}
"""How seeded masks are drawn (`fl_darex.masks`)."""

# magic, version, method, generator, value coding | seed, round, slot, keep threshold | q,
# exponents of survivors and of dense numbers, count of q | layout fingerprint | version of the
# model that the numbers are changes to | survivors, bytes of the positions | CRC-32
_STRUCT = struct.Struct("<4sBBBBQQqQdbbH16s8sQQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _STRUCT.size
_NUMBERS = (
    *("seed", "round", "slot", "kept", "q", "exponent", "dense_exponent", "q_count"),
    *("fingerprint", "base", "survivors", "position_bytes"),
)
NO_VERSION = bytes(8)


@dataclass(frozen=True, kw_only=True)
class Header:
    """A packet's header, field by field; see the specification for their meaning."""

    method: str
    generator: str
    coding: int
    seed: int
    round: int
    slot: int
    kept: int
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
        fields = (
            *(MAGIC, VERSION, _code(METHODS, self.method), _code(GENERATORS, self.generator)),
            *(self.coding, self.seed, self.round, self.slot, self.kept, self.q),
            *(self.exponent, self.dense_exponent, self.q_count, self.fingerprint, self.base),
            *(self.survivors, self.position_bytes),
        )
        head = _STRUCT.pack(*fields, 0)[: -_CHECKSUM.size]
        return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def read_header(packet: bytes) -> Header:
    """Return the header of a packet whose frame is sound.

    Raises:
        PacketError: If the packet is too short, is no packet, is damaged, or has a version,
            method or generator that this receiver does not know.
    """
    _check_frame(packet)
    _, _, method, generator, coding, *numbers = _STRUCT.unpack_from(packet)
    return Header(
        method=_name(METHODS, method, "method"),
        generator=_name(GENERATORS, generator, "random generator"),
        coding=coding,
        **dict(zip(_NUMBERS, numbers, strict=False)),  # the checksum is left over
    )


def _check_frame(packet: bytes) -> None:
    if len(packet) < HEADER_BYTES:
        raise PacketError(
            f"the packet has {len(packet)} bytes, a header alone {HEADER_BYTES}", Reason.SIZE
        )
    if packet[:4] != MAGIC:
        raise PacketError(f"not a fl-darex packet: it starts with {packet[:4]!r}, not {MAGIC!r}")
    if packet[4] != VERSION:
        raise PacketError(f"unknown packet version {packet[4]}; this receiver knows {VERSION}")
    end = HEADER_BYTES - _CHECKSUM.size
    view = memoryview(packet)
    found = zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[:end]))
    if found != _CHECKSUM.unpack_from(packet, end)[0]:
        raise PacketError(
            "the packet's checksum does not match: it was damaged on the way", Reason.CHECKSUM
        )


def _name(table: Mapping[int, str], code: int, what: str) -> str:
    if code not in table:
        known = ", ".join(f"{name} ({code})" for code, name in table.items())
        raise PacketError(f"unknown {what} {code}; this receiver knows {known}")
    return table[code]


def _code(table: Mapping[int, str], name: str) -> int:
    return next(code for code, known in table.items() if known == name)

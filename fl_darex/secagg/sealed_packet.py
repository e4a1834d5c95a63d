"""The sealed packet: a client's integers plus masks, which say nothing to whoever sees them alone.

``docs/wire-format.md`` is the specification, which calls it masked. The receiver knows the size of
everything before it reads a byte.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import asdict, dataclass
from typing import NoReturn, Self

from fl_darex.compression.terms import Terms
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.secagg.messages import Stage

_MAGIC, _VERSION = b"DARM", 1
# magic, version, bytes of a number, 2 zeros | session | round, slot | layout fingerprint |
# version of the model | survivors | CRC-32
_STRUCT = struct.Struct("<4sBBH16sQQ16s8sQI")
SEALED_HEADER_BYTES = _STRUCT.size
_CHECKSUM_AT = SEALED_HEADER_BYTES - 4


@dataclass(frozen=True, kw_only=True)
class SealedHeader:
    """What a sealed packet says in the clear; the server knows all of it before.

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

    @classmethod
    def of(cls, stage: Stage, terms: Terms, layout: Layout, survivors: int) -> Self:
        """Return the header of a client's packet, from what it was told."""
        return cls(
            width=stage.width,
            session=bytes.fromhex(stage.session),
            round=terms.round,
            slot=stage.slot,
            fingerprint=layout.fingerprint,
            base=terms.version,
            survivors=survivors,
        )

    def seal(self, body: bytes) -> bytes:
        """Return the packet: this header, a checksum and the masked numbers."""
        width, *rest = asdict(self).values()
        head = _STRUCT.pack(_MAGIC, _VERSION, width, 0, *rest, 0)[:_CHECKSUM_AT]
        return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body

    def open(self, data: bytes | None, size: int) -> memoryview:
        """Return the masked numbers of a packet that has exactly this header.

        Args:
            data: Bytes from a stranger; None: a client that answers in the clear.
            size: Bytes of the masked numbers.

        Raises:
            PacketError: If it is anything else.
        """
        if data is None:
            _refuse("was asked for, and something else came", Reason.UNEXPECTED)
        if len(data) != SEALED_HEADER_BYTES + size:
            _refuse(f"has {len(data)} bytes, expected {SEALED_HEADER_BYTES + size}", Reason.SIZE)
        magic, version, width, zeros, *rest, checksum = _STRUCT.unpack_from(data)
        if (magic, version, zeros) != (_MAGIC, _VERSION, 0):
            _refuse(
                f"begins with {data[:8].hex()}, which this receiver does not know", Reason.FORMAT
            )
        body = memoryview(data)[SEALED_HEADER_BYTES:]
        if zlib.crc32(body, zlib.crc32(data[:_CHECKSUM_AT])) != checksum:
            _refuse("does not match its checksum: it was damaged on the way", Reason.CHECKSUM)
        for (name, wanted), found in zip(asdict(self).items(), (width, *rest), strict=True):
            if found != wanted:
                reason = Reason.LAYOUT if name == "fingerprint" else Reason.UNEXPECTED
                _refuse(f"has {name} {found!r}, expected {wanted!r}", reason)
        return body


def _refuse(what: str, reason: Reason) -> NoReturn:
    raise PacketError(f"the masked packet {what}", reason)

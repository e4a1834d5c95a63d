"""A packet that was checked and is read part by part.

The server adds many clients block by block, so it must know that the numbers in a packet are sound
before it adds the first one, and must not hold the numbers of all clients decoded. One thing is
left to whoever draws a seeded mask, because nobody should draw it twice: whether it keeps as many
entries as the packet has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout, TensorSpec
from fl_darex.errors import PacketError, Reason
from fl_darex.positions import Mask, positions_in
from fl_darex.survivors import Q, Survivors, split
from fl_darex.wire.header import HEADER_BYTES, Header, read_header
from fl_darex.wire.mask_header import read_mask
from fl_darex.wire.values import CODINGS, Coding, Numbers, dense_coding

_LARGEST = float(np.finfo(np.float32).max)


class _Sections(NamedTuple):
    """The parts of a packet, and how its numbers are coded."""

    q: memoryview
    positions: memoryview
    kept: memoryview
    dense: memoryview
    raw: memoryview
    coding: Coding
    dense_coding: Coding


@dataclass(frozen=True, eq=False)
class Packet:
    """A packet of which all is checked but how many entries its seeded mask keeps.

    Attributes:
        header: Its fixed fields.
        layout: The receiver's layout.
        mask: Where the survivors are.
        q: One number, or one for each pruned tensor.
    """

    header: Header
    layout: Layout
    mask: Mask
    q: Q
    _sections: _Sections

    def numbers(self, start: int = 0, end: int | None = None, scale: float = 1.0) -> Numbers:
        """Return survivors ``start`` to ``end - 1`` times ``scale``, in canonical order."""
        count, exponent = self.header.survivors, self.header.exponent
        stop = count if end is None else end
        found = self._sections.coding.read(self._sections.kept, count, exponent, start, stop)
        if scale != 1.0:
            found *= np.float32(scale)
        return found

    def dense(self) -> dict[str, Numbers]:
        """Return each dense tensor's whole delta, flattened."""
        sizes = {spec.name: spec.numel for spec in self.layout.dense}
        count, part = sum(sizes.values()), self._sections
        exponent = self.header.dense_exponent
        return split(part.dense_coding.read(part.dense, count, exponent, 0, count), sizes)

    def raw(self) -> dict[str, NDArray[Any]]:
        """Return the new values of each tensor that is not floating point."""
        return _read_raw(self.layout, self._sections.raw)

    def q_of(self, index: int) -> float:
        """Return the q of pruned tensor number ``index``."""
        return float(self.q if isinstance(self.q, float) else self.q[index])

    def check_count(self, drawn: int) -> None:
        """Compare the number of survivors with what the mask keeps.

        Raises:
            PacketError: If they differ.
        """
        if drawn != self.header.survivors:
            raise PacketError(
                f"the packet has {self.header.survivors} survivors, the mask {drawn}",
                Reason.POSITIONS,
            )

    def survivors(self) -> Survivors:
        """Return everything that the packet says.

        Raises:
            PacketError: If the mask keeps another number of entries.
        """
        where = positions_in(self.layout, self.mask)
        counts = tuple(where[spec.name].size for spec in self.layout.pruned)
        self.check_count(sum(counts))
        found = Survivors(
            layout=self.layout,
            mask=self.mask,
            numbers=self.numbers(),
            counts=counts,
            dense=self.dense(),
            raw=self.raw(),
            q=self.q,
        )
        found.__dict__["positions"] = where  # drawn once
        return found


def read_packet(packet: bytes, layout: Layout, header: Header | None = None) -> Packet:
    """Check a packet against a layout, and leave its numbers where they are.

    Args:
        packet: Bytes from a stranger.
        layout: The receiver's own layout; it bounds every size before anything is allocated.
        header: The packet's header, if it was read already.

    Raises:
        PacketError: If it is not a packet that an encoder writes for this layout.
    """
    header = header or read_header(packet)
    if header.fingerprint != layout.fingerprint:
        raise PacketError(
            f"the packet's layout fingerprint is {header.fingerprint.hex()!r}, "
            f"expected {layout.fingerprint.hex()!r}",
            Reason.LAYOUT,
        )
    parts = _take_apart(packet, layout, header)
    q = _read_q(header, parts.q)
    mask = read_mask(layout, header, parts.positions)
    largest = parts.coding.largest(parts.kept, header.survivors, header.exponent)
    _check_finite(largest, float(np.min(q, initial=1.0)))
    whole = sum(spec.numel for spec in layout.dense)
    _check_finite(parts.dense_coding.largest(parts.dense, whole, header.dense_exponent), 1.0)
    _read_raw(layout, parts.raw)
    return Packet(header, layout, mask, q, parts)


def _coding_name(code: int) -> str:
    for name, coding in CODINGS.items():
        if coding.code == code:
            return name
    known = ", ".join(f"{name} ({coding.code})" for name, coding in CODINGS.items())
    raise PacketError(f"unknown value coding {code}; this receiver knows {known}")


def _take_apart(packet: bytes, layout: Layout, header: Header) -> _Sections:
    """Cut a packet into sections of exactly the right sizes."""
    values = _coding_name(header.coding)
    coding, dense = CODINGS[values], dense_coding(values)
    pruned = sum(spec.numel for spec in layout.pruned)
    if header.survivors > pruned:
        raise PacketError(
            f"the packet has {header.survivors} survivors, the layout {pruned} entries",
            Reason.POSITIONS,
        )
    if header.q_count not in (1, len(layout.pruned)):
        raise PacketError(
            f"the packet's count of q is {header.q_count}, expected 1 or {len(layout.pruned)}",
            Reason.LAYOUT,
        )
    sizes = [
        0 if header.q_count == 1 else 4 * header.q_count,
        header.position_bytes,
        coding.size(header.survivors),
        dense.size(sum(spec.numel for spec in layout.dense)),
        sum(_raw_size(spec) for spec in layout.raw),
    ]
    if len(packet) != HEADER_BYTES + sum(sizes):
        raise PacketError(
            f"the packet has {len(packet)} bytes, its header says {HEADER_BYTES + sum(sizes)}",
            Reason.SIZE,
        )
    ends = np.cumsum([HEADER_BYTES, *sizes]).tolist()
    view = memoryview(packet)
    q, positions, kept, whole, raw = (view[start:end] for start, end in pairwise(ends))
    return _Sections(q, positions, kept, whole, raw, coding, dense)


def _read_q(header: Header, section: memoryview) -> Q:
    numbers = np.frombuffer(section, dtype="<f4").astype(np.float32)
    if header.q_count == 1:
        # What float32 rounds to 0 cannot divide.
        if not 0.0 < header.q <= 1.0 or np.float32(header.q) == 0.0:
            raise PacketError(f"the packet's q is {header.q}, not in (0, 1]", Reason.VALUES)
        return header.q
    if header.q or not ((numbers > 0.0) & (numbers <= 1.0)).all():
        raise PacketError("the packet holds a q that is not in (0, 1]", Reason.VALUES)
    return numbers


def _check_finite(largest: float, q: float) -> None:
    if not largest <= _LARGEST:
        raise PacketError("the packet holds NaN or infinite values", Reason.VALUES)
    if not largest / q <= _LARGEST:
        raise PacketError(
            "the packet holds values that are infinite once divided by q", Reason.VALUES
        )


def _raw_size(spec: TensorSpec) -> int:
    return spec.numel * _raw_dtype(spec).itemsize


def _raw_dtype(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")


def _read_raw(layout: Layout, section: memoryview) -> dict[str, NDArray[Any]]:
    arrays, start = {}, 0
    for spec in layout.raw:
        end = start + _raw_size(spec)
        flat = np.frombuffer(section[start:end], dtype=_raw_dtype(spec))
        if flat.dtype.kind == "b" and (flat.view(np.uint8) > 1).any():
            raise PacketError(f"{spec.name!r} holds bytes that are no booleans", Reason.VALUES)
        arrays[spec.name] = flat.astype(spec.dtype).reshape(spec.shape)
        start = end
    return arrays

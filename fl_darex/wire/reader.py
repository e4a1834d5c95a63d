"""A packet that was checked and is read part by part.

The server adds many clients block by block, so it must know that the numbers in a packet are sound
before it adds the first one, and must not hold the numbers of all clients decoded. One thing is
left to whoever draws a seeded mask, because nobody should draw it twice: whether it keeps as many
entries as the packet has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout, TensorSpec
from fl_darex.errors import PacketError, Reason
from fl_darex.positions import KINDS, Mask
from fl_darex.positions.mask import refuse
from fl_darex.shown import described
from fl_darex.survivors import Q, Survivors, split
from fl_darex.wire.codings import (
    CODINGS,
    FP16,
    Coding,
    Numbers,
    coding_of,
    dense_parts,
    dense_size,
    type_of,
)
from fl_darex.wire.header import HEADER_BYTES, Header, expect, read_header

_WIDE = ("float64", "float128")


@dataclass(frozen=True, eq=False)
class Packet:
    """A packet of which all is checked but how many entries its seeded mask keeps.

    Attributes:
        header: Its fixed fields.
        layout: The receiver's layout.
        mask: Where the survivors are.
        q: One number, or one for each pruned tensor.
    """

    __repr__ = described

    header: Header
    layout: Layout
    mask: Mask
    q: Q
    _coding: Coding
    _values: memoryview
    _dense: memoryview
    _raw: memoryview
    _last: dict[int, Numbers] = field(default_factory=dict)

    def numbers(self, start: int = 0, end: int | None = None, scale: float = 1.0) -> Numbers:
        """Return survivors ``start`` to ``end - 1`` times ``scale``, in canonical order."""
        found = self._read(start, self.header.survivors if end is None else end)
        if scale != 1.0:
            found *= found.dtype.type(scale)
        return found

    def halves(self) -> tuple[NDArray[np.uint16], np.float32] | None:
        """Return survivors as bits of float16 numbers, and what these are multiplied by.

        The bits are the packet's own memory. None: they are not written so.
        """
        exponent = self.header.exponent
        if self._coding is not FP16 or abs(exponent) >= 127:  # 2.0**-127 is none of float32's
            return None
        return np.frombuffer(self._values, dtype="<u2"), np.float32(2.0**-exponent)

    def _read(self, start: int, end: int) -> Numbers:
        """Return survivors; where a coding reads whole blocks, the last one is kept for the next.

        Readers come from front to back, with ends that are not those of blocks.
        """
        coding, count, exponent = self._coding, self.header.survivors, self.header.exponent
        block = getattr(coding, "block", 1)
        if block == 1 or start >= end:
            return coding.read(self._values, count, exponent, start, end)
        first = start // block * block
        known = self._last.get(first, np.empty(0, dtype=type_of(coding)))
        if end <= first + known.size:
            return known[start - first : end - first].copy()
        stop = min(count, -(-end // block) * block)
        new = coding.read(self._values, count, exponent, first + known.size, stop)
        found = np.concatenate([known, new])
        kept = (stop - 1) // block * block
        self._last.clear()
        self._last[kept] = found[kept - first :].copy()
        return found[start - first : end - first]

    def dense(self) -> dict[str, Numbers]:
        """Return each dense tensor's whole delta, flattened."""
        found: dict[str, Numbers] = {}
        parts = _dense_parts(self._dense, self._coding, self.layout, self.header)
        for data, coding, specs, count, exponent in parts:
            numbers = coding.read(data, count, exponent, 0, count)
            found |= split(numbers, {spec.name: spec.numel for spec in specs})
        return {spec.name: found[spec.name] for spec in self.layout.dense}

    def raw(self) -> dict[str, NDArray[Any]]:
        """Return the new values of each tensor that is not floating point."""
        arrays, start = {}, 0
        for spec in self.layout.raw:
            dtype = np.dtype(spec.dtype).newbyteorder("<")
            end = start + spec.numel * dtype.itemsize
            flat = np.frombuffer(self._raw[start:end], dtype=dtype)
            if dtype.kind == "b" and (flat.view(np.uint8) > 1).any():
                raise PacketError(f"{spec.name!r} holds bytes that are no booleans", Reason.VALUES)
            arrays[spec.name] = flat.astype(spec.dtype).reshape(spec.shape)
            start = end
        return arrays

    def survivors(self) -> Survivors:
        """Return everything that the packet says.

        Raises:
            PacketError: If the mask keeps another number of entries.
        """
        where = self.mask.in_layout(self.layout)
        counts = tuple(where[spec.name].size for spec in self.layout.pruned)
        if sum(counts) != self.header.survivors:
            refuse(f"has {self.header.survivors} survivors, the mask {sum(counts)}")
        found = Survivors(
            self.layout, self.mask, self.numbers(), counts, self.dense(), self.raw(), self.q
        )
        found.__dict__["positions"] = where  # drawn once
        return found


def read_packet(
    packet: bytes, layout: Layout, header: Header | None = None, told: Mask | None = None
) -> Packet:
    """Check a packet against a layout, and leave its numbers where they are.

    Args:
        packet: Bytes from a stranger.
        layout: The receiver's own layout; it bounds every size before anything is allocated.
        header: The packet's header, if it was read already.
        told: The mask that its sender was told to use, which bounds how many survivors there are
            before positions are read; None: nothing is known of it.

    Raises:
        PacketError: If it is not a packet that an encoder writes for this layout.
    """
    header = header or read_header(packet)
    expect("layout fingerprint", header.fingerprint.hex(), layout.fingerprint.hex(), Reason.LAYOUT)
    coding = coding_of(header.coding)
    if coding is None:
        known = ", ".join(f"{name} ({coding.code})" for name, coding in CODINGS.items())
        raise PacketError(f"unknown value coding {header.coding}; this receiver knows {known}")
    sections = _take_apart(packet, layout, header, coding)
    fewest, most = told.bounds(layout) if told else (0, header.survivors)
    if not fewest <= header.survivors <= most:
        refuse(f"has {header.survivors} survivors, the mask {fewest} to {most}")
    q = _read_q(header, sections[0])
    mask = KINDS[header.mask_kind].read(header, sections[1], layout, header.survivors)
    _, _, values, dense, raw = sections
    largest = coding.largest(values, header.survivors, header.exponent)
    _check_finite(largest, float(np.min(q, initial=1.0)), room_of(coding, layout.pruned))
    for data, beside, specs, count, exponent in _dense_parts(dense, coding, layout, header):
        _check_finite(beside.largest(data, count, exponent), 1.0, room_of(beside, specs))
    opened = Packet(header, layout, mask, q, coding, values, dense, raw)
    opened.raw()
    return opened


def _take_apart(packet: bytes, layout: Layout, header: Header, coding: Coding) -> list[memoryview]:
    """Cut a packet into q, positions, values, dense and raw, of exactly the right sizes."""
    pruned = sum(spec.numel for spec in layout.pruned)
    if header.survivors > pruned:
        refuse(f"has {header.survivors} survivors, the layout {pruned} entries")
    if header.q_count not in (1, len(layout.pruned)):
        raise PacketError(
            f"the packet's count of q is {header.q_count}, expected 1 or {len(layout.pruned)}",
            Reason.LAYOUT,
        )
    sizes = [
        HEADER_BYTES,
        0 if header.q_count == 1 else 4 * header.q_count,
        header.position_bytes,
        coding.size(header.survivors),
        dense_size(coding.name, layout.dense),
        sum(spec.numel * np.dtype(spec.dtype).itemsize for spec in layout.raw),
    ]
    if len(packet) != sum(sizes):
        refuse(f"has {len(packet)} bytes, its header says {sum(sizes)}", Reason.SIZE)
    view = memoryview(packet)
    return [view[start:end] for start, end in pairwise(np.cumsum(sizes).tolist())]


def _dense_parts(
    section: memoryview, coding: Coding, layout: Layout, header: Header
) -> Iterator[tuple[memoryview, Coding, Sequence[TensorSpec], int, int]]:
    """Yield the runs of whole tensors: bytes, coding, tensors, how many numbers, exponent."""
    start, exponent = 0, header.dense_exponent
    for beside, specs in dense_parts(coding.name, layout.dense):
        count = sum(spec.numel for spec in specs)
        end = start + beside.size(count)
        yield section[start:end], beside, specs, count, exponent
        start, exponent = end, 0


def _read_q(header: Header, section: memoryview) -> Q:
    numbers = np.frombuffer(section, dtype="<f4").astype(np.float32)
    if header.q_count == 1:
        # What float32 rounds to 0 cannot divide.
        if not 0.0 < header.q <= 1.0 or np.float32(header.q) == 0.0:
            raise PacketError(f"the packet's q is {header.q}, not in (0, 1]", Reason.VALUES)
        return header.q
    if header.q or not ((numbers > 0.0) & (numbers <= 1.0)).all():
        refuse("holds a q that is not in (0, 1]", Reason.VALUES)
    return numbers


def room_of(coding: Coding, specs: Iterable[TensorSpec]) -> np.dtype[Any]:
    """Return the type in which all that a packet says of some tensors has to be finite.

    It is the coding's, or float32 unless all of them are wider: what only float64 can hold would
    make an infinite entry of a model in float32, which costs a round.
    """
    wide = all(spec.dtype in _WIDE for spec in specs)
    return type_of(coding) if wide else np.dtype(np.float32)


def _check_finite(largest: float, q: float, room: np.dtype[Any]) -> None:
    most = float(np.finfo(room).max)
    if not largest <= most:
        refuse("holds NaN or infinite values", Reason.VALUES)
    if not largest / q <= most:
        refuse("holds values that are infinite once divided by q", Reason.VALUES)

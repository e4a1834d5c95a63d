"""How a mask stands in a packet: four numbers in the header, and the positions section."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn, TypedDict

import numpy as np

from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, Mask, SeededMask, StructuredMask, UnionMask
from fl_darex.wire.header import Header
from fl_darex.wire.listed import ListedPositions, write_positions

SERVER = -1
"""The slot of what is not one client's: a shared mask, or the server's own."""


class MaskFields(TypedDict):
    """The header's fields that say where survivors are."""

    method: str
    generator: str
    seed: int
    round: int
    slot: int
    kept: int


def mask_fields(mask: Mask) -> MaskFields:
    """Return the header's fields for a mask."""
    if isinstance(mask, ListedMask):
        return MaskFields(
            method="listed",
            generator="none",
            seed=mask.seed,
            round=mask.round,
            slot=mask.slot,
            kept=0,
        )
    union, structured = isinstance(mask, UnionMask), isinstance(mask, StructuredMask)
    first = mask
    if isinstance(mask, UnionMask):
        first = mask.members[0]
    elif isinstance(mask, StructuredMask):
        first = mask.drawn
    if not isinstance(first, SeededMask):
        raise TypeError(f"{type(mask).__name__} is not a mask that a packet can carry")
    return MaskFields(
        method="union" if union else "structured" if structured else "seeded",
        generator="splitmix64-exact" if first.exact else "splitmix64",
        seed=first.seed,
        round=first.round,
        slot=SERVER if union else first.slot,
        kept=first.kept,
    )


def write_mask(layout: Layout, mask: Mask) -> bytes:
    """Return the positions section: Rice-coded gaps, slots, columns kept, or nothing."""
    if isinstance(mask, ListedMask):
        return write_positions(layout, mask.where)
    if isinstance(mask, UnionMask):
        return np.array([member.slot for member in mask.members], dtype="<i8").tobytes()
    return mask.columns.to_bytes(8, "little") if isinstance(mask, StructuredMask) else b""


def read_mask(layout: Layout, header: Header, section: memoryview) -> Mask:
    """Return the mask that a packet describes; listed positions are checked.

    Raises:
        PacketError: If the fields do not fit each other or the layout.
    """
    if header.method == "listed":
        if header.generator != "none" or header.kept:
            _refuse("lists positions and names a random generator or a keep threshold")
        where = ListedPositions(layout, section, header.survivors)
        return ListedMask(where, header.seed, header.round, header.slot)
    if header.generator == "none" or not 0 < header.kept <= ONE:
        _refuse(f"has the keep threshold {header.kept} with the generator {header.generator!r}")
    drawn = SeededMask(
        header.seed, header.round, header.slot, header.kept, header.generator != "splitmix64"
    )
    if header.method == "seeded":
        if len(section):
            _refuse("lists positions although they follow from its seed")
        return drawn
    if header.method == "structured":
        return _structured(drawn, section)
    return UnionMask(_members(drawn, section))


def _structured(drawn: SeededMask, section: memoryview) -> StructuredMask:
    columns = int.from_bytes(section, "little")
    if len(section) != 8 or not drawn.kept <= columns <= ONE:
        _refuse(f"keeps columns by {bytes(section[:8]).hex()!r}, which is no share of them")
    return StructuredMask(drawn, columns)


def _members(drawn: SeededMask, section: memoryview) -> tuple[SeededMask, ...]:
    if len(section) % 8 or not len(section):
        _refuse(f"lists slots in {len(section)} bytes")
    slots = np.frombuffer(section, dtype="<i8").tolist()
    if drawn.slot != SERVER or slots[0] < SERVER or any(np.diff(slots) <= 0):
        _refuse("lists slots that do not rise")
    return tuple(replace(drawn, slot=slot) for slot in slots)


def _refuse(what: str) -> NoReturn:
    raise PacketError(f"the packet {what}", Reason.POSITIONS)

"""What a delta's file says of itself, as JSON, and how what a stranger says is checked.

``docs/wire-format.md``, section 11, is the specification.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fl_darex.delta import Role, TensorSpec
from fl_darex.deltas.checkpoints import ADAPTER, MODEL, MOST_BYTES, is_small_file
from fl_darex.errors import PacketError, Reason
from fl_darex.files.formats import TYPES, bytes_of
from fl_darex.wire.json_notes import is_hex

MOST_ENTRIES = 1 << 36
"""Of a tensor: more than any has, and few enough to be counted through."""

_MOST_AXES, _MOST_ROWS, _MOST_PACKETS = 32, 1 << 22, 1 << 20
_ROLES = ("pruned", "dense", "raw", "tied", "same")
_IN_PACKETS = ("pruned", "dense", "raw")

Rules = dict[str, Callable[[Any], bool]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the fine-tuned model.

    Attributes:
        name: Its name there.
        dtype: Its type there, which it is restored to.
        shape: Its shape.
        role: ``pruned``, ``dense`` or ``raw``: a part of its change, its whole change or its new
            values are in a packet; ``tied``: it equals another tensor of the model; ``same``: it
            equals the base's.
        base: The base's tensor that it is a change of; None: it is not one, and its change is one
            from zeros.
        packet: Number of the packet that it is in.
        kept: How many of its entries survive, where it is pruned.
        source: The tensor that a tied one equals.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    base: str | None = None
    packet: int = -1
    kept: int = 0
    source: str = ""

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes when it is restored."""
        return bytes_of(self.dtype, self.shape)

    @property
    def spec(self) -> TensorSpec:
        """Its place in the layout of its packet."""
        role: Role = "pruned" if self.role == "pruned" else "raw" if self.role == "raw" else "dense"
        return TensorSpec(self.name, self.shape, self.dtype, role)

    def fields(self) -> dict[str, Any]:
        """Return what the text says; what can be left out is left out."""
        told: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": self.shape}
        told["role"] = self.role
        if self.role in _IN_PACKETS:
            told["packet"] = self.packet
        if self.role == "pruned":
            told["kept"] = self.kept
        if self.role == "tied":
            told["source"] = self.source
        elif self.role != "raw" and self.base != self.name:
            told["base"] = self.base
        return told


@dataclass(frozen=True, kw_only=True)
class File:
    """A small file that goes with the model.

    Attributes:
        path: Where, inside the model's folder.
        size: Its bytes.
        packed: Bytes that it takes here, compressed; 0: it is the base's, and not here.
        digest: Of its content (`fl_darex.deltas.checkpoints.digest_of`).
    """

    path: str
    size: int
    packed: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a delta's file says of itself.

    Attributes:
        base: Version of the base's tensors that are needed, 8 bytes.
        rows: The tensors of the fine-tuned model, sorted by name.
        packets: The packets' lengths in bytes.
        files: What goes with the model.
        weights: What the file of its tensors is called.
        notes: Words for people, which nothing depends on.
    """

    base: bytes
    rows: tuple[Row, ...]
    packets: tuple[int, ...] = ()
    files: tuple[File, ...] = ()
    weights: str = MODEL
    notes: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> bytes:
        """Return it as JSON."""
        told = {
            "base": self.base.hex(),
            "weights": self.weights,
            "notes": dict(self.notes),
            "packets": self.packets,
            "files": [vars(file) for file in self.files],
            "tensors": [row.fields() for row in self.rows],
        }
        return json.dumps(told, separators=(",", ":")).encode()


def read_header(text: bytes) -> Header:
    """Return what a text from a stranger says.

    Raises:
        PacketError: If it is no text that `Header.text` writes.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"has a header that is no JSON: {error}")
    keys = ("base", "weights", "notes", "packets", "files", "tensors")
    given = _fields(told, "header", dict.fromkeys(keys, _anything))
    _check(is_hex(given["base"], 16), "base", given["base"], "16 hexadecimal digits")
    _check(given["weights"] in (MODEL, ADAPTER), "weights", given["weights"], f"{MODEL}, {ADAPTER}")
    lengths = _listed(given["packets"], "packets", _MOST_PACKETS)
    for length in lengths:
        _check(_is_count(length, 1 << 62), "packets", length, "numbers of bytes")
    notes = given["notes"]
    plain = isinstance(notes, dict) and all(isinstance(note, str) for note in notes.values())
    _check(plain, "notes", type(notes).__name__, "texts by name")
    files = tuple(_file(one) for one in _listed(given["files"], "files", 10_000))
    rows = tuple(_row(one) for one in _listed(given["tensors"], "tensors", _MOST_ROWS))
    header = Header(
        base=bytes.fromhex(given["base"]),
        rows=rows,
        packets=tuple(lengths),
        files=files,
        weights=given["weights"],
        notes=notes,
    )
    _check_together(header)
    return header


def by_packet(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Return the rows of each packet."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.packet >= 0:
            found[row.packet].append(row)
    return dict(found)


def refuse(what: str, reason: Reason = Reason.FORMAT) -> NoReturn:
    """Raise the error of a file that makes no sense."""
    raise PacketError(f"the file {what}", reason)


def _check_together(header: Header) -> None:
    """Refuse rows and files that contradict each other."""
    names = [row.name for row in header.rows]
    if names != sorted(set(names)):
        refuse("lists tensors twice, or not sorted by name", Reason.LAYOUT)
    packets = by_packet(header.rows)
    if set(packets) != set(range(len(header.packets))):
        refuse("names packets that are not there, or has some without tensors", Reason.LAYOUT)
    for rows in packets.values():
        if sum(row.numel for row in rows) > 4 * MOST_ENTRIES:
            refuse("has a packet of more entries than there can be", Reason.LAYOUT)
    known = {row.name: row for row in header.rows}
    for row in header.rows:
        if row.role == "tied":
            source = known.get(row.source)
            if source is None or source.role == "tied" or source.dtype != row.dtype:
                refuse(f"ties {row.name!r} to {row.source!r}, which cannot be", Reason.LAYOUT)
            if source.shape != row.shape:
                refuse(f"ties {row.name!r} to a tensor of another shape", Reason.LAYOUT)
    needed = [row.base for row in header.rows if row.base is not None]
    if len(set(needed)) != len(needed):
        refuse("takes a tensor of the base twice", Reason.LAYOUT)
    paths = [file.path for file in header.files]
    if len(set(paths)) != len(paths) or sum(file.size for file in header.files) > MOST_BYTES:
        refuse("lists a file twice, or more than 64 MiB of files")


def _row(told: Any) -> Row:
    role = str(told.get("role")) if isinstance(told, dict) else ""
    _check(role in _ROLES, "role", role, ", ".join(_ROLES))
    rules = _RULES | _OF_ROLE[role]
    if role in ("pruned", "dense", "same") and "base" in told:
        rules["base"] = lambda value: isinstance(value, str) or (value is None and role == "dense")
    given = _fields(told, "tensor", rules)
    name, dtype = given["name"], given["dtype"]
    if role != "same" and ("float" in dtype) == (role == "raw"):
        refuse(f"has {name!r} of type {dtype} as {role}", Reason.LAYOUT)
    base = {"base": None if role in ("raw", "tied") else name}
    row = Row(**{**base, **given, "shape": tuple(given["shape"])})
    if row.kept > row.numel:
        refuse(f"keeps {row.kept} of the {row.numel} entries of {name!r}", Reason.LAYOUT)
    return row


def _file(told: Any) -> File:
    def is_size(value: Any) -> bool:
        return _is_count(value, MOST_BYTES + 1)

    rules: Rules = {
        "path": lambda value: isinstance(value, str) and is_small_file(value),
        "size": is_size,
        "packed": is_size,
        "digest": lambda value: is_hex(value, 32),
    }
    return File(**_fields(told, "file", rules))


def _fields(told: Any, what: str, rules: Rules) -> dict[str, Any]:
    """Return the fields of an object: all that there are rules for, and no other."""
    if not isinstance(told, dict):
        refuse(f"has a {what} that is no object")
    if strange := sorted(set(told).symmetric_difference(rules)):
        refuse(f"has a {what} with {strange[:5]} missing or unknown")
    for name, holds in rules.items():
        _check(holds(told[name]), name, told[name], f"what a {what} can have")
    return dict(told)


def _listed(value: Any, name: str, most: int) -> list[Any]:
    _check(isinstance(value, list) and len(value) <= most, name, "...", f"a list, up to {most}")
    found: list[Any] = value
    return found


def _check(holds: bool, name: str, value: Any, words: str) -> None:
    if not holds:
        shown = repr(value)[:100] if isinstance(value, str | int | float) else type(value).__name__
        refuse(f"says {name} = {shown}; allowed: {words}")


def _anything(value: Any) -> bool:
    return True


def _is_count(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def _is_shape(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        return False
    if not all(_is_count(size, MOST_ENTRIES + 1) for size in value):
        return False
    return math.prod(value) <= MOST_ENTRIES


_RULES: Rules = {
    "name": lambda value: isinstance(value, str) and value not in ("", "__metadata__"),
    "dtype": lambda value: value in TYPES,
    "shape": _is_shape,
    "role": _anything,
}
_PACKET: Rules = {"packet": lambda value: _is_count(value, _MOST_PACKETS)}
_OF_ROLE: dict[str, Rules] = {
    "pruned": {**_PACKET, "kept": lambda value: _is_count(value, MOST_ENTRIES + 1)},
    "dense": _PACKET,
    "raw": _PACKET,
    "tied": {"source": lambda value: isinstance(value, str)},
    "same": {},
}

"""How what a stranger's file says of itself is checked, before anything is done with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from fl_darex.deltas.checkpoints import (
    ADAPTER,
    ADAPTER_CONFIG,
    MODEL,
    MOST_BYTES,
    is_small_file,
)
from fl_darex.deltas.header import ROLES, File, Header, Row, by_packet, refuse
from fl_darex.errors import Reason
from fl_darex.files.formats import TYPES
from fl_darex.wire.json_notes import is_hex

MOST_ENTRIES = 1 << 36
"""Of a tensor: more than any has, and few enough to be counted through."""

_MOST_AXES, _MOST_ROWS, _MOST_PACKETS = 32, 1 << 22, 1 << 20

Rules = dict[str, Callable[[Any], bool]]


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
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    misled = header.weights == MODEL and any(path.endswith(ADAPTER_CONFIG) for path in paths)
    if misled or folders & set(paths):
        refuse("has an adapter's configuration for a model, or a file that is a folder, too")
    if len(set(paths)) != len(paths) or sum(file.size for file in header.files) > MOST_BYTES:
        refuse("lists a file twice, or more than 64 MiB of files")


def _row(told: Any) -> Row:
    role = str(told.get("role")) if isinstance(told, dict) else ""
    _check(role in ROLES, "role", role, ", ".join(ROLES))
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

"""Settings that ride in a message's configuration as one JSON text, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fl_darex.errors import PacketError, Reason

Rules = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""For each field what it must be, in words, and how to tell."""

WIRE_VERSION = 1

HEX = frozenset("0123456789abcdef")


def dump(fields: Mapping[str, Any]) -> str:
    """Return fields as compact JSON."""
    return json.dumps(fields, separators=(",", ":"))


def load(text: Any, rules: Rules, what: str) -> dict[str, Any]:
    """Return the fields of a JSON text.

    Args:
        text: From a message.
        rules: What must be there; nothing else may be.
        what: What these settings are called in errors.

    Raises:
        PacketError: If they are not settings that this version understands.
    """
    try:
        fields = json.loads(text)
        version = fields["version"]
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise PacketError(f"{what} are not readable: {error}", Reason.TERMS) from None
    if version != WIRE_VERSION or type(version) is not int:
        raise PacketError(
            f"{what} are of wire version {version}, this side speaks {WIRE_VERSION}; "
            "install the same fl-darex version on both",
            Reason.TERMS,
        )
    if odd := set(fields).symmetric_difference(rules):
        raise PacketError(
            f"{what} are not readable: {sorted(odd)} missing or unknown", Reason.TERMS
        )
    for name, (words, holds) in rules.items():
        if not holds(fields[name]):
            raise PacketError(f"{name} in {what} is {fields[name]!r}, not {words}", Reason.TERMS)
    found: dict[str, Any] = fields
    return found


def is_hex(value: Any, digits: int) -> bool:
    """Return whether a value is text of so many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and set(value) <= HEX


def is_names(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)

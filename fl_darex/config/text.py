"""Configuration as text: TOML tables, overrides of a command line, and scalars as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from fl_darex.errors import ConfigError

Scalar = str | int | float | bool
_TEXT_OR_NUMBER = (
    *("compress.q", "compress.downlink-p", "compress.dense-below"),
    "train.dense-lr",
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested TOML tables as dotted keys; an empty table stays, so that it can be refused.

    Raises:
        ConfigError: If a key is given twice, as ``"a.b" = 1`` and in a table ``[a]``.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        more = flatten(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
        if twice := set(flat) & set(more):
            raise ConfigError(f"{min(twice)} is given twice; keep one of them")
        flat |= more
    return flat


def parse_override(item: str, known: Mapping[str, Scalar]) -> tuple[str, Any]:
    """Split ``key=value``; the value is read as TOML, then as a number, then as plain text.

    Args:
        item: What somebody wrote.
        known: Every key with its default: where that is text, the value is text.

    Raises:
        ConfigError: If there is no key or no ``=``.
    """
    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{item!r} is not an override; write key=value, e.g. compress.p=0.999")
    key, text = key.strip(), text.strip()
    value = _read_value(text)
    if isinstance(known.get(key), str) and not isinstance(value, str):
        # A folder may be called 2024; few keys take both.
        value = text if key not in _TEXT_OR_NUMBER else value
    return key, value


def _read_value(text: str) -> Any:
    for read in (_read_toml, float):  # TOML itself has no ".999"
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def _read_toml(text: str) -> Any:
    found = tomllib.loads(f"v = {text}")
    if list(found) != ["v"]:
        raise ValueError("more than one value")
    return found["v"]


def toml_scalar(value: Scalar) -> str:
    """Return a value as TOML text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if " " <= c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'

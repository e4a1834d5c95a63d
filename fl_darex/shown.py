"""What a prompt, a debugger or a log shows of an object that holds much: how much, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_FEW = 4


def described(self: object) -> str:
    """Return a dataclass as one short line: the ``__repr__`` of those that hold arrays.

    Arrays are their type and shape, long collections their length, functions and private fields
    are left out.
    """
    named = ((one.name, getattr(self, one.name)) for one in fields(self))  # type: ignore[arg-type]
    shown = [f"{k}={_short(v)}" for k, v in named if not (k.startswith("_") or callable(v))]
    return f"{type(self).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, bytes | bytearray | memoryview):
        return value.hex() if len(value) <= 2 * _FEW else f"<{len(value):,} bytes>"
    if isinstance(value, Mapping | list | tuple):
        if len(value) > _FEW:
            return f"<{len(value):,} {'names' if isinstance(value, Mapping) else 'entries'}>"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) + "}"
        return "[" + ", ".join(map(_short, value)) + "]"
    return described(value) if is_dataclass(value) else repr(value)


def counted(number: int, thing: str) -> str:
    """Return a number of things in words: one client, two clients."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")

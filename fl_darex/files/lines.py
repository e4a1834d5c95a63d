"""Logs of one JSON value a line: strict JSON, and no line that is there in part."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON (RFC 8259), which has no NaN and no infinity: they become null.

    Args:
        value: Mappings with text as keys, lists, tuples, text, numbers, booleans and None.
        indent: As for `json.dumps`.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def append_line(path: Path, text: str) -> None:
    """Append a line to a file in one write, so that others see all of it or nothing.

    Args:
        path: The file; it is made if it is not there.
        text: The line, without its end.

    Raises:
        OSError: If it cannot be written whole; the file is then as it was before.
    """
    data = f"{text}\n".encode()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o666)
    try:
        before = os.fstat(file).st_size
        written = os.write(file, data)
        try:
            while written < len(data):  # a disk that is nearly full takes a part
                written += os.write(file, data[written:])
        except BaseException:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)


def kept_size(path: Path) -> int:
    """Return the bytes of a file, once the disk has them all."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def cut(path: Path, size: int) -> None:
    """Take away what a file has beyond a size, at once; it is made if nothing is to be kept.

    Raises:
        OSError: If it is shorter, or cannot be written.
    """
    if not size:
        path.touch()
    if (found := path.stat().st_size) < size:
        raise OSError(f"{str(path)!r} has {found} bytes, and had {size}")
    os.truncate(path, size)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""Where files of ours lie outside a run folder, and how they are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """Return the folder for what can be made again; it need not exist.

    ``FL_DAREX_CACHE`` where it is set, else ``fl-darex`` in ``XDG_CACHE_HOME``, else
    ``~/.cache/fl-darex``.
    """
    if own := os.environ.get("FL_DAREX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "fl-darex"


def write_atomically(path: Path, parts: Iterable[Any]) -> None:
    """Write a file so that others see the old one or the whole new one.

    Of several writers the last one wins. A process that is killed leaves a file whose name starts
    with the final one and ends with ``.part``, and nobody reads that.

    Args:
        path: The file; its folder must exist.
        parts: What is written, one after the other: bytes or contiguous arrays.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

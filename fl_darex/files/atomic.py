"""Where files of ours lie outside a run folder, and how all of them are written: whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PRIVATE = 0o600
"""The mode of a file that only its owner may read."""


def cache_root() -> Path:
    """Return the folder for what can be made again; it need not exist.

    ``FL_DAREX_CACHE`` where it is set, else ``fl-darex`` in ``XDG_CACHE_HOME``, else
    ``~/.cache/fl-darex``.
    """
    if own := os.environ.get("FL_DAREX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "fl-darex"


@contextmanager
def open_atomically(path: Path, mode: int = 0o666) -> Iterator[IO[Any]]:
    """Open a file for writing that others see whole, when the block is left, or not at all.

    Until then they see the old one, and for ever if the block raises. Of several writers the last
    one wins. A process that is killed leaves a file whose name starts with the final one and ends
    with ``.part``, and nobody reads that.

    Args:
        path: The file; its folder must exist.
        mode: Who may do what with it, as `os.open` takes it: the process's umask is subtracted.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, parts: Iterable[Any], mode: int = 0o666) -> None:
    """Write bytes or contiguous arrays, one after the other, as `open_atomically` does."""
    with open_atomically(path, mode) as file:
        for part in parts:
            file.write(part)


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are, as `open_atomically` does."""
    write_atomically(path, [text.encode()])

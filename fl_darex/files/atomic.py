"""Where files of ours lie outside a run folder, and how all of them are written: whole."""

from __future__ import annotations

import glob
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PRIVATE = 0o600
"""The mode of a file that only its owner may read."""


UNFINISHED_SECONDS = 3600.0
"""After so long without a write to it, nobody is at work on an unfinished file any more."""


def cache_root() -> Path:
    """Return the folder for what can be made again; it need not exist.

    ``FL_DAREX_CACHE`` where it is set, else ``fl-darex`` in ``XDG_CACHE_HOME``, else
    ``~/.cache/fl-darex``.

    Raises:
        FileNotFoundError: If there is no home folder to begin from, as in a container whose user
            is in no list of users: whoever can do without a cache takes it for one that cannot be
            written.
    """
    own = os.environ.get("FL_DAREX_CACHE")
    folder = own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fl-darex")
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # no HOME, and no such user
        raise FileNotFoundError(
            f"{folder!r} begins from a home folder, and there is none; set FL_DAREX_CACHE to a "
            "folder that can be written"
        ) from None


@contextmanager
def open_atomically(path: Path, mode: int = 0o666, *, durable: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing that others see whole, when the block is left, or not at all.

    Until then they see the old one, and for ever if the block raises. Of several writers the last
    one wins. A process that is killed leaves a file whose name starts with the final one and ends
    with ``.part``; nobody reads that, and after `UNFINISHED_SECONDS` the next writer removes it.

    Args:
        path: The file; its folder must exist.
        mode: Who may do what with it, as `os.open` takes it: the process's umask is subtracted.
        durable: Whether it is whole, the old or the new one, even after the power fails; to wait
            for the disk takes time.

    Raises:
        OSError: If it cannot be written, or a folder, a pipe or a device is in its place; nothing
            is left behind.
    """
    refuse_no_file(path)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(fresh, path)
        if durable:
            _keep_names(path.parent)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what has to be told
            fresh.unlink(missing_ok=True)
        raise
    remove_unfinished(path.parent, path.name)


def _keep_names(folder: Path) -> None:
    """Wait until the disk has the names in a folder; some systems cannot be asked to."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def refuse_no_file(path: Path) -> None:
    """Raise `OSError` if something is there that is no file: a pipe would be waited on for ever."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(f"{str(path)!r} is there and is no file; remove it")


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what killed processes left half written in a folder, for one file's name or all."""
    pattern = f"{glob.escape(name)}.*.part" if name else "*.part"
    oldest = time.time() - UNFINISHED_SECONDS
    for part in folder.glob(pattern):
        with suppress(OSError):  # another process was faster, or it is not ours
            if part.lstat().st_mtime < oldest:
                part.unlink()


def write_atomically(path: Path, parts: Iterable[Any], mode: int = 0o666) -> None:
    """Write bytes or contiguous arrays, one after the other, as `open_atomically` does."""
    with open_atomically(path, mode) as file:
        for part in parts:
            file.write(part)


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are, as `open_atomically` does."""
    write_atomically(path, [text.encode()])


def write_text_anyway(path: Path, text: str) -> None:
    """Write text as `write_text_atomically` does; on a full disk, over the old file itself.

    For the last word about something, when there is no space for a second file beside the first.

    Raises:
        OSError: If there is no space even so; the old text is then still there.
    """
    try:
        write_text_atomically(path, text)
    except OSError:
        if not path.is_file():
            raise
        old, new = path.read_bytes(), text.encode()
        with open(path, "r+b", buffering=0) as file:
            if file.write(new) == len(new):
                file.truncate()
                return
            file.seek(0)
            file.write(old)  # it was there, so it fits
            file.truncate()
        raise

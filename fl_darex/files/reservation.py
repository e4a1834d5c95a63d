"""A folder that belongs to one process alone, however many ask for it at once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TRIES = 20
"""How often a parent is made again that others give back at the same moment."""


def reserve(folder: Path, marker: str, text: str, tries: int = _TRIES) -> list[Path] | None:
    """Make a folder, or take an empty one, by a file in it that only one process can create.

    Args:
        folder: The folder; its parents are made, too.
        marker: The name of the file.
        text: What the file holds.
        tries: How often to begin again where others remove a parent meanwhile.

    Returns:
        The folders that were made for it, innermost first, as `give_back` takes them; None if
        something else is in its place, or in it.

    Raises:
        OSError: If the folder or the file cannot be written; nothing is left behind.
    """
    made: list[Path] = []
    try:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        for one in reversed(missing):
            with suppress(FileExistsError):  # another process is faster, and the file decides
                one.mkdir()
                made.insert(0, one)
        if not folder.is_dir() or any(folder.iterdir()):
            return None
        file = os.open(folder / marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    except FileNotFoundError:
        if not tries:
            raise
        return reserve(folder, marker, text, tries - 1)
    except OSError:
        give_back(folder, [], made)
        raise
    try:
        with open(file, "w", encoding="utf-8", newline="") as opened:
            opened.write(text)
    except BaseException:
        give_back(folder, [marker], made)
        raise
    return made


def give_back(folder: Path, files: Iterable[str], made: Iterable[Path]) -> None:
    """Remove a reserved folder's own files, and the folders that were made if nothing is in them.

    Args:
        folder: The folder.
        files: Names of the files that whoever reserved it has written.
        made: What `reserve` returned.
    """
    for path in (folder / name for name in files):
        with suppress(OSError):
            path.unlink()
    for path in made:
        with suppress(OSError):  # another process has begun to use it
            path.rmdir()

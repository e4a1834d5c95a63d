"""Models on disk, by version, shared by all clients of a machine.

A deployment starts a new process for every message, and a simulation runs many clients in a few
processes; both find here what a client was sent before. Files are written beside their place and
moved there whole, so any number of processes may write at once and be killed at any moment;
whoever reads a file that is damaged all the same takes it for one that is not there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.files.atomic import (
    PRIVATE,
    cache_root,
    refuse_no_file,
    remove_unfinished,
    write_atomically,
)
from fl_darex.wire.json_notes import is_hex

KEPT = 2
"""Versions of a run that stay: the one that clients train and the one before it."""

FORGOTTEN_DAYS = 7
"""Days after which what a run left here is removed by the next one."""

# magic, CRC-32 of the version and all that follows these two, length of the table
_PREFIX = struct.Struct("<8sQQ")
_MAGIC = b"DARXMDL2"
_ALIGN = 64

_NOWHERE = Path(os.devnull, "fl-darex")  # below a device there is nothing

Arrays = dict[str, NDArray[Any]]


class ModelCache:
    """The versions of one run's model.

    Where no folder can be had, it is one that holds nothing and cannot be written.

    Args:
        run: The run's own 16 hexadecimal digits.
        root: The folder for all runs; default ``models`` in `fl_darex.files.atomic.cache_root`.

    Raises:
        ValueError: If ``run`` is not 16 hexadecimal digits; it comes from a message.
    """

    def __init__(self, run: str, root: Path | None = None) -> None:
        if not is_hex(run, 16):
            raise ValueError(f"a run is named by 16 hexadecimal digits, got {run!r}")
        self._homeless: OSError | None = None
        try:
            self._root = root or cache_root() / "models"
        except OSError as error:
            self._root, self._homeless = _NOWHERE, error
        self.folder = self._root / run

    def load(self, version: bytes) -> Arrays | None:
        """Return a version's tensors, read-only; None where it is missing or damaged."""
        path = self._path(version)
        with suppress(OSError):
            if not path.is_file():  # to open a pipe is to wait for ever
                return None
            try:
                return _read(np.memmap(path, dtype=np.uint8, mode="r"), version)
            except (ValueError, KeyError, TypeError, struct.error):
                path.unlink()  # damaged; an empty file is a ValueError of np.memmap
        return None

    def store(self, version: bytes, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a version, if it is not there, and forget all but the `KEPT` newest.

        Raises:
            OSError: If the disk is full, the folder cannot be written, or something that is no
                file is in the version's place.
        """
        path = self._path(version)
        self._check(path)
        if path.exists():
            return
        if not self.folder.exists():
            oldest = time.time() - FORGOTTEN_DAYS * 86400
            for run in self._root.glob("*/"):
                if is_hex(run.name, 16) and _modified(run) < oldest:
                    shutil.rmtree(run, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _parts(arrays, version), PRIVATE)
        remove_unfinished(self.folder)
        for old in sorted(self.folder.glob("*.model"), key=_modified)[:-KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".held").unlink(missing_ok=True)

    def held_by(self, node: int) -> bytes | None:
        """Return the version that a client was brought to last, of those that are still here."""
        found: list[tuple[int, bytes]] = []
        for path in self.folder.glob("*.held"):
            with suppress(OSError, ValueError):
                version = bytes.fromhex(path.stem)
                if path.is_file() and self._path(version).is_file():
                    lines = path.read_bytes()
                    start = lines.rindex(f"\n{node} ".encode()) + 1
                    _, when = lines[start : lines.index(b"\n", start)].split()
                    found.append((int(when), version))
        return max(found)[1] if found else None

    def hold(self, node: int, version: bytes) -> None:
        """Remember which version a client was brought to.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.folder / f"{version.hex()}.held"
        self._check(path)
        # Thousands of clients on a machine are brought to a version: a line each, in one file. A
        # line is written whole, whoever writes beside it; half of one, after a full disk, is none.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        file = os.open(path, flags, PRIVATE)
        try:
            os.write(file, f"\n{node} {time.time_ns()}\n".encode())
        finally:
            os.close(file)

    def remove(self) -> None:
        """Remove everything of this run that can be removed; never an error."""
        if self._homeless is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, path: Path) -> None:
        """Refuse to write where there is no folder, or something else than a file."""
        if self._homeless is not None:
            raise self._homeless
        refuse_no_file(path)

    def _path(self, version: bytes) -> Path:
        return self.folder / f"{version.hex()}.model"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process removed it
        return 0.0


def _parts(arrays: Mapping[str, NDArray[Any]], version: bytes) -> list[Any]:
    """Return what a file consists of: a prefix, a table, and the tensors, aligned.

    The checksum says the version, too: under another one's name the file is a damaged one.
    """
    table: list[Any] = []
    body: list[Any] = []
    end = 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padding = bytes(-data.size % _ALIGN)
        table.append([name, array.dtype.str, array.shape, end])
        body += [data, padding]
        end += data.size + len(padding)
    header = json.dumps(table).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGN)
    parts = [len(header).to_bytes(8, "little"), header, *body]
    checksum = zlib.crc32(version)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [_MAGIC, checksum.to_bytes(8, "little"), *parts]


def _read(data: NDArray[np.uint8], version: bytes) -> Arrays:
    """Read what `_parts` writes; raise an error where it does not."""
    magic, checksum, length = _PREFIX.unpack_from(data.data)
    if magic != _MAGIC or zlib.crc32(data[16:].data, zlib.crc32(version)) != checksum:
        raise ValueError("damaged")
    rest, arrays = data[_PREFIX.size :], {}
    for name, dtype, shape, first in json.loads(rest[:length].tobytes()):
        kind, start = np.dtype(dtype), length + first
        part = rest[start : start + math.prod(shape) * kind.itemsize]
        arrays[name] = part.view(kind).reshape(shape)
    return arrays

"""A checkpoint: what a run remembers between two rounds, in one file that is replaced as a whole.

A process that is killed at any moment leaves the one before it, or the new one. The file is one of
plain values (`fl_darex.files.states`), never a pickle:

    magic, 8 bytes | length of the index, 8 | index, JSON, padded | blocks | CRC-32 of all, 8
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fl_darex.errors import ConfigError
from fl_darex.files.atomic import PRIVATE, open_atomically
from fl_darex.files.lock import Lock
from fl_darex.files.states import Packed, padding, unpacked

_MAGIC, _FORMAT = b"DARXCKP", b"1"
_HEAD = struct.Struct("<8sQ")
_FILE, _LOCK = "state.darex", "lock"
_MOST_NAMED = 3

Facts = Mapping[str, Any]
"""What JSON can hold, by name."""


class Checkpoint:
    """The one checkpoint in a folder.

    Args:
        folder: Where it lies, together with nothing else; made when it is `held`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / _FILE

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            ConfigError: If another run holds it, or it cannot be written.
        """
        lock = Lock(self.folder / _LOCK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = lock.take()
        except OSError as error:
            raise ConfigError(
                f"checkpoints cannot be kept in {str(self.folder)!r}: {error.strerror or error}; "
                "name a folder that can be written"
            ) from None
        if not free:
            raise ConfigError(
                f"the checkpoints in {str(self.folder)!r} are those of a run that goes on in "
                "another process; wait for its end, or name another folder"
            )
        try:
            yield
        finally:
            lock.give_back()

    def save(self, facts: Facts, state: Any) -> None:
        """Put a checkpoint in the place of the one before it.

        Args:
            facts: What it is, of what run.
            state: Plain values, as `Packed` takes them.

        Raises:
            TypeError: If there is another value in the state.
            OSError: If it cannot be written; the one before it is still there.
        """
        packed = Packed(state)
        index = json.dumps({"facts": facts, "state": packed.shape}, separators=(",", ":")).encode()
        index += b" " * padding(_HEAD.size + len(index))
        crc = 0
        with open_atomically(self.path, PRIVATE, durable=True) as file:
            for part in _parts(index, packed):
                crc = zlib.crc32(part, crc)
                file.write(part)
            file.write(crc.to_bytes(8, "little"))

    def load(self) -> tuple[dict[str, Any], Any] | None:
        """Return the facts and the state that were saved last; None: there are none.

        Raises:
            ConfigError: If the file is damaged, or of another format.
        """
        try:
            data = np.fromfile(self.path, np.uint8)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read the checkpoint {str(self.path)!r}: {error}") from None
        if data[:7].tobytes() == _MAGIC and data[7:8].tobytes() not in (b"", _FORMAT):
            raise ConfigError(
                f"the checkpoint {str(self.path)!r} is of format {chr(data[7])!r}, and this "
                f"fl-darex reads {_FORMAT.decode()!r}; go on with the version that wrote it"
            )
        try:
            return _read(data)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, struct.error) as error:
            raise ConfigError(
                f"the checkpoint {str(self.path)!r} is damaged ({error}); remove it, and the run "
                "begins anew"
            ) from None

    def remove(self) -> None:
        """Remove it, if it is there.

        Raises:
            OSError: If it cannot be removed.
        """
        self.path.unlink(missing_ok=True)


def refuse_foreign(path: Path, found: Facts, own: Facts) -> None:
    """Refuse a checkpoint of another run than the one that is to go on with it.

    Args:
        path: The checkpoint, for the error.
        found: Its facts.
        own: Those of the run, as JSON gives them back.

    Raises:
        ConfigError: If they differ in a name of either.
    """
    names = sorted({*found, *own})
    odd = [name for name in names if found.get(name) != own.get(name)]
    if odd:
        shown = [f"{n} is {own.get(n)!r}, was {found.get(n)!r}" for n in odd[:_MOST_NAMED]]
        more = f" and {len(odd) - _MOST_NAMED} more" if len(odd) > _MOST_NAMED else ""
        raise ConfigError(
            f"the checkpoint {str(path)!r} is of another run: {'; '.join(shown)}{more}; go on with "
            "the same settings, or begin a new run in another folder"
        )


def _parts(index: bytes, packed: Packed) -> Iterator[bytes | memoryview]:
    yield _HEAD.pack(_MAGIC + _FORMAT, len(index))
    yield index
    for block in packed.blocks:
        yield block
        yield bytes(padding(len(block)))


def _read(data: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[dict[str, Any], Any]:
    """Read what `Checkpoint.save` writes; raise an error where it does not."""
    if len(data) < _HEAD.size + 8 or data[:8].tobytes() != _MAGIC + _FORMAT:
        raise ValueError("it is cut short, or no checkpoint")
    if zlib.crc32(data[:-8].data) != int.from_bytes(data[-8:].tobytes(), "little"):
        raise ValueError("its checksum is wrong")
    _, length = _HEAD.unpack_from(data.data)
    start = _HEAD.size + length
    index = json.loads(data[_HEAD.size : start].tobytes())
    facts = dict(index["facts"])
    return facts, unpacked(index["state"], data[start:-8])

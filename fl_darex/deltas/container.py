"""A delta's file: packets, small files, and a header behind them that says what they are.

``docs/wire-format.md``, section 11, is the specification. What is read may come from anybody: every
size is checked against the file's own before anything is allocated, nothing is unpickled or
executed, and whatever does not add up is a `PacketError`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np

from fl_darex.delta import Layout
from fl_darex.deltas.checkpoints import digest_of
from fl_darex.deltas.header import File, Header, Row, by_packet, refuse
from fl_darex.deltas.header_reader import read_header
from fl_darex.errors import ConfigError, PacketError, Reason
from fl_darex.files.atomic import open_atomically
from fl_darex.shown import described
from fl_darex.survivors import Numbers
from fl_darex.wire.header import read_header as read_packet_header
from fl_darex.wire.reader import Packet, read_packet

MAGIC, VERSION = b"DARF", 1

_START = struct.Struct("<4sB3x")
_END = struct.Struct("<QQ32s")  # bytes of the header, of its text, digest of all before it
_MOST_TEXT = 64 << 20
_AT_ONCE = 1 << 24  # bytes that are hashed at once
_KINDS = ("seeded", "listed", "structured")


class DeltaWriter:
    """Writes a delta's file from front to back.

    Args:
        file: Where to; it is at its beginning.
    """

    def __init__(self, file: IO[Any]) -> None:
        self._file, self._digest = file, blake2b(digest_size=32)
        self._write(_START.pack(MAGIC, VERSION))

    def add(self, part: bytes) -> int:
        """Write a packet, or the packed content of a small file, and return its length."""
        self._write(part)
        return len(part)

    def finish(self, header: Header) -> None:
        """Write what all of it is; the file is then complete.

        Args:
            header: Its packets and files are those that were added, in this order.

        Raises:
            ConfigError: If there are too many tensors for a file.
        """
        text = header.text()
        if len(text) > _MOST_TEXT:
            raise ConfigError(f"{len(header.rows)} tensors are more than a file can list")
        packed = zlib.compress(text, 9)
        self._write(packed)
        self._write(struct.pack("<QQ", len(packed), len(text)))
        self._file.write(self._digest.digest())

    def _write(self, part: bytes) -> None:
        self._digest.update(part)
        self._file.write(part)


def check_place(path: Path) -> None:
    """Refuse a place where no file can be written.

    Raises:
        ConfigError: If a folder is there, or there is none to write it into.
    """
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r}; make it first")


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[DeltaWriter]:
    """Write a delta's file that others see whole, when the block is left, or not at all."""
    with open_atomically(Path(path).expanduser()) as file:
        yield DeltaWriter(file)


@dataclass(frozen=True, eq=False)
class DeltaFile:
    """A delta's file, of which all is checked but its packets, which are when they are read.

    Attributes:
        header: What it says of itself.
        size: Its bytes.
        name: What it is called in errors; empty: nothing.
    """

    __repr__ = described

    header: Header
    size: int
    _packets: tuple[memoryview, ...]
    _files: Mapping[str, memoryview]
    _rows: Mapping[int, list[Row]]
    name: str = ""
    _last: dict[int, Packet] = field(default_factory=dict)
    _whole: dict[int, Mapping[str, Numbers]] = field(default_factory=dict)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for rows in self._rows.values():
            pruned = [row for row in rows if row.role == "pruned"]
            starts = accumulate((row.kept for row in pruned), initial=0)
            for index, (row, start) in enumerate(zip(pruned, starts, strict=False)):
                found[row.name] = index, start
        return found

    def place(self, row: Row) -> tuple[int, int]:
        """Return a pruned tensor's number in its packet, and where its survivors begin there."""
        return self._places[row.name]

    def packet(self, number: int) -> Packet:
        """Return one packet, checked; its numbers are read when they are asked for.

        Raises:
            PacketError: If it is not what the header says, or damaged.
        """
        if number not in self._last:
            self._last.clear()
            with _named(self.name):
                self._last[number] = self._opened(number)
        return self._last[number]

    def dense(self, number: int) -> Mapping[str, Numbers]:
        """Return what one packet says of tensors that are in it whole."""
        if number not in self._whole:
            self._whole.clear()
            self._whole[number] = self.packet(number).dense()
        return self._whole[number]

    def content(self, file: File) -> bytes:
        """Return the content of a small file that is in it.

        Raises:
            PacketError: If it is another one than the header says.
        """
        content = _unpacked(self._files[file.path], file.size, f"file {file.path!r}")
        if digest_of(content) != file.digest:
            refuse(f"holds another {file.path!r} than its header says", Reason.CHECKSUM)
        return content

    def _opened(self, number: int) -> Packet:
        data, rows = self._packets[number], self._rows[number]
        layout = Layout(tuple(row.spec for row in rows))
        header = read_packet_header(data)  # type: ignore[arg-type]
        if header.mask_kind not in _KINDS:
            refuse(f"has a packet with a {header.mask_kind} mask; allowed: {', '.join(_KINDS)}")
        if header.survivors != sum(row.kept for row in rows):
            refuse("keeps another number of entries than its packet", Reason.POSITIONS)
        if header.base != self.header.base:
            refuse("has a packet that is a change to another model", Reason.VERSION)
        opened = read_packet(data, layout, header)  # type: ignore[arg-type]
        fewest, most = opened.mask.bounds(layout)
        if not fewest <= header.survivors <= most:
            refuse(
                f"has {header.survivors} survivors, its mask {fewest} to {most}", Reason.POSITIONS
            )
        return opened


def open_delta(path: str | PathLike[str]) -> DeltaFile:
    """Open a delta's file; it is memory-mapped.

    Raises:
        ConfigError: If there is none, or it is no delta's file.
        PacketError: If it is damaged.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise ConfigError(f"there is no file {str(place)!r}; name one that fl-darex prune wrote")
    with place.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise ConfigError(f"{str(place)!r} was not written by fl-darex prune; name one that was")
    with _named(name := repr(str(place))):
        return replace(parse(np.memmap(place, np.uint8, mode="r").data), name=name)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors of the block say which file they are about."""
    try:
        yield
    except PacketError as error:
        raise PacketError(f"{name}: {error}" if name else str(error), error.reason) from None


def parse(data: memoryview) -> DeltaFile:
    """Check the bytes of a delta's file, but for its packets.

    Raises:
        PacketError: If they are not what `DeltaWriter` writes.
    """
    size = len(data)
    if size < _START.size + _END.size:
        refuse(f"has {size} bytes, fewer than any", Reason.SIZE)
    magic, version = _START.unpack_from(data)
    if magic != MAGIC or bytes(data[:8]) != _START.pack(MAGIC, version):
        refuse(f"starts with {bytes(data[:8])!r}, which is no delta")
    if version != VERSION:
        refuse(f"has version {version}; this fl-darex knows {VERSION}, a newer one may know more")
    packed, length, digest = _END.unpack_from(data, size - _END.size)
    found = blake2b(digest_size=32)
    for at in range(0, size - 32, _AT_ONCE):
        found.update(data[at : min(at + _AT_ONCE, size - 32)])
    if found.digest() != digest:
        refuse("is damaged: its digest does not match; fetch it again", Reason.CHECKSUM)
    end = size - _END.size - packed
    if end < _START.size or length > _MOST_TEXT:
        refuse("has a header that is longer than it can be", Reason.SIZE)
    header = read_header(_unpacked(data[end : size - _END.size], length, "header"))
    inside = [file for file in header.files if file.packed]
    lengths = [*header.packets, *(file.packed for file in inside)]
    if sum(lengths) != end - _START.size:
        refuse("is not as long as its header says", Reason.SIZE)
    ends = list(accumulate(lengths, initial=_START.size))
    parts = [data[at : at + part] for at, part in zip(ends, lengths, strict=False)]
    packets = tuple(parts[: len(header.packets)])
    files = dict(zip((file.path for file in inside), parts[len(packets) :], strict=True))
    return DeltaFile(header, size, packets, files, by_packet(header.rows))


def _unpacked(data: memoryview, length: int, what: str) -> bytes:
    """Return what was compressed, of a length that is known."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, length + 1)
    except zlib.error as error:
        refuse(f"has a {what} that cannot be unpacked: {error}")
    if len(content) != length or not unpacker.eof or unpacker.unused_data:
        refuse(f"has a {what} of another length than it says", Reason.SIZE)
    return content

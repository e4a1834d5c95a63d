"""A fine-tuned model becomes a delta's file, tensor by tensor."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from fl_darex import __version__
from fl_darex.deltas.arithmetic import version_of
from fl_darex.deltas.checkpoints import (
    MOST_BYTES,
    Checkpoint,
    digest_of,
    says_the_same,
)
from fl_darex.deltas.container import DeltaWriter, check_place, writing
from fl_darex.deltas.header import File, Header, Row
from fl_darex.deltas.matching import matched
from fl_darex.deltas.packing import Source, in_packets, name_odd
from fl_darex.deltas.settings import Pruning, Told, silent
from fl_darex.errors import DeltaError
from fl_darex.wire import encode


@dataclass(frozen=True)
class Pruned:
    """What came of it.

    Attributes:
        header: What the file says of itself.
        size: Its bytes.
        dense_size: Bytes of the fine-tuned model's tensors.
        remarks: What a person should know, a line each.
    """

    header: Header
    size: int
    dense_size: int
    remarks: tuple[str, ...]

    @property
    def kept(self) -> int:
        """How many entries of pruned tensors survived."""
        return sum(row.kept for row in self.header.rows)

    @property
    def entries(self) -> int:
        """How many entries pruned tensors have."""
        return sum(row.numel for row in self.header.rows if row.role == "pruned")


def prune(
    base: Checkpoint,
    tuned: Checkpoint,
    out: str | PathLike[str],
    how: Pruning,
    *,
    carry_files: bool = True,
    told: Told = silent,
) -> Pruned:
    """Write what fine-tuning changed, pruned, as one file.

    Both models are gone through tensor by tensor: in memory are the survivors of about four
    million entries, or of one tensor, and a piece of the two models.

    Args:
        base: The model before fine-tuning.
        tuned: The model after it.
        out: The file; it is there whole or not at all.
        how: How it is pruned.
        carry_files: Whether configuration, tokenizer and other small files go along: those that
            differ from the base's are put into the file, the others are taken from the base again.
        told: Is told what goes on.

    Raises:
        ConfigError: If a tensor is of a type that cannot be written, or the file cannot be there.
        DeltaError: If a change is NaN or infinite.
        OSError: If the file cannot be written.
    """
    check_place(place := Path(out).expanduser())
    rows, remarks = matched(tuned.tensors, base.tensors, how)
    rows = in_packets(rows, how.keep)
    needed = {row.base: base.tensors[row.base] for row in rows if row.base is not None}
    version = version_of(needed, _counted(told, "reading BASE", base, list(needed)))
    files, contents, left = _files(base, tuned) if carry_files else ([], [], [])
    source = Source(tuned.tensors, base.tensors, how)
    with writing(place) as file:
        rows, lengths = _packets(file, source, rows, version, told)
        for content in contents:
            file.add(content)
        header = Header(
            base=version,
            rows=tuple(rows),
            packets=tuple(lengths),
            files=tuple(files),
            weights=tuned.weights,
            notes=_notes(base, tuned, how),
        )
        file.finish(header)
    return Pruned(header, place.stat().st_size, _bytes(tuned), (*tuned.remarks, *remarks, *left))


def _packets(
    file: DeltaWriter, source: Source, rows: list[Row], version: bytes, told: Told
) -> tuple[list[Row], list[int]]:
    """Write all packets; return rows with what survives of each, and the packets' lengths."""
    lengths: list[int] = []
    by_name = {row.name: row for row in rows}
    packed = sorted((row for row in rows if row.packet >= 0), key=lambda row: row.packet)
    total, done = sum(row.numel for row in packed), 0
    with closing(source.survivors(packed)) as packets:
        for number, survivors in enumerate(packets):
            some = [by_name[spec.name] for spec in survivors.layout]
            try:
                coding = source.coding(some)
                packet = encode(survivors, coding, base=version, sender=number)
            except DeltaError as error:
                raise name_odd(source.delta(some)) or error from None
            lengths.append(file.add(packet))
            for spec, count in zip(survivors.layout.pruned, survivors.counts, strict=True):
                by_name[spec.name] = replace(by_name[spec.name], kept=count)
            done += sum(row.numel for row in some)
            told("pruning", done, total)
    return [by_name[row.name] for row in rows], lengths


def _files(base: Checkpoint, tuned: Checkpoint) -> tuple[list[File], list[bytes], list[str]]:
    """Return the small files of a model, the packed content of those inside, and remarks."""
    files, contents, left, room = [], [], [], MOST_BYTES
    for path, place in sorted(tuned.files.items()):
        other = base.files.get(path)
        size = place.stat().st_size
        if size > room:
            left.append(f"{path} is left out: small files may have {MOST_BYTES >> 20} MiB in all")
            continue
        content, packed = place.read_bytes(), b""
        before = None if other is None else other.read_bytes()
        if before is not None and says_the_same(path, content, before):
            content = before
        else:
            packed = zlib.compress(content, 9)
        room -= len(content)
        files.append(
            File(path=path, size=len(content), packed=len(packed), digest=digest_of(content))
        )
        contents += [packed] if packed else []
    return files, contents, left


def _notes(base: Checkpoint, tuned: Checkpoint, how: Pruning) -> dict[str, str]:
    notes = {
        "by": f"fl-darex {__version__}",
        "method": how.method,
        "p": repr(how.p),
        "base": base.place.resolve().name,
        "finetuned": tuned.place.resolve().name,
    }
    if how.method in ("magnitude", "wanda"):
        notes["scope"] = how.scope
    return notes


def _counted(
    told: Told, what: str, checkpoint: Checkpoint, names: list[str]
) -> Callable[[int], None]:
    total, done = sum(checkpoint.tensors[name].nbytes for name in names), 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        told(what, done, total)

    return add


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())

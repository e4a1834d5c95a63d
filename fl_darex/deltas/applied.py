"""A base and a delta's file become the fine-tuned model, as far as survivors tell."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from os import PathLike, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.deltas.arithmetic import restored, version_of
from fl_darex.deltas.checkpoints import ADAPTER, Checkpoint, digest_of, open_checkpoint
from fl_darex.deltas.container import DeltaFile
from fl_darex.deltas.header import File, Row, refuse
from fl_darex.deltas.settings import Told, silent
from fl_darex.errors import ConfigError, Reason
from fl_darex.files.atomic import UNFINISHED_SECONDS
from fl_darex.files.formats import Bfloat16, StoredTensor
from fl_darex.files.tensors import StoredTensors, write_tensors
from fl_darex.positions import Positions
from fl_darex.survivors import Numbers


def apply(
    base: Checkpoint,
    delta: DeltaFile,
    out: str | PathLike[str],
    *,
    carry_files: bool = True,
    told: Told = silent,
) -> None:
    """Write the model's folder: each tensor is ``base + survivors / q``, rounded once to its type.

    That is what a receiver of the packets computes, bit for bit. One tensor at a time is in memory.

    Args:
        base: The model that the delta was made against.
        delta: The delta.
        out: The folder, which is there whole or not at all; it must not exist, or be empty.
        carry_files: Whether configuration, tokenizer and other small files are written, too.
        told: Is told what goes on.

    Raises:
        ConfigError: If it is another base, or the folder cannot be taken.
        PacketError: If a packet is damaged; nothing is written then.
        OSError: If the folder cannot be written.
    """
    check_folder(Path(out).expanduser())
    check_base(delta, base, told)
    with _new_folder(Path(out).expanduser()) as folder:
        for file in delta.header.files if carry_files else ():
            (folder / file.path).parent.mkdir(exist_ok=True)
            (folder / file.path).write_bytes(_content(file, delta, base))
        total, done = sum(row.numel for row in delta.header.rows), 0
        tensors = restored_tensors(base.tensors, delta)

        def counted(name: str, tensor: StoredTensor) -> StoredTensor:
            def read() -> NDArray[Any]:
                nonlocal done
                done += tensor.numel
                told("writing", done, total)
                return tensor.stored()

            load = Bfloat16(read) if isinstance(tensor.load, Bfloat16) else read
            return StoredTensor(tensor.dtype, tensor.shape, load)

        listed = {name: counted(name, tensor) for name, tensor in tensors.items()}
        write_tensors(folder / delta.header.weights, StoredTensors(listed))


def restored_tensors(base: Mapping[str, StoredTensor], delta: DeltaFile) -> dict[str, StoredTensor]:
    """Return the tensors that come out, each made when it is asked for.

    Args:
        base: The base's tensors, checked (`check_base`).
        delta: The delta.
    """
    known = {row.name: row for row in delta.header.rows}
    found = {}
    for name, row in known.items():
        origin = known[row.source] if row.role == "tied" else row
        load: Any = partial(_restored, base, delta, origin)
        dtype, shape = row.dtype, row.shape
        found[name] = StoredTensor(dtype, shape, Bfloat16(load) if dtype == "bfloat16" else load)
    return found


def survivors_of(delta: DeltaFile, row: Row) -> tuple[Positions, Numbers]:
    """Return where a pruned tensor changes, and by how much: survivors over q.

    Raises:
        PacketError: If its packet is damaged, or its mask keeps another number of entries.
    """
    packet, (_, start) = delta.packet(row.packet), delta.place(row)
    positions = packet.mask.in_layout(Layout((row.spec,)))[row.name]
    if positions.size != row.kept:
        refuse(
            f"keeps {row.kept} entries of {row.name!r}, its mask {positions.size}", Reason.POSITIONS
        )
    change = packet.numbers(start, start + row.kept)
    change /= change.dtype.type(q_of(delta, row))
    return positions, change


def q_of(delta: DeltaFile, row: Row) -> float:
    """Return what a pruned tensor's survivors are divided by."""
    q = delta.packet(row.packet).q
    return q if isinstance(q, float) else float(q[delta.place(row)[0]])


def _restored(base: Mapping[str, StoredTensor], delta: DeltaFile, row: Row) -> NDArray[Any]:
    before = None if row.base is None else base[row.base]
    if row.role == "raw":
        return delta.packet(row.packet).raw()[row.name]
    if row.role == "pruned":
        positions, change = survivors_of(delta, row)
        return restored(before, row.dtype, row.shape, change, positions)
    if row.role == "dense":
        return restored(before, row.dtype, row.shape, delta.dense(row.packet)[row.name])
    return restored(before, row.dtype, row.shape)


def _content(file: File, delta: DeltaFile, base: Checkpoint) -> bytes:
    if file.packed:
        return delta.content(file)
    place = base.files.get(file.path)
    content = b"" if place is None else place.read_bytes()
    if digest_of(content) != file.digest:
        raise ConfigError(
            f"{file.path!r} is to be taken from {str(base.place)!r}, where it is missing or has "
            "changed since the file was made; take the base as it was then, or give --no-files"
        )
    return content


def check_folder(out: Path) -> None:
    """Refuse a place where no new folder can be made.

    Raises:
        ConfigError: If something is there, but for an empty folder, or there is none to put it in.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} is there already; name a new folder, or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {str(out.parent)!r}; make it first")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that takes its place when the block is left, and is gone if it raises."""
    for old in out.absolute().parent.glob(
        f"{escape(out.name)}.*.part"
    ):  # of processes that were killed
        with suppress(OSError):
            if old.stat().st_mtime < time.time() - UNFINISHED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    fresh = out.with_name(f"{out.name}.{secrets.token_hex(8)}.part")
    fresh.mkdir()
    try:
        yield fresh
        replace(fresh, out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def open_base(path: str | PathLike[str], delta: DeltaFile) -> Checkpoint:
    """Open the folder that a delta is for: its adapter, where the delta is an adapter's.

    Raises:
        ConfigError: If it cannot be read.
    """
    return open_checkpoint(path, adapter=delta.header.weights == ADAPTER)


def check_base(delta: DeltaFile, base: Checkpoint, told: Told = silent) -> None:
    """Refuse a base that a delta was not made against.

    Raises:
        ConfigError: If it lacks a tensor, or has other ones.
    """
    needed = {row.base: row for row in delta.header.rows if row.base is not None}
    for name, row in needed.items():
        found = base.tensors.get(name)
        if found is None or found.shape != row.shape:
            shape = "no such tensor" if found is None else f"one of shape {found.shape}"
            raise ConfigError(
                f"{str(base.place)!r} is not the base of this file: {name!r} of shape {row.shape} "
                f"is needed, it has {shape}; {_way_out(delta)}"
            )
        if ("float" in found.dtype) != ("float" in row.dtype):
            raise ConfigError(
                f"{str(base.place)!r} is not the base of this file: {name!r} is of type "
                f"{found.dtype} in one and {row.dtype} in the other; {_way_out(delta)}"
            )
    total, done = sum(base.tensors[name].nbytes for name in needed), 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        told("checking BASE", done, total)

    version = version_of({name: base.tensors[name] for name in needed}, add)
    if version != delta.header.base:
        raise ConfigError(
            f"{str(base.place)!r} is not the base of this file: its tensors have the fingerprint "
            f"{version.hex()}, the file needs {delta.header.base.hex()}; {_way_out(delta)}"
        )


def _way_out(delta: DeltaFile) -> str:
    name = delta.header.notes.get("base", "")
    return f"name the folder that it was made against{f', then called {name!r}' if name else ''}"

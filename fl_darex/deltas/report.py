"""What is in a delta's file, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fl_darex.delta import Layout
from fl_darex.deltas.applied import check_base, q_of
from fl_darex.deltas.arithmetic import pieces
from fl_darex.deltas.checkpoints import Checkpoint
from fl_darex.deltas.container import DeltaFile
from fl_darex.deltas.header import Row
from fl_darex.deltas.settings import Told, silent
from fl_darex.errors import PacketError
from fl_darex.files.formats import StoredTensor
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask
from fl_darex.positions.rice import write_positions
from fl_darex.survivors import Numbers
from fl_darex.wire.codings import Coding, coding_of, dense_coding, nature_of
from fl_darex.wire.reader import Packet


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """One tensor that is in a packet.

    Attributes:
        name: Its name in the fine-tuned model.
        shape: Its shape.
        dtype: Its type.
        role: ``pruned``, ``dense`` (its whole change), ``new`` (the base lacks it) or ``raw``.
        entries: How many it has.
        kept: How many of them are in the file.
        values: How numbers are written.
        q: What survivors are divided by.
        size: Bytes of its numbers and positions, to a byte.
        mean: Mean magnitude of the numbers as they are in the file, not divided by q.
        rms: Root of their mean square.
        largest: Largest magnitude.
        noise: Length of what dropping and rounding add to what comes out, in lengths of the change;
            None where entries were chosen by their values.
        share: rms over that of the base's tensor: how far it moved; None without a base.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    entries: int
    kept: int
    values: str
    q: float
    size: int
    mean: float
    rms: float
    largest: float
    noise: float | None
    share: float | None = None

    @property
    def bits(self) -> float:
        """Bits that a number takes, its position included."""
        return 8 * self.size / self.kept if self.kept else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is in a delta's file.

    Attributes:
        notes: What whoever wrote it says of it.
        base: Fingerprint of the base's tensors that are needed, 16 hexadecimal digits.
        base_fits: Whether the base that was given is that one; None: none was given.
        size: The file's bytes.
        dense_size: Bytes of the fine-tuned model's tensors.
        tensors: Those that are in packets.
        same: How many tensors are the base's.
        tied: How many equal another one.
        files: Small files that go along, and whether each is in the file.
    """

    notes: dict[str, str]
    base: str
    base_fits: bool | None
    size: int
    dense_size: int
    tensors: tuple[TensorReport, ...]
    same: int
    tied: int
    files: dict[str, bool]

    def fields(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        rows = [asdict(one) | {"bits": one.bits} for one in self.tensors]
        return {**asdict(self), "tensors": rows}


def inspect(delta: DeltaFile, base: Checkpoint | None = None, told: Told = silent) -> Report:
    """Return what is in a delta's file; all of its packets are checked.

    Args:
        delta: The file.
        base: The model that it was made against, to compare changes with; None: not at hand.
        told: Is told what goes on.

    Raises:
        ConfigError: If it is another base.
        PacketError: If a packet is damaged.
    """
    if base is not None:
        check_base(delta, base, told)
    rows = delta.header.rows
    inside = [row for row in rows if row.packet >= 0]
    found = []
    for number, row in enumerate(inside):
        before = base.tensors[row.base] if base is not None and row.base is not None else None
        found.append(_of_tensor(delta, row, before))
        told("reading", number + 1, len(inside))
    return Report(
        notes=dict(delta.header.notes),
        base=delta.header.base.hex(),
        base_fits=None if base is None else True,
        size=delta.size,
        dense_size=sum(row.nbytes for row in rows),
        tensors=tuple(found),
        same=len([row for row in rows if row.role == "same"]),
        tied=len([row for row in rows if row.role == "tied"]),
        files={file.path: file.packed > 0 for file in delta.header.files},
    )


def noise_of(keep: float, q: float, nmse: float = 0.0) -> float:
    """Return how long the noise of a pruned change is, in lengths of the change.

    ``sqrt(k (1 - k + nmse)) / q`` for a keep rate of k; with q = k that is
    ``sqrt((1 + nmse) / (1 - p) - 1)``. See `fl_darex.compression.expected`.

    Args:
        keep: 1-p.
        q: What survivors are divided by.
        nmse: Of the coding.
    """
    return math.sqrt(keep * (1.0 - keep + nmse)) / q


def _of_tensor(delta: DeltaFile, row: Row, before: StoredTensor | None) -> TensorReport:
    packet = delta.packet(row.packet)
    coding = coding_of(packet.header.coding)
    if coding is None:
        raise PacketError(f"unknown value coding {packet.header.coding}")
    pruned = row.role == "pruned"
    q = q_of(delta, row) if pruned else 1.0
    drawn = pruned and packet.header.keep
    total, square, largest = 0.0, 0.0, 0.0
    for numbers in _numbers(delta, row):
        magnitudes = np.abs(numbers, dtype=np.float64)
        total += float(magnitudes.sum())
        square += float(np.vdot(magnitudes, magnitudes))
        largest = max(largest, float(magnitudes.max()))
    kept = row.kept if pruned else row.numel
    rms = math.sqrt(square / kept) if kept else 0.0
    moved = _rms(before) if before is not None else 0.0
    return TensorReport(
        name=row.name,
        shape=row.shape,
        dtype=row.dtype,
        role="new" if row.role == "dense" and row.base is None else row.role,
        entries=row.numel,
        kept=kept,
        values=_written_as(row, coding),
        q=q,
        size=_size(row, packet, coding),
        mean=total / kept if kept else 0.0,
        rms=rms,
        largest=largest,
        noise=noise_of(drawn / ONE, q, nature_of(coding.name).nmse) if drawn else None,
        share=rms / moved if moved > 0 else None,
    )


def _numbers(delta: DeltaFile, row: Row) -> Iterator[Numbers]:
    if row.role == "pruned":
        packet, (_, start) = delta.packet(row.packet), delta.place(row)
        for first, end in pieces(row.kept):
            yield packet.numbers(start + first, start + end)
    elif row.role == "dense":
        whole = delta.dense(row.packet)[row.name]
        yield from (whole[start:end] for start, end in pieces(whole.size))


def _size(row: Row, packet: Packet, coding: Coding) -> int:
    if row.role == "raw":
        return row.nbytes
    if row.role == "dense":
        return math.ceil(row.numel * dense_coding(coding.name).bits / 8)
    positions = 0
    if isinstance(packet.mask, ListedMask):
        positions = len(write_positions(Layout((row.spec,)), packet.mask.where))
    return math.ceil(row.kept * coding.bits / 8) + positions


def _written_as(row: Row, coding: Coding) -> str:
    if row.role == "raw":
        return row.dtype
    return coding.name if row.role == "pruned" else dense_coding(coding.name).name


def _rms(tensor: StoredTensor) -> float:
    square = 0.0
    for piece in pieces(tensor.numel):
        numbers = tensor.span(*piece).astype(np.float64)
        square += float(np.vdot(numbers, numbers))
    return math.sqrt(square / tensor.numel) if tensor.numel else 0.0

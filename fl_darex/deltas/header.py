"""What a delta's file says of itself, as JSON.

``docs/wire-format.md``, section 11, is the specification.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fl_darex.delta import Role, TensorSpec
from fl_darex.deltas.checkpoints import MODEL
from fl_darex.errors import PacketError, Reason
from fl_darex.files.formats import bytes_of

IN_PACKETS = ("pruned", "dense", "raw")
ROLES = (*IN_PACKETS, "tied", "same")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the fine-tuned model.

    Attributes:
        name: Its name there.
        dtype: Its type there, which it is restored to.
        shape: Its shape.
        role: ``pruned``, ``dense`` or ``raw``: a part of its change, its whole change or its new
            values are in a packet; ``tied``: it equals another tensor of the model; ``same``: it
            equals the base's.
        base: The base's tensor that it is a change of; None: it is not one, and its change is one
            from zeros.
        packet: Number of the packet that it is in.
        kept: How many of its entries survive, where it is pruned.
        source: The tensor that a tied one equals.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    base: str | None = None
    packet: int = -1
    kept: int = 0
    source: str = ""

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes when it is restored."""
        return bytes_of(self.dtype, self.shape)

    @property
    def spec(self) -> TensorSpec:
        """Its place in the layout of its packet."""
        role: Role = "pruned" if self.role == "pruned" else "raw" if self.role == "raw" else "dense"
        return TensorSpec(self.name, self.shape, self.dtype, role)

    def fields(self) -> dict[str, Any]:
        """Return what the text says; what can be left out is left out."""
        told: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": self.shape}
        told["role"] = self.role
        if self.role in IN_PACKETS:
            told["packet"] = self.packet
        if self.role == "pruned":
            told["kept"] = self.kept
        if self.role == "tied":
            told["source"] = self.source
        elif self.role != "raw" and self.base != self.name:
            told["base"] = self.base
        return told


@dataclass(frozen=True, kw_only=True)
class File:
    """A small file that goes with the model.

    Attributes:
        path: Where, inside the model's folder.
        size: Its bytes.
        packed: Bytes that it takes here, compressed; 0: it is the base's, and not here.
        digest: Of its content (`fl_darex.deltas.checkpoints.digest_of`).
    """

    path: str
    size: int
    packed: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a delta's file says of itself.

    Attributes:
        base: Version of the base's tensors that are needed, 8 bytes.
        rows: The tensors of the fine-tuned model, sorted by name.
        packets: The packets' lengths in bytes.
        files: What goes with the model.
        weights: What the file of its tensors is called.
        notes: Words for people, which nothing depends on.
    """

    base: bytes
    rows: tuple[Row, ...]
    packets: tuple[int, ...] = ()
    files: tuple[File, ...] = ()
    weights: str = MODEL
    notes: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> bytes:
        """Return it as JSON."""
        told = {
            "base": self.base.hex(),
            "weights": self.weights,
            "notes": dict(self.notes),
            "packets": self.packets,
            "files": [vars(file) for file in self.files],
            "tensors": [row.fields() for row in self.rows],
        }
        return json.dumps(told, separators=(",", ":")).encode()


def by_packet(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Return the rows of each packet."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.packet >= 0:
            found[row.packet].append(row)
    return dict(found)


def refuse(what: str, reason: Reason = Reason.FORMAT) -> NoReturn:
    """Raise the error of a file that makes no sense."""
    raise PacketError(f"the file {what}", reason)

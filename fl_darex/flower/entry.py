"""One exchange with one client in the ledger, and many of them as columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(slots=True)
class Entry:
    """The bytes of one exchange with one client.

    Attributes:
        round: The federated round; 0 before the first.
        client: The client's partition, or its node id where no handshake told the partition.
        kind: ``train``, ``evaluate``, ``query`` or ``handshake``; ``lacking`` where a client did
            not hold what the message built on, so that it was asked again; ``secure`` for the short
            messages of secure aggregation.
        down_bytes: Server to client, as a deployment would serialise the message.
        up_bytes: Client to server; 0 while there is no reply, or only SuperLink's word that
            there will be none.
        dense_down_bytes: The same message with the whole model and nothing of fl-darex in it; 0
            for ``lacking`` and ``secure``, which only happen with fl-darex.
        dense_up_bytes: The same reply with every tensor in full, in its own dtype; tensors that
            were sent equal count once if they are tied or counters.
        held_bytes: Those of `dense_down_bytes` that are the model before round 1, where the client
            holds it: whoever trusts in that need not send it without fl-darex either.
        failed: Whether the reply is an error or never came.
    """

    round: int
    client: int
    kind: str
    down_bytes: int
    up_bytes: int = 0
    dense_down_bytes: int = 0
    dense_up_bytes: int = 0
    held_bytes: int = 0
    failed: bool = True


# A node's id fills 64 bits without a sign.
_COLUMNS = {one.name: np.int64 for one in fields(Entry)} | {
    "client": np.uint64,
    "kind": np.uint8,
    "failed": np.bool_,
}


def to_columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return entries as an array for each field; a run may have a million of them."""
    kinds = sorted({entry.kind for entry in entries})
    columns: dict[str, Any] = {
        name: np.array([getattr(entry, name) for entry in entries], dtype)
        for name, dtype in _COLUMNS.items()
        if name != "kind"
    }
    codes = [kinds.index(entry.kind) for entry in entries]
    return columns | {"kinds": kinds, "kind": np.array(codes, _COLUMNS["kind"])}


def from_columns(columns: dict[str, Any]) -> list[Entry]:
    """Return the entries that `to_columns` was given."""
    values = {name: columns[name].tolist() for name in _COLUMNS}
    values["kind"] = [columns["kinds"][code] for code in values["kind"]]
    return [Entry(*row) for row in zip(*values.values(), strict=True)]

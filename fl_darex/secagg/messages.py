"""The messages of secure aggregation: four exchanges in one round.

Each message has one JSON text (`Stage`) and at most one blob of rows of a fixed width, in the
message's own ConfigRecord. Answers are a ConfigRecord named as the key is.

=========  ============================================  ========================================
stage      the message's rows                            the answer
=========  ============================================  ========================================
keys       none                                          ``keys``: two public keys
shares     slot and two public keys of each neighbour    ``commitment``, ``shares``: one sealed
                                                         letter for each neighbour, in that order
masked     slot and sealed letter of each neighbour      the masked packet
unmask     slots of clients whose masked packet came     ``shares``: one share for each neighbour
                                                         and for oneself, in the order of slots
=========  ============================================  ========================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from flwr.app import ConfigRecord

from fl_darex.errors import PacketError, Reason
from fl_darex.wire.json_notes import WIRE_VERSION, Rules, dump, is_hex, is_names, load

SECURE_KEY = "darex.secure"
"""Key of a stage in a message's configuration, and name of the record with the answer."""

ROWS_KEY = "darex.secure.rows"

KEYS, SHARES, MASKED, UNMASK = "keys", "shares", "masked", "unmask"

SLOT_BYTES = 8
MOST_ROWS = 2**15


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a client is asked to do, and what for.

    Attributes:
        stage: ``keys``, ``shares``, ``masked`` or ``unmask``.
        session: 32 hexadecimal digits, new for each round.
        slot: The client's own slot.
        threshold: Shares that give a secret.
        range: Of ``masked``: largest magnitude of a survivor; 0 elsewhere, as all that follow.
        dense_range: Largest magnitude in tensors that are sent whole.
        levels: Integers on each side of 0.
        width: Bytes of a number of the ring.
        max_weight: Largest weight.
        weight: Name of the metric that is the client's weight; empty: all count the same.
        norm: Largest L2 norm of an update, survivors over q and dense tensors together, to which
            the client scales its own down; 0: any.
        metrics: Names of metrics that are sent in the clear.
        version: Wire version.
        rows: Rows of the message, each of one width.
    """

    stage: str
    session: str
    slot: int
    threshold: int
    range: float = 0.0
    dense_range: float = 0.0
    levels: int = 0
    width: int = 0
    max_weight: float = 0.0
    weight: str = ""
    norm: float = 0.0
    metrics: tuple[str, ...] = ()
    version: int = WIRE_VERSION
    rows: bytes = field(default=b"", repr=False)

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write the stage into a message's configuration."""
        fields = asdict(self)
        config[ROWS_KEY] = fields.pop("rows")
        config[SECURE_KEY] = dump(fields)

    @classmethod
    def detach(cls, config: MutableMapping[str, Any]) -> Stage | None:
        """Take the stage out of a message's configuration; None where there is none.

        Raises:
            PacketError: If it is not one that this version understands.
        """
        text, rows = config.pop(SECURE_KEY, None), config.pop(ROWS_KEY, b"")
        if text is None:
            return None
        fields = load(text, _RULES, "the server's stage of secure aggregation")
        if not isinstance(rows, bytes):
            _refuse(f"has rows of type {type(rows).__name__}", Reason.TERMS)
        fields |= {
            name: float(fields[name]) for name in ("range", "dense_range", "max_weight", "norm")
        }
        found = cls(**fields | {"metrics": tuple(fields["metrics"]), "rows": rows})
        if found.stage == MASKED and not (
            min(found.range, found.dense_range, found.max_weight) > 0
            and found.levels
            and found.width
        ):
            _refuse("asks for masked numbers and does not say in which units", Reason.TERMS)
        return found


def join(rows: Iterable[tuple[int, bytes]]) -> bytes:
    """Return rows of a slot and bytes of one width, as one blob."""
    return b"".join(slot.to_bytes(SLOT_BYTES, "little") + data for slot, data in rows)


def rows_of(blob: bytes, width: int) -> dict[int, bytes]:
    """Return the rows of a blob by slot.

    Raises:
        PacketError: If its size is no whole number of rows, or slots do not rise.
    """
    step = SLOT_BYTES + width
    if len(blob) % step or len(blob) > MOST_ROWS * step:
        _refuse(f"has {len(blob)} bytes of rows, each of {step}", Reason.SIZE)
    found = {}
    last = -1
    for start in range(0, len(blob), step):
        slot = int.from_bytes(blob[start : start + SLOT_BYTES], "little")
        if slot <= last:
            _refuse("lists slots that do not rise", Reason.VALUES)
        found[slot] = blob[start + SLOT_BYTES : start + step]
        last = slot
    return found


def answer_bytes(record: ConfigRecord, key: str, size: int) -> bytes:
    """Return one field of an answer.

    Raises:
        PacketError: If it is missing, or has another size.
    """
    found = record.get(key)
    if not isinstance(found, bytes) or len(found) != size:
        kind = f"{len(found)} bytes" if isinstance(found, bytes) else type(found).__name__
        _refuse(f"answer has {key!r} of {kind}, expected {size} bytes", Reason.SIZE)
    return found


def _refuse(what: str, reason: Reason) -> NoReturn:
    raise PacketError(f"a message of secure aggregation {what}", reason)


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


_AMOUNT = ("a finite number >= 0", _is_amount)
_RULES: Rules = {
    "stage": (
        "one of keys, shares, masked, unmask",
        lambda v: v in (KEYS, SHARES, MASKED, UNMASK),
    ),
    "session": ("32 hexadecimal digits", lambda v: is_hex(v, 32)),
    "slot": ("an integer in [0, 2**63)", lambda v: type(v) is int and 0 <= v < 1 << 63),
    "threshold": ("an integer in [2, 2**15]", lambda v: type(v) is int and 2 <= v <= MOST_ROWS),
    "range": _AMOUNT,
    "dense_range": _AMOUNT,
    "levels": ("an integer in [0, 2**31)", lambda v: type(v) is int and 0 <= v < 1 << 31),
    "width": ("an integer from 0 to 8", lambda v: type(v) is int and 0 <= v <= 8),
    "max_weight": _AMOUNT,
    "weight": ("text", lambda v: isinstance(v, str)),
    "norm": _AMOUNT,
    "metrics": ("a list of names", is_names),
    "version": ("an integer", lambda v: type(v) is int),
}

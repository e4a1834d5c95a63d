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
                                                         and for oneself, in the order of slots;
                                                         ``unread``: slots whose letter cannot be
                                                         read, if any
=========  ============================================  ========================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from sys import float_info
from typing import Annotated, Any, NoReturn, Self

from fl_darex.errors import PacketError, Reason
from fl_darex.wire.json_notes import COUNT, NAMES, TEXT, Note, Rule, integer, is_hex

SECURE_KEY = "darex.secure"
"""Key of a stage in a message's configuration, and name of the record with the answer."""

ROWS_KEY = "darex.secure.rows"

KEYS, SHARES, MASKED, UNMASK = "keys", "shares", "masked", "unmask"

UNREAD = "unread"
"""Key of the slots whose letters could not be read, in an answer to ``unmask``."""

SLOT_BYTES = 8
MOST_ROWS = 2**15


_STAGE = Rule(
    "one of keys, shares, masked, unmask", lambda value: value in (KEYS, SHARES, MASKED, UNMASK)
)
_SESSION = Rule("32 hexadecimal digits", lambda value: is_hex(value, 32))
_THRESHOLD = integer("an integer in [2, 2**15]", 2, MOST_ROWS + 1)
_LEVELS = integer("an integer in [0, 2**31)", 0, 1 << 31)
_WIDTH = integer("an integer from 0 to 8", 0, 9)
_AMOUNT = Rule(
    "a finite number >= 0",
    lambda value: type(value) in (int, float) and 0 <= value <= float_info.max,
    float,
)


@dataclass(frozen=True, kw_only=True)
class Stage(Note, key=SECURE_KEY, what="the server's stage of secure aggregation"):
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
        rows: Rows of the message, each of one width.
    """

    stage: Annotated[str, _STAGE]
    session: Annotated[str, _SESSION]
    slot: Annotated[int, COUNT]
    threshold: Annotated[int, _THRESHOLD]
    range: Annotated[float, _AMOUNT] = 0.0
    dense_range: Annotated[float, _AMOUNT] = 0.0
    levels: Annotated[int, _LEVELS] = 0
    width: Annotated[int, _WIDTH] = 0
    max_weight: Annotated[float, _AMOUNT] = 0.0
    weight: Annotated[str, TEXT] = ""
    norm: Annotated[float, _AMOUNT] = 0.0
    metrics: Annotated[tuple[str, ...], NAMES] = ()
    rows: bytes = field(default=b"", repr=False)

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write the stage and its rows into a message's configuration."""
        config[ROWS_KEY] = self.rows
        super().attach(config)

    @classmethod
    def detach(cls, config: MutableMapping[str, Any]) -> Self | None:
        """Take stage and rows out of a message's configuration; see `Note.detach`."""
        rows, found = config.pop(ROWS_KEY, b""), super().detach(config)
        if found is None:
            return None
        if not isinstance(rows, bytes):
            _refuse(f"has rows of type {type(rows).__name__}", Reason.TERMS)
        units = (found.range, found.dense_range, found.max_weight, found.levels, found.width)
        if found.stage == MASKED and not all(units):
            _refuse("asks for masked numbers and does not say in which units", Reason.TERMS)
        return replace(found, rows=rows)


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
    rows = [blob[start : start + step] for start in range(0, len(blob), step)]
    slots = [int.from_bytes(row[:SLOT_BYTES], "little") for row in rows]
    if slots != sorted(set(slots)):
        _refuse("lists slots that do not rise", Reason.VALUES)
    return {slot: row[SLOT_BYTES:] for slot, row in zip(slots, rows, strict=True)}


def answer_bytes(record: Mapping[str, Any], key: str, size: int) -> bytes:
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

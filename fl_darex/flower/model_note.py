"""How the model comes to a client: in full, or as what changed since a version that it holds.

A message's arrays are then tensors in full (any number of them) and packets, which are applied
in order. What they start from and what comes out rides in the message's configuration, as does
the greeting that asks a client what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from flwr.app import Array, ArrayRecord

from fl_darex.flower.records import PACKET_STYPE, packet_array
from fl_darex.wire.json_notes import DIGITS, NAMES, TEXT, Note, Rule, is_hex

DELIVERY_KEY = "darex.model"
GREETING_KEY = "darex.greeting"
HELD_KEY = "darex.held"
DIGESTS_KEY = "darex.digests"
MISSING = "darex.missing"
"""Name of the record in the reply of a client that does not hold what it should."""


_MAYBE = Rule("16 hexadecimal digits or empty", lambda value: value == "" or is_hex(value, 16))


@dataclass(frozen=True, kw_only=True)
class ModelNote(Note, key=DELIVERY_KEY, what="the server's delivery"):
    """What the arrays of a message are.

    Attributes:
        run: The run's own 16 hexadecimal digits: where a client keeps its versions.
        start: Version that the message builds on, 16 digits; empty: the arrays are everything.
        model: Version that comes out.
        dense: Names of tensors whose whole change is sent.
        record: Name of the ArrayRecord that stands for the model; empty: there is no other.
    """

    run: Annotated[str, DIGITS]
    start: Annotated[str, _MAYBE]
    model: Annotated[str, DIGITS]
    dense: Annotated[tuple[str, ...], NAMES] = ()
    record: Annotated[str, TEXT] = ""


@dataclass(frozen=True, kw_only=True)
class Greeting(Note, key=GREETING_KEY, what="the server's greeting"):
    """What the server says when it asks a client which partition it has, and what it holds.

    Attributes:
        run: The run's own 16 hexadecimal digits.
        first: Version of the model before round 1, 16 digits; empty: the server keeps no versions,
            and what clients hold is of no use to it.
    """

    run: Annotated[str, DIGITS]
    first: Annotated[str, _MAYBE]


def delivered(record: ArrayRecord) -> tuple[dict[str, Array], list[bytes]]:
    """Return the tensors in full, by name, and the packets, in order, of a message's arrays."""
    tensors = {name: array for name, array in record.items() if array.stype != PACKET_STYPE}
    return tensors, [array.data for array in record.values() if array.stype == PACKET_STYPE]


def model_record(tensors: ArrayRecord, packets: Iterable[bytes]) -> ArrayRecord:
    """Return the arrays of a message: tensors in full and packets that are applied in order."""
    arrays: dict[str, Array] = dict(tensors)
    for index, packet in enumerate(packets):
        name = f"darex.{index}"
        while name in arrays:
            name += "."
        arrays[name] = packet_array(packet)
    return ArrayRecord(arrays)

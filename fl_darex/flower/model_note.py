"""How the model comes to a client: in full, or as what changed since a version that it holds.

A message's arrays are then tensors in full (any number of them) and packets, which are applied
in order. What they start from and what comes out rides in the message's configuration, as does
the greeting that asks a client what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import Array, ArrayRecord

from fl_darex.flower.records import PACKET_STYPE, packet_array
from fl_darex.wire.json_notes import WIRE_VERSION, Rules, dump, is_hex, is_names, load

DELIVERY_KEY = "darex.model"
GREETING_KEY = "darex.greeting"
HELD_KEY = "darex.held"
DIGESTS_KEY = "darex.digests"
MISSING = "darex.missing"
"""Name of the record in the reply of a client that does not hold what it should."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What the arrays of a message are.

    Attributes:
        run: The run's own 16 hexadecimal digits: where a client keeps its versions.
        start: Version that the message builds on, 16 digits; empty: the arrays are everything.
        model: Version that comes out.
        dense: Names of tensors whose whole change is sent.
        record: Name of the ArrayRecord that stands for the model; empty: there is no other.
        version: Wire version.
    """

    run: str
    start: str
    model: str
    dense: tuple[str, ...] = ()
    record: str = ""
    version: int = WIRE_VERSION

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write the delivery into a message's configuration."""
        config[DELIVERY_KEY] = dump(asdict(self))

    @classmethod
    def detach(cls, config: MutableMapping[str, Any]) -> Delivery | None:
        """Take the delivery out of a message's configuration; None where there is none.

        Raises:
            PacketError: If it is not one that this version understands.
        """
        text = config.pop(DELIVERY_KEY, None)
        if text is None:
            return None
        fields = load(text, _DELIVERY, "the server's delivery")
        return cls(**fields | {"dense": tuple(fields["dense"])})


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """What the server says when it asks a client what it holds.

    Attributes:
        run: The run's own 16 hexadecimal digits.
        first: Version of the model before round 1, 16 digits.
        version: Wire version.
    """

    run: str
    first: str
    version: int = WIRE_VERSION

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write the greeting into a message's configuration."""
        config[GREETING_KEY] = dump(asdict(self))

    @classmethod
    def detach(cls, config: MutableMapping[str, Any]) -> Greeting | None:
        """Take the greeting out of a message's configuration; None where there is none.

        Raises:
            PacketError: If it is not one that this version understands.
        """
        text = config.pop(GREETING_KEY, None)
        return None if text is None else cls(**load(text, _GREETING, "the server's greeting"))


def delivered(record: ArrayRecord) -> tuple[dict[str, Array], list[bytes]]:
    """Return the tensors in full, by name, and the packets, in order, of a message's arrays."""
    tensors = {name: array for name, array in record.items() if array.stype != PACKET_STYPE}
    return tensors, [array.data for array in record.values() if array.stype == PACKET_STYPE]


def delivery_record(tensors: ArrayRecord, packets: Iterable[bytes]) -> ArrayRecord:
    """Return the arrays of a message: tensors in full and packets that are applied in order."""
    arrays: dict[str, Array] = dict(tensors)
    for index, packet in enumerate(packets):
        arrays[_free_name(arrays, index)] = packet_array(packet)
    return ArrayRecord(arrays)


def _free_name(taken: Iterable[str], index: int) -> str:
    name = f"darex.{index}"
    while name in taken:
        name = f"{name}."
    return name


_DELIVERY: Rules = {
    "run": ("16 hexadecimal digits", lambda v: is_hex(v, 16)),
    "start": ("16 hexadecimal digits or empty", lambda v: v == "" or is_hex(v, 16)),
    "model": ("16 hexadecimal digits", lambda v: is_hex(v, 16)),
    "dense": ("a list of names", is_names),
    "record": ("text", lambda v: isinstance(v, str)),
    "version": ("an integer", lambda v: type(v) is int),
}
_GREETING: Rules = {
    "run": ("16 hexadecimal digits", lambda v: is_hex(v, 16)),
    "first": ("16 hexadecimal digits", lambda v: is_hex(v, 16)),
    "version": ("an integer", lambda v: type(v) is int),
}

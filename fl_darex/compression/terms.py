"""The terms of a round: what the server tells a client about the reply it expects.

They ride in the message's own ConfigRecord as one JSON text, so clients need no settings and
records that other Flower mods expect are left alone. The server keeps its own copy and only
compares what a packet claims with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from fl_darex.compression.methods import METHODS
from fl_darex.compression.uplink import AUTO, Uplink
from fl_darex.errors import PacketError, Reason
from fl_darex.positions import ListedMask, SeededMask
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.header import NO_VERSION
from fl_darex.wire.json_notes import COUNT, DIGITS, TEXT, Note, Rule

CONFIG_KEY = "darex"
"""Key of the terms in a message's ConfigRecord."""


@dataclass(frozen=True)
class Terms(Note, key=CONFIG_KEY, what="the server's terms", speaks=4):
    """What one client's reply in one round must look like.

    Attributes:
        uplink: What is asked of all.
        round: The federated round, from 1.
        slot: The client's partition, unique among the clients of the run.
        version: Version of the model in the message, 8 bytes; the packet repeats it.
        record: Name of the ArrayRecord that is the model; empty: there is no other.
        counted: The last round in which this client's reply counted, for methods that remember
            something; 0: none did.

    Raises:
        ValueError: If the mask is ``"auto"``, which no client can draw.
    """

    uplink: Uplink
    round: int
    slot: int
    version: bytes = NO_VERSION
    record: str = ""
    counted: int = 0

    rules: ClassVar = {
        # `Uplink` itself says what most of its settings may be.
        **{one.name: Rule("", lambda value: True) for one in fields(Uplink)},
        "q": Rule("a number or a rule", lambda value: type(value) in (int, float, str)),
        "dense_below": COUNT,
        "options": Rule("an object", lambda value: isinstance(value, dict)),
        "round": COUNT,
        "slot": COUNT,
        "counted": COUNT,
        "model": DIGITS,
        "record": TEXT,
    }
    usual: ClassVar = {
        "q": "dare",
        "values": "fp16",
        "scale": "unbiased",
        "mask": "client",
        "count": "random",
        "rotate": True,
        "mask_first": False,
        "dense": [],
        "dense_below": 0,
        "options": {},
        "record": "",
        "counted": 0,
    }

    def __post_init__(self) -> None:
        if self.uplink.mask == AUTO:
            raise ValueError("mask = 'auto' is for the server to decide; terms name the mask")

    @property
    def drawn(self) -> SeededMask:
        """The entries that this client draws in this round."""
        return self.uplink.drawn(self.round, self.slot)

    @property
    def listed(self) -> ListedMask:
        """The name of positions that the client chooses by value; there are none in it yet."""
        return ListedMask({}, self.uplink.seed, self.round, self.drawn.slot)

    def fields(self) -> dict[str, Any]:
        """Return what is asked of all, and what this client alone is told."""
        asked = self.uplink
        return asdict(asked) | {
            "q": "dare" if asked.q == "dare" else asked.rule or asked.divisor,
            "round": self.round,
            "slot": self.slot,
            "model": self.version.hex(),
            "record": self.record,
            "counted": self.counted,
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Return the terms; raise `PacketError` if their settings do not go together."""
        own = {name: fields.pop(name) for name in ("round", "slot", "record", "counted")}
        version = bytes.fromhex(fields.pop("model"))
        try:
            return cls(uplink=Uplink(**fields), version=version, **own)
        except ValueError as error:
            text = f"the server's terms: {error}{_to_register(fields)}"
            raise PacketError(text, Reason.TERMS) from None


def _to_register(fields: Mapping[str, Any]) -> str:
    """Return what to do where terms name something that this side does not know."""
    for key, known, argument in (("method", METHODS, "methods"), ("values", CODINGS, "codings")):
        if isinstance(fields[key], str) and fields[key] not in known:
            return f"; if it is one of your own, give this client DarexMod({argument}=[...])"
    return ""

"""The terms of a round: what the server tells a client about the reply it expects.

They ride in the message's own ConfigRecord as one JSON text, so clients need no settings and
records that other Flower mods expect are left alone. The server keeps its own copy and only
compares what a packet claims with it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from fl_darex.masks import ONE
from fl_darex.positions import SeededMask
from fl_darex.wire.json_notes import WIRE_VERSION, Rules, dump, is_hex, is_names, load
from fl_darex.wire.values import CODINGS

CONFIG_KEY = "darex"
"""Key of the terms in a message's ConfigRecord."""

SHARED = -1
"""The mask slot that stands for all clients of a round."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one client's reply in one round must look like.

    Attributes:
        method: A row of `fl_darex.compression.compressor.COMPRESSORS`.
        kept: Keep threshold in units of 2**-32.
        q: The number by which the server divides survivors.
        values: A row of `fl_darex.wire.values.CODINGS`.
        seed: The run's seed.
        round: The federated round, from 1.
        slot: The client's partition, unique among the clients of the run.
        shared: Whether all clients of the round use one mask.
        exact: Whether each tensor keeps an exact number of entries.
        columns: Keep threshold of input columns, of structured pruning; 0: the method has none.
        scope: Among which entries the largest are chosen, of methods that look at the values.
        search: How the client chooses q; empty: it is ``q``.
        dense: Names of tensors whose whole delta is sent.
        base: Version of the model in the message, 16 hexadecimal digits; the packet repeats it.
        record: Name of the ArrayRecord that is the model; empty: there is no other.
        version: Wire version; a client refuses one that it does not know.
    """

    method: str
    kept: int
    q: float
    values: str
    seed: int
    round: int
    slot: int
    shared: bool = False
    exact: bool = False
    columns: int = 0
    scope: str = "layer"
    search: str = ""
    dense: tuple[str, ...] = ()
    base: str = "0" * 16
    record: str = ""
    version: int = WIRE_VERSION

    @property
    def p(self) -> float:
        """Fraction dropped."""
        return 1.0 - self.kept / ONE

    @property
    def drawn(self) -> SeededMask:
        """The entries that this client draws in this round."""
        slot = SHARED if self.shared else self.slot
        return SeededMask(self.seed, self.round, slot, self.kept, self.exact)

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write the terms into a message's configuration."""
        config[CONFIG_KEY] = dump(asdict(self))

    @classmethod
    def detach(cls, config: MutableMapping[str, Any]) -> Terms | None:
        """Take the terms out of a message's configuration; None where there are none.

        Raises:
            PacketError: If they are not terms that this version understands.
        """
        text = config.pop(CONFIG_KEY, None)
        if text is None:
            return None
        fields = load(text, _RULES, "the server's terms")
        return cls(**fields | {"dense": tuple(fields["dense"]), "q": float(fields["q"])})


_WORD = 1 << 63
_RULES: Rules = {
    "method": ("text", lambda v: isinstance(v, str)),
    "kept": ("an integer in [1, 2**32]", lambda v: type(v) is int and 0 < v <= ONE),
    "q": ("a number in (0, 1]", lambda v: type(v) in (int, float) and 0.0 < v <= 1.0),
    "values": (f"one of {sorted(CODINGS)}", lambda v: isinstance(v, str) and v in CODINGS),
    "seed": ("an integer in [0, 2**63)", lambda v: type(v) is int and 0 <= v < _WORD),
    "round": ("an integer in [0, 2**63)", lambda v: type(v) is int and 0 <= v < _WORD),
    "slot": ("an integer in [0, 2**63)", lambda v: type(v) is int and 0 <= v < _WORD),
    "shared": ("true or false", lambda v: type(v) is bool),
    "exact": ("true or false", lambda v: type(v) is bool),
    "columns": ("an integer in [0, 2**32]", lambda v: type(v) is int and 0 <= v <= ONE),
    "scope": ("text", lambda v: isinstance(v, str)),
    "search": ("text", lambda v: isinstance(v, str)),
    "dense": ("a list of names", is_names),
    "base": ("16 hexadecimal digits", lambda v: is_hex(v, 16)),
    "record": ("text", lambda v: isinstance(v, str)),
    "version": ("an integer", lambda v: type(v) is int),
}

"""A compressor: one object with a client half and a server half, built from the same terms.

``delta -> prune -> scale -> packet`` on the client, ``packet -> checked packet`` on the server. The
null compressor sends the new values as they are, so "off" is not a special case anywhere else.
A new method is one function and one row in `COMPRESSORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from fl_darex import pruning
from fl_darex.compression.terms import Terms
from fl_darex.delta import Delta, Layout
from fl_darex.errors import DeltaError, PacketError, Reason, nearest
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, Mask, StructuredMask
from fl_darex.pruning.structured import draw_structured
from fl_darex.rescaling import rescale
from fl_darex.survivors import Q, Survivors
from fl_darex.wire.packet import encode, open_packet
from fl_darex.wire.reader import Packet


@dataclass(frozen=True)
class Local:
    """What a client can find out with its own model and examples.

    Attributes:
        norms: Returns the norms of each weight's inputs, which WANDA needs; None: it cannot.
        search: Returns the q of survivors, by the named rule; None: it cannot.
    """

    norms: Callable[[], Mapping[str, ArrayLike]] | None = None
    search: Callable[[Survivors, str], Q] | None = None


NOTHING = Local()


class Compressor(Protocol):
    """Both halves of a compression method."""

    @property
    def seeded(self) -> bool:
        """Whether its positions follow from the seed, so that clients may share a mask."""

    def compress(self, delta: Delta, terms: Terms, local: Local = NOTHING) -> bytes | None:
        """Return the packet that stands for ``delta``; None: send the tensors themselves."""

    def decompress(self, packet: bytes, layout: Layout, terms: Terms) -> Packet:
        """Return a packet that was checked from end to end, or raise `PacketError`."""


class Dense:
    """The null compressor: replies hold the new values, nothing is dropped."""

    seeded = True

    def compress(self, delta: Delta, terms: Terms, local: Local = NOTHING) -> None:
        """Return None: the reply is left as it is."""
        return None

    def decompress(self, packet: bytes, layout: Layout, terms: Terms) -> Packet:
        """Refuse: a dense round has no packets."""
        raise PacketError(
            "a packet came although this round asked for dense replies", Reason.UNEXPECTED
        )


Prune = Callable[[Delta, Terms, Local], Survivors]


@dataclass(frozen=True)
class Pruned:
    """Sends what pruning leaves of the delta, unscaled, with q beside it.

    Attributes:
        prune: Chooses the survivors.
        mask: What the server knows of where they are.
        seeded: Whether that is all.
    """

    prune: Prune
    mask: Callable[[Terms], Mask]
    seeded: bool

    def compress(self, delta: Delta, terms: Terms, local: Local = NOTHING) -> bytes:
        """Prune, scale and encode."""
        survivors = self.prune(delta, terms, local)
        q: Any = terms.q
        if terms.search:
            if local.search is None:
                raise DeltaError(_lacks("q is searched on the client", "search"))
            q = _checked(local.search(survivors, terms.search), terms)
        survivors = replace(survivors, q=q) if terms.search else rescale(survivors, q)
        base = bytes.fromhex(terms.base)
        return encode(survivors, terms.values, base=base, sender=terms.slot)

    def decompress(self, packet: bytes, layout: Layout, terms: Terms) -> Packet:
        """Check against the server's own mask, q and coding."""
        base, q = bytes.fromhex(terms.base), None if terms.search else terms.q
        return open_packet(packet, layout, self.mask(terms), q=q, values=terms.values, base=base)


def _dare(delta: Delta, terms: Terms, local: Local) -> Survivors:
    return pruning.draw(delta, terms.drawn)


def _structured(delta: Delta, terms: Terms, local: Local) -> Survivors:
    return draw_structured(delta, _columns(terms))


def _magnitude(delta: Delta, terms: Terms, local: Local) -> Survivors:
    return pruning.magnitude(delta, terms.p, **_listing(terms))


def _wanda(delta: Delta, terms: Terms, local: Local) -> Survivors:
    if local.norms is None:
        raise DeltaError(_lacks("method 'wanda' weighs changes by activations", "norms"))
    return pruning.wanda(delta, terms.p, local.norms(), **_listing(terms))


def _listing(terms: Terms) -> dict[str, Any]:
    drawn = terms.drawn
    names = {"seed": drawn.seed, "round_": drawn.round, "slot": drawn.slot}
    return {"scope": terms.scope, **names}


def _columns(terms: Terms) -> StructuredMask:
    return StructuredMask(terms.drawn, terms.columns)


def _listed(terms: Terms) -> ListedMask:
    drawn = terms.drawn
    return ListedMask({}, drawn.seed, drawn.round, drawn.slot)


COMPRESSORS: dict[str, Compressor] = {
    "dense": Dense(),
    "dare": Pruned(_dare, lambda terms: terms.drawn, seeded=True),
    "structured": Pruned(_structured, _columns, seeded=True),
    "magnitude": Pruned(_magnitude, _listed, seeded=False),
    "wanda": Pruned(_wanda, _listed, seeded=False),
}


def compressor(method: str) -> Compressor:
    """Return the compressor of that name.

    Raises:
        PacketError: If there is none.
    """
    if method not in COMPRESSORS:
        hint = nearest(method, COMPRESSORS)
        raise PacketError(
            f"unknown method {method!r}; known: {sorted(COMPRESSORS)}{hint}", Reason.TERMS
        )
    return COMPRESSORS[method]


def _checked(q: Q, terms: Terms) -> Q:
    """Return a q that the server will accept."""
    found, lowest = np.asarray(q, dtype=np.float32), np.float32(terms.kept / ONE)
    if not ((found >= lowest) & (found <= 1.0)).all():
        raise DeltaError(f"the search for q found {q!r}, which is not in [1-p, 1] = [{lowest}, 1]")
    return q if isinstance(q, np.ndarray) else max(float(q), terms.kept / ONE)


def _lacks(what: str, argument: str) -> str:
    return f"{what}, which this client cannot do; give it DarexMod({argument}=...)"

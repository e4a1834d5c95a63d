"""A compressor: one object with a client half and a server half, built from the same terms.

``delta -> prune -> scale -> packet`` on the client, ``packet -> checked packet`` on the server. The
null compressor sends the new values as they are, so "off" is not a special case anywhere else.
A new method is one class and one row in `COMPRESSORS`.
"""

from __future__ import annotations

from typing import Protocol

from fl_darex.delta import Delta, Layout
from fl_darex.errors import PacketError, Reason, nearest
from fl_darex.pruning import draw
from fl_darex.rescaling import rescale
from fl_darex.wire.packet import encode, open_packet
from fl_darex.wire.reader import Packet
from fl_darex.wire.terms import Terms


class Compressor(Protocol):
    """Both halves of a compression method."""

    def compress(self, delta: Delta, terms: Terms) -> bytes | None:
        """Return the packet that stands for ``delta``; None: send the tensors themselves."""

    def decompress(self, packet: bytes, layout: Layout, terms: Terms) -> Packet:
        """Return a packet that was checked from end to end, or raise `PacketError`."""


class Dense:
    """The null compressor: replies hold the new values, nothing is dropped."""

    def compress(self, delta: Delta, terms: Terms) -> None:
        """Return None: the reply is left as it is."""
        return None

    def decompress(self, packet: bytes, layout: Layout, terms: Terms) -> Packet:
        """Refuse: a dense round has no packets."""
        raise PacketError(
            "a packet came although this round asked for dense replies", Reason.UNEXPECTED
        )


class Dare:
    """DARE: a seeded random part of the delta, unscaled, with q beside it."""

    def compress(self, delta: Delta, terms: Terms) -> bytes:
        """Prune, scale and encode."""
        survivors = rescale(draw(delta, terms.mask), terms.q)
        base = bytes.fromhex(terms.base)
        return encode(survivors, terms.values, base=base, sender=terms.slot)

    def decompress(self, packet: bytes, layout: Layout, terms: Terms) -> Packet:
        """Check against the server's own mask, q and coding."""
        base = bytes.fromhex(terms.base)
        return open_packet(packet, layout, terms.mask, q=terms.q, values=terms.values, base=base)


COMPRESSORS: dict[str, Compressor] = {"dense": Dense(), "dare": Dare()}


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

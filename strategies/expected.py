"""What a run is expected to take in bytes, from its settings and the model."""

from __future__ import annotations

from dataclasses import dataclass

from fl_darex.compression.expected import ENVELOPE_BYTES, packet_bytes
from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Layout
from fl_darex.masks import ONE, places
from fl_darex.secagg import SecureAggregation
from fl_darex.wire.header import HEADER_BYTES

EMPTY_BYTES = 1200
"""Of a message without arrays, to a client that holds the model: settings, terms and ids."""


@dataclass(frozen=True, kw_only=True)
class Downlink:
    """How the model goes to the clients, as far as bytes depend on it.

    Attributes:
        policy: Name of a row of `fl_darex.compression.downlink.POLICIES`.
        keep: Fraction of a step that ``"server"`` sends, in units of 2**-32.
        values: How a step's numbers are written.
        held: Whether clients are taken to hold the first model.
    """

    policy: str
    keep: int
    values: str
    held: bool


def up_bytes(layout: Layout, uplink: Uplink, secure: SecureAggregation | None, clients: int) -> int:
    """Return the bytes of a client's reply with a packet, about.

    Args:
        layout: The model's.
        uplink: What is asked of clients.
        secure: Settings of sums of which no part is seen; None: updates come in the clear.
        clients: How many take part in a round.
    """
    if secure is None:
        listed = 0.0 if uplink.how.seeded else uplink.keep / ONE
        layout = uplink.how.packet_layout(layout, uplink)
        return packet_bytes(layout, uplink.keep / ONE, uplink.values, listed, uplink.rule)
    numbers = sum(spec.numel for spec in layout.pruned) * uplink.keep / ONE
    numbers += sum(spec.numel for spec in (*layout.dense, *layout.raw))
    try:
        width = secure.ring_for(clients).width
    except ValueError:  # it is among the problems
        width = 4
    return ENVELOPE_BYTES + HEADER_BYTES + round(numbers) * width


def _union(uplink: Uplink, clients: int) -> float:
    """Return the share of entries that some client of a round sends; with ``"auto"``, in round 1.

    Disjoint masks are taken to be of as few groups as there can be.
    """
    keep, together = uplink.keep / ONE, 1
    if uplink.mask == "round":
        clients = 1
    elif uplink.mask == "disjoint":
        together = places(uplink.keep)
    groups, rest = divmod(clients, together)
    return 1 - (1 - keep * together) ** groups * (1 - keep * rest)


def down_bytes(
    layout: Layout, uplink: Uplink, downlink: Downlink, clients: int, plain: int
) -> int | None:
    """Return the bytes of a later message to a client, about; None: an own policy decides.

    Args:
        layout: The model's.
        uplink: What is asked of clients.
        downlink: How the model goes to them.
        clients: How many take part in a round.
        plain: Bytes of a message with the whole model.
    """
    if downlink.policy == "dense":
        return plain
    if downlink.policy == "server":
        share = downlink.keep / ONE
        return min(plain, packet_bytes(layout, share, downlink.values, share))
    if downlink.policy != "update":
        return None
    share = _union(uplink, clients)
    if not uplink.how.packs:
        share = 1.0
    listed = 0.0 if uplink.how.seeded else share
    return min(plain, packet_bytes(layout, share, downlink.values, listed))

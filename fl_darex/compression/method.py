"""The protocol of a compression method: its client half, its server half, its options, its name.

``delta -> prune -> scale -> packet`` on the client, ``packet -> checked update`` on the server. A
new method is one file in `fl_darex.compression.methods` and one row in its table, or somebody's own
class anywhere: ``compress.method = "package.module:Class"``, ``DarexMod(methods=[...])``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fl_darex.change import Arrays
from fl_darex.checks import shown
from fl_darex.compression.update import Before, SparseUpdate, Update
from fl_darex.compression.weighted_sum import Part, weighted_mean
from fl_darex.delta import Delta, Layout
from fl_darex.errors import DeltaError
from fl_darex.masks import ONE
from fl_darex.options import Option
from fl_darex.positions import Mask
from fl_darex.survivors import Numbers, Q, Survivors
from fl_darex.wire.packet import encode, open_packet
from fl_darex.wire.reader import read_packet

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink

State = dict[str, Numbers]
"""What a client keeps from one round for the next, flattened tensors by name; empty: nothing."""


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


class Method:
    """Sends what pruning leaves of the delta, unscaled, with q beside it.

    A method of one's own overrides `prune`, or `compress` where it remembers something, and what
    else differs. Objects of it hold no state: a server and all its clients may share one.

    Attributes:
        name: By which it is chosen, and by which the terms of a round call it.
        options: Its settings beside p, q, values and mask; see `fl_darex.options`.
        seeded: Whether the positions follow from seed, round and slot alone. Then they are not
            sent, 1-p is the unbiased q, and the clients of a round may share a mask.
        packs: Whether clients send packets at all.
        remembers: Whether `compress` keeps something for the next round.
        feeds_back: Whether what a packet does not deliver is added to the next change. Then
            nothing is made up for at once: q is 1.
        adds_up: Whether updates are summands, which clipping, noise, and strategies that are given
            each client's own take for granted.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    seeded: ClassVar[bool] = False
    packs: ClassVar[bool] = True
    remembers: ClassVar[bool] = False
    feeds_back: ClassVar[bool] = False
    adds_up: ClassVar[bool] = True

    def check(self, uplink: Uplink) -> None:
        """Raise `ValueError` where settings do not go together; the message begins with a key."""

    def packet_layout(self, layout: Layout, uplink: Uplink) -> Layout:
        """Return the layout of a packet: the model's, where tensors are sent as they are."""
        return layout

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return what survives of a client's change."""
        raise TypeError(f"{type(self).__name__} defines neither prune nor compress")

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes | None, State]:
        """Return the packet that stands for a delta, and what the client keeps.

        Args:
            delta: What the client's training changed.
            terms: What the server asks for.
            local: What the client can find out by itself.
            state: What this returned in the last round in which the client's reply counted; it
                may be changed in place.

        Returns:
            The packet, or None: the reply's tensors go as they are; and the state, which is kept
            only if the server counts the reply.

        Raises:
            DeltaError: If the delta holds NaN, or the client cannot do what is asked.
        """
        return self.encoded(self.prune(delta, terms, local), terms, local), {}

    def encoded(self, survivors: Survivors, terms: Terms, local: Local = NOTHING) -> bytes:
        """Return survivors as a packet, with the q that the terms name or the client finds."""
        uplink = terms.uplink
        q: Q = uplink.divisor
        if uplink.rule:
            if local.search is None:
                raise DeltaError(lacks("q is searched on the client", "search"))
            q = _checked(local.search(survivors, uplink.rule), uplink.keep)
        scaled = replace(survivors, q=q)
        values, version = uplink.values, terms.version
        return encode(scaled, values, base=version, sender=terms.slot, scale=uplink.scale)

    def mask(self, terms: Terms) -> Mask:
        """Return what the server knows of where survivors are."""
        return terms.drawn if self.seeded else terms.listed

    def open(self, packet: bytes, layout: Layout, terms: Terms) -> Update:
        """Return a packet from a stranger as an update, checked from end to end.

        Raises:
            PacketError: If it is anything but an answer to these terms.
        """
        uplink = terms.uplink
        q = None if uplink.rule else uplink.divisor
        mask, version = self.mask(terms), terms.version
        opened = open_packet(packet, layout, mask, q=q, values=uplink.values, base=version)
        return SparseUpdate.of_packet(opened)

    def combine(
        self, before: Before, layout: Layout, parts: Sequence[Part], terms: Terms
    ) -> tuple[Arrays | None, list[Part]]:
        """Return the model that the updates of a round make together: their weighted mean.

        A method whose updates are no summands, such as votes, does it in its own way, and says so
        in `adds_up`; see `weighted_mean` for the arguments and what is returned. ``terms`` are
        those of any of the clients.
        """
        return weighted_mean(before, layout, parts)


def with_left_over(delta: Delta, state: State | None) -> State:
    """Return what is to be sent where errors are fed back: the change, and what was left before.

    Args:
        delta: What changed.
        state: Of `left_over`; None or empty: nothing was left.

    Returns:
        The numbers of each pruned and each dense tensor, flattened; the caller's own.
    """
    left, layout = state or {}, delta.layout
    return {
        # What was left may be of another type: of a run with other values, restored.
        spec.name: np.add(left.get(spec.name, 0), delta.whole(spec.name), dtype=delta.dtype)
        for spec in (*layout.pruned, *layout.dense)
    }


def left_over(whole: Mapping[str, Numbers], packet: bytes, layout: Layout) -> State:
    """Return what a packet does not deliver of some numbers: the state of error feedback.

    What was sent, as the server reads it and not divided by q, and what is left add up to what was
    there, to the round-off of the numbers' type (Stich et al., "Sparsified SGD with memory", 2018).

    Args:
        whole: The numbers that were to be sent, flattened, by tensor; changed in place.
        packet: What was made of them.
        layout: The model's layout.
    """
    sent = read_packet(packet, layout).survivors()
    for name, numbers in sent.values.items():
        whole[name][sent.positions[name]] -= numbers
    for name, numbers in sent.dense.items():
        if name in whole:
            whole[name] -= numbers
    return dict(whole)


def lacks(what: str, argument: str) -> str:
    """Return what to do where a client cannot do what a server asks for."""
    return f"{what}, which this client cannot do; give it DarexMod({argument}=...)"


def _checked(q: Q, keep: int) -> Q:
    """Return a q that the server will accept."""
    lowest = np.float32(keep / ONE)
    try:
        found = np.asarray(q).astype(np.float32, casting="same_kind")
    except (TypeError, ValueError):
        raise DeltaError(f"search must return a number or an array, got {shown(q)}") from None
    if not ((found >= lowest) & (found <= 1.0)).all():
        raise DeltaError(f"the search for q found {q!r}, which is not in [1-p, 1] = [{lowest}, 1]")
    return found if found.ndim else max(float(q), keep / ONE)

"""The null method: replies hold the new values, so "off" is not a special case anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

from fl_darex.compression.method import NOTHING, Local, Method, State
from fl_darex.delta import Delta, Layout
from fl_darex.errors import PacketError, Reason

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink


class Dense(Method):
    """Nothing is dropped, and nothing is packed."""

    name: ClassVar[str] = "dense"
    seeded: ClassVar[bool] = True
    packs: ClassVar[bool] = False

    def check(self, uplink: Uplink) -> None:
        """Refuse rules for q: there is nothing to divide."""
        if isinstance(uplink.q, str) and uplink.q != "dare":
            raise ValueError(f"q = {uplink.q!r} divides survivors; method = 'dense' has none")

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[None, State]:
        """Return None: the reply is left as it is."""
        return None, {}

    def open(self, packet: bytes, layout: Layout, terms: Terms) -> NoReturn:
        """Refuse: a dense round has no packets."""
        raise PacketError(
            "a packet came although this round asked for dense replies", Reason.UNEXPECTED
        )

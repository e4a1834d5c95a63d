"""What the mod tells the app behind it: the terms of the round that the app is trained for.

An app that trains only what its mask keeps has to know the mask before it trains. The mod reads the
terms and takes them out of the message, so it holds them here while the app runs: mask and layout
are then the very ones that the packet is made with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from fl_darex.change import Arrays
from fl_darex.compression.terms import Terms
from fl_darex.delta import Layout
from fl_darex.errors import DeltaError
from fl_darex.positions import Positions


@dataclass(frozen=True, eq=False)
class Told:
    """What a client is asked for in a round.

    Attributes:
        terms: The server's.
        layout: What becomes of each tensor of the model in the message.
    """

    terms: Terms
    layout: Layout

    @property
    def mask_first(self) -> bool:
        """Whether only what `positions` keeps may be trained."""
        return self.terms.uplink.mask_first

    def positions(self) -> Mapping[str, Positions]:
        """Return the sorted flat positions of each pruned tensor that may change.

        All other tensors of the layout are trained and sent whole. What has several names is one
        tensor: its first name counts, in the order of names.
        """
        return self.terms.uplink.how.mask(self.terms).in_layout(self.layout)


_TOLD: ContextVar[Told | None] = ContextVar("darex_told", default=None)


def told() -> Told | None:
    """Return what the running client is asked for; None without a mod, or where it asks nothing."""
    return _TOLD.get()


@contextmanager
def telling(what: Told) -> Iterator[None]:
    """Let `told` return something meanwhile."""
    token = _TOLD.set(what)
    try:
        yield
    finally:
        _TOLD.reset(token)


def check_on_mask(what: Told, layout: Layout, after: Arrays, before: Arrays) -> None:
    """Refuse a change beside the mask: it would be dropped, and nothing makes up for it.

    Args:
        what: What the client was asked for.
        layout: Its layout, with what is tied after the training.
        after: The tensors after the training.
        before: The tensors before it.

    Raises:
        DeltaError: If an entry changed that the mask drops.
    """
    where = what.positions()
    for spec in layout.pruned:
        new, old = after[spec.name].reshape(-1), before[spec.name].reshape(-1)
        kept = where[spec.name]
        beside = np.count_nonzero(new != old) - np.count_nonzero(new[kept] != old[kept])
        if beside:
            raise DeltaError(
                f"{beside} entries of {spec.name!r} changed that this round's mask drops, and the "
                "server asked to train what it keeps alone; the app finds it with "
                "fl_darex.clients.told()"
            )

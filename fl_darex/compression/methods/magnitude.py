"""Magnitude pruning (MP): the largest changes, as they are.

"DARE the Extreme", ICLR 2025, Sec. 3.2, https://arxiv.org/abs/2410.09344.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fl_darex.compression.method import Local, Method
from fl_darex.delta import Delta
from fl_darex.options import Option
from fl_darex.positions import ListedMask
from fl_darex.pruning.magnitude import magnitudes
from fl_darex.pruning.scores import SCOPES, keep_largest
from fl_darex.survivors import Survivors

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms

SCOPE = Option(
    default="layer",
    choices=SCOPES,
    help="magnitude, wanda, topk, dgc: among which entries the largest are kept",
)


class Magnitude(Method):
    """The ``1-p`` largest changes survive; their positions are listed in the packet."""

    name: ClassVar[str] = "magnitude"
    options: ClassVar[Mapping[str, Option]] = {"scope": SCOPE}

    def mask(self, terms: Terms) -> ListedMask:
        """Return that positions are listed, and of how many entries."""
        return replace(terms.listed, share=terms.uplink.keep)

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return the largest changes."""
        uplink = terms.uplink
        scope = str(uplink.options["scope"])
        return keep_largest(delta, uplink.keep, scope, magnitudes(delta), terms.listed)

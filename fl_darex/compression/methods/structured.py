"""Structured pruning: few input columns, and a random part of the entries in them.

"DARE the Extreme", ICLR 2025, Sec. C.10, https://arxiv.org/abs/2410.09344.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from fl_darex.compression.method import Local, Method
from fl_darex.delta import Delta
from fl_darex.masks import ONE
from fl_darex.options import Option
from fl_darex.positions import StructuredMask
from fl_darex.pruning.structured import COLUMNS, columns_kept, draw_structured
from fl_darex.rescaling.rules import CURVATURE
from fl_darex.survivors import Survivors

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink


class Structured(Method):
    """Like DARE, but entries of one input column survive or go together more often."""

    name: ClassVar[str] = "structured"
    seeded: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "columns": Option(
            default=COLUMNS,
            low=1e-9,
            high=1.0,
            help="structured: fraction of input columns that is kept",
        )
    }

    def check(self, uplink: Uplink) -> None:
        """Refuse fewer columns than entries, and what goes by single entries."""
        if uplink.q == CURVATURE:
            raise ValueError(
                f"q = {uplink.q!r} weighs the noise of entries that are drawn one by one, and "
                "'structured' draws columns: set method = 'dare', or another q"
            )
        if uplink.mask == "disjoint":
            raise ValueError(
                "mask = 'disjoint' is for method = 'dare', which draws entry by entry; "
                "'structured' draws columns, and clients' columns meet: use mask = 'client' or "
                "'round'"
            )
        keep, columns = uplink.keep / ONE, float(uplink.options["columns"])
        if columns < keep - 1e-9:
            raise ValueError(
                f"columns = {columns} keeps fewer entries than p = {1 - keep:g} does; "
                f"allowed: {keep:g} to 1"
            )

    def mask(self, terms: Terms) -> StructuredMask:
        """Return the columns and entries that the seed keeps."""
        uplink = terms.uplink
        columns = columns_kept(uplink.keep, float(uplink.options["columns"]))
        return StructuredMask(terms.drawn, columns)

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return what the round's mask keeps."""
        return draw_structured(delta, self.mask(terms))

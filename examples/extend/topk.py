"""Top-k with error feedback: what is not sent waits, and is added to the next change.

Stich et al., "Sparsified SGD with memory", 2018, https://arxiv.org/abs/1809.07599.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from fl_darex.compression import (
    NOTHING,
    Local,
    Method,
    Option,
    State,
    Terms,
    left_over,
    with_left_over,
)
from fl_darex.delta import Delta
from fl_darex.pruning.gather import gather_from
from fl_darex.pruning.largest import largest


class TopK(Method):
    """The largest entries of change and residual, of the whole model."""

    name: ClassVar[str] = "own-topk"
    remembers: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "fraction": Option(default=0.01, above=0.0, high=1.0, help="own-topk: part that is sent")
    }

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes, State]:
        """Return a packet of the largest entries, and all that it does not deliver."""
        whole = with_left_over(delta, state)
        pruned = {spec.name: whole[spec.name] for spec in delta.layout.pruned}
        entries = sum(numbers.size for numbers in pruned.values())
        count = max(1, round(float(terms.uplink.options["fraction"]) * entries))
        mask = replace(terms.listed, where=largest(pruned, count))
        packet = self.encoded(gather_from(whole, delta, mask), terms, local)
        return packet, left_over(whole, packet, delta.layout)

"""A way down: a random part of the server's step, drawn from the seed; the rest waits."""

from __future__ import annotations

from typing import ClassVar

from fl_darex.compression import DownlinkPolicy, State, StepTerms, left_over, with_left_over
from fl_darex.delta import Delta
from fl_darex.masks import SHARED
from fl_darex.positions import SeededMask
from fl_darex.pruning.gather import gather_from
from fl_darex.wire import encode


class RandomPart(DownlinkPolicy):
    """Sends ``1 - compress.downlink-p`` of the step, without positions, and keeps the rest."""

    name: ClassVar[str] = "random-part"
    versions: ClassVar[bool] = True

    def pack(self, step: Delta, terms: StepTerms, state: State) -> tuple[bytes, State]:
        """Return what the round's mask keeps of the step and of what was not sent before."""
        whole = with_left_over(step, state)
        mask = SeededMask(terms.seed, terms.round, SHARED, terms.keep)
        packet = encode(gather_from(whole, step, mask), terms.values, base=terms.version)
        return packet, left_over(whole, packet, step.layout)

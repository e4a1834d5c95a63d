"""``server``: the largest entries of the server's step; the rest waits for later rounds.

Error feedback: Stich et al., "Sparsified SGD with memory", 2018, https://arxiv.org/abs/1809.07599.
"""

from __future__ import annotations

from typing import ClassVar

from fl_darex.compression.downlink.policy import DownlinkPolicy, StepTerms, not_delivered
from fl_darex.compression.method import State, with_left_over
from fl_darex.delta import Delta
from fl_darex.masks import SHARED
from fl_darex.positions import ListedMask
from fl_darex.pruning.gather import gather_from
from fl_darex.pruning.largest import largest
from fl_darex.pruning.scores import kept_count
from fl_darex.wire.codings import CODINGS, scales_of
from fl_darex.wire.packet import encode


class LargestOfStep(DownlinkPolicy):
    """Sends the largest entries of the step and of what was not sent before.

    What does not get there is kept, too: see `not_delivered`.
    """

    name: ClassVar[str] = "server"
    versions: ClassVar[bool] = True

    def pack(self, step: Delta, terms: StepTerms, state: State) -> tuple[bytes, State]:
        """Return the largest entries; tensors that are never pruned are sent whole."""
        layout, whole = step.layout, with_left_over(step, state)
        pruned = {spec.name: whole[spec.name] for spec in layout.pruned}
        numel = sum(tensor.size for tensor in pruned.values())
        where = largest(pruned, kept_count(numel, terms.keep))
        mask = ListedMask(where, terms.seed, terms.round, SHARED)
        # What is kept back shrinks fastest where the numbers are met best, not on average.
        scale = scales_of(CODINGS[terms.values])[-1]
        survivors = gather_from(whole, step, mask)
        packet = encode(survivors, terms.values, base=terms.version, scale=scale)
        return packet, not_delivered(whole, step, packet)

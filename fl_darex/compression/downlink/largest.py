"""``server``: the largest entries of the server's step; the rest waits for later rounds.

Error feedback: Stich et al., "Sparsified SGD with memory", 2018, https://arxiv.org/abs/1809.07599.
"""

from __future__ import annotations

from typing import ClassVar

from fl_darex.compression.downlink.policy import DownlinkPolicy, StepTerms
from fl_darex.compression.method import State, with_left_over
from fl_darex.delta import Delta
from fl_darex.masks import SHARED
from fl_darex.positions import ListedMask
from fl_darex.pruning.gather import gather_from
from fl_darex.pruning.largest import largest
from fl_darex.pruning.scores import kept_count
from fl_darex.wire.packet import encode
from fl_darex.wire.reader import read_packet


class LargestOfStep(DownlinkPolicy):
    """Sends the largest entries of the step and of what was not sent before.

    What counts as sent is by how much the model that clients hold has moved, and not the numbers
    of the packet: added to a large entry, or to one in half precision, a small number is rounded.
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
        packet = encode(gather_from(whole, step, mask), terms.values, base=terms.version)
        sent = read_packet(packet, layout).survivors()
        for name, numbers in sent.values.items():
            positions = sent.positions[name]
            whole[name][positions] -= step.moved_by(name, numbers, positions)
        for name, numbers in sent.dense.items():
            whole[name] -= step.moved_by(name, numbers)
        return packet, whole

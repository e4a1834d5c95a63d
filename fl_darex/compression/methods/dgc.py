"""DGC, deep gradient compression: top-k of an accumulated momentum, ever sparser at first.

Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression: Reducing the Communication Bandwidth for
Distributed Training", ICLR 2018, https://arxiv.org/abs/1712.01887, Algorithm 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_darex.compression.feedback import Feedback, as_change
from fl_darex.compression.method import NOTHING, Local, State, left_over
from fl_darex.compression.methods.magnitude import SCOPE
from fl_darex.delta import Delta
from fl_darex.masks import ONE
from fl_darex.options import Option
from fl_darex.positions import ListedMask
from fl_darex.pruning.magnitude import magnitudes
from fl_darex.pruning.scores import keep_largest
from fl_darex.survivors import Survivors
from fl_darex.wire.reader import read_packet

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms

_MOMENTUM, _LEFT = "momentum of ", "left of "  # in the names of what is kept


class Dgc(Feedback):
    """Momentum is added up entry by entry, and both are forgotten where something is sent.

    Momentum correction (Eq. 4 to 6): ``u = m u + change; v = v + u``, and of v the ``1-p`` largest
    are sent. Momentum factor masking (Eq. 7): where v is sent, u is 0 from there on. Warm-up
    training: the share that is sent goes from 1 down to ``1-p`` in equal factors, one for each of
    ``warmup_rounds`` and the first round after them; four of these, and p = .999, are the paper's
    75, 93.75, 98.44, 99.6 and 99.9 %.

    The change of a round of local training stands for the gradient of a step, without its sign, and
    rounds stand for the paper's epochs. A client that is not asked keeps u and v. Clipping is that
    of local training; the factor N^-1/2 for N workers is left to its settings. Tensors that are
    sent whole have no momentum, as all of them is sent each time. With momentum .9 an entry gets
    ten times its change in the end, as with `FedAvgM`.
    """

    name: ClassVar[str] = "dgc"
    options: ClassVar[Mapping[str, Option]] = {
        "scope": SCOPE,
        "momentum": Option(
            default=0.9, low=0.0, below=1.0, help="dgc: part of the momentum that is kept"
        ),
        "warmup_rounds": Option(
            default=4, low=0, high=10**6, help="dgc: rounds in which more than 1-p is sent"
        ),
    }

    def mask(self, terms: Terms) -> ListedMask:
        """Return that positions are listed, and of how many entries in this round."""
        return replace(terms.listed, share=_keep(terms))

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return the largest entries of what was accumulated."""
        scope = str(terms.uplink.options["scope"])
        return keep_largest(delta, _keep(terms), scope, magnitudes(delta), terms.listed)

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes, State]:
        """Return the packet; and u and v, without what was sent."""
        known, layout, factor = state or {}, delta.layout, float(terms.uplink.options["momentum"])
        momentum, whole = State(), State()
        for spec in (*layout.pruned, *layout.dense):
            kept = np.multiply(known.get(_MOMENTUM + spec.name, 0), factor, dtype=delta.dtype)
            momentum[spec.name] = delta.whole(spec.name) + kept
            before = known.get(_LEFT + spec.name, 0)
            whole[spec.name] = np.add(before, momentum[spec.name], dtype=delta.dtype)
        packet = self.encoded(self.prune(as_change(whole, delta), terms, local), terms, local)
        for name, positions in read_packet(packet, layout).mask.in_layout(layout).items():
            momentum[name][positions] = 0
        left = left_over(whole, packet, layout)
        return packet, {
            **{_MOMENTUM + spec.name: momentum[spec.name] for spec in layout.pruned},
            **{_LEFT + name: rest for name, rest in left.items()},
        }


def _keep(terms: Terms) -> int:
    """Return the share that is sent in a round, in units of 2**-32."""
    last = int(terms.uplink.options["warmup_rounds"]) + 1
    if terms.round >= last:
        return terms.uplink.keep
    share: float = (terms.uplink.keep / ONE) ** (terms.round / last)
    return min(ONE, max(terms.uplink.keep, round(share * ONE)))

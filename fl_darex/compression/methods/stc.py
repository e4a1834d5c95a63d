"""STC, sparse ternary compression: the largest entries, each as plus or minus one magnitude.

Sattler, Wiedemann, Müller, Samek, "Robust and Communication-Efficient Federated Learning from
Non-IID Data", IEEE TNNLS 2019, https://arxiv.org/abs/1903.02891, Algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_darex.compression.feedback import Feedback
from fl_darex.compression.method import Local
from fl_darex.delta import Delta
from fl_darex.positions import ListedMask
from fl_darex.pruning.magnitude import magnitudes
from fl_darex.pruning.scores import keep_largest
from fl_darex.survivors import Survivors

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink


class Stc(Feedback):
    """The ``1-p`` largest entries of change and residual, as their sign times their mean magnitude.

    Algorithm 1, on all pruned tensors as one vector: the authors' experiments compress tensor by
    tensor, which takes a magnitude for each. Positions are Rice-coded gaps, of which the paper's
    Golomb code is the general form. One bit a number is ``values = "sign"``, whose scale rounds
    the magnitude up by less than 1 %; feedback makes up for it. The other half of Algorithm 2, the
    server's own ternary step and residual, is ``downlink = "server"`` in the same coding: there
    256 numbers in a row share a magnitude.
    """

    name: ClassVar[str] = "stc"

    def check(self, uplink: Uplink) -> None:
        """Refuse more than a bit for a sign."""
        if uplink.values != "sign":
            raise ValueError(
                f"values = {uplink.values!r} takes more than the one bit that method = 'stc' "
                "leaves of a number: set values = 'sign'"
            )

    def mask(self, terms: Terms) -> ListedMask:
        """Return that positions are listed, and of how many entries."""
        return replace(terms.listed, share=terms.uplink.keep)

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return the largest changes, as if all were of their mean magnitude."""
        kept = keep_largest(delta, terms.uplink.keep, "global", magnitudes(delta), terms.listed)
        mean = np.abs(kept.numbers).mean(dtype=np.float64) if kept.count else 0.0
        return replace(kept, numbers=np.copysign(kept.numbers.dtype.type(mean), kept.numbers))

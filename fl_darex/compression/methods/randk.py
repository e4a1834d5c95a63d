"""Random-k with error feedback: seeded entries are sent as they are, the others wait.

Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018,
https://arxiv.org/abs/1809.07599, Algorithm 1 with rand_k. Nothing is divided by 1-p: so stretched,
the operator is no contraction and feedback diverges (Def. 2.1 asks for one).
"""

from __future__ import annotations

from typing import ClassVar

from fl_darex.compression.feedback import Feedback
from fl_darex.compression.methods.dare import Dare


class RandK(Feedback, Dare):
    """DARE's seeded mask, without positions in the packet, on change and residual; q is 1.

    The paper draws exactly k entries: ``count = "exact"``. By default each is drawn for itself, as
    in `Dare`.
    """

    name: ClassVar[str] = "randk"

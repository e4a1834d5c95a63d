"""Top-k with error feedback: the largest entries are sent, the others wait.

Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018,
https://arxiv.org/abs/1809.07599, Algorithm 1 with top_k: g = top_k(m + change); m = m + change - g.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from fl_darex.compression.feedback import Feedback
from fl_darex.compression.method import NOTHING, Local, Method, State
from fl_darex.compression.methods.magnitude import SCOPE, Magnitude
from fl_darex.delta import Delta
from fl_darex.options import Option

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms


class TopK(Feedback, Magnitude):
    """The ``1-p`` largest entries of change and residual; without feedback it is `Magnitude`.

    The paper compresses gradients one by one and has every worker in every step; here it is the
    change of a round, and a client that is not asked keeps its residual.
    """

    name: ClassVar[str] = "topk"
    options: ClassVar[Mapping[str, Option]] = {
        "scope": SCOPE,
        "feedback": Option(default=True, help="topk: what is not sent is added to the next change"),
    }

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes | None, State]:
        """Return the packet, and what it does not deliver if that is to be fed back."""
        if not terms.uplink.options["feedback"]:
            return Method.compress(self, delta, terms, local)
        return super().compress(delta, terms, local, state)

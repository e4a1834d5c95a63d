"""Error feedback: what a packet does not deliver is added to the client's next change.

Seide et al., "1-Bit Stochastic Gradient Descent", 2014; Stich et al., "Sparsified SGD with memory",
NeurIPS 2018, https://arxiv.org/abs/1809.07599, Algorithm 1, with the change that a round of local
training makes in the gradient's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fl_darex.compression.method import (
    NOTHING,
    Local,
    Method,
    State,
    left_over,
    with_left_over,
)
from fl_darex.delta import Delta

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms


class Feedback(Method):
    """Prunes the sum of the change and of what was left before; q is 1.

    A method derived from it says in `prune` what is sent. The state is what is left: it advances
    only when the reply counts, so that nothing is lost but a lost reply's own change.
    """

    remembers: ClassVar[bool] = True
    feeds_back: ClassVar[bool] = True

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes | None, State]:
        """Return the packet, and all that it does not deliver, rounding included."""
        whole = self.accumulated(delta, terms, state)
        packet = self.encoded(self.prune(as_change(whole, delta), terms, local), terms, local)
        return packet, left_over(whole, packet, delta.layout)

    def accumulated(self, delta: Delta, terms: Terms, state: State | None) -> State:
        """Return what is to be sent: the change, and what was left."""
        return with_left_over(delta, state)


def as_change(whole: State, delta: Delta) -> Delta:
    """Return other numbers as if they were what changed.

    Args:
        whole: The numbers of each pruned and each dense tensor, flattened.
        delta: Whose layout it is, and whose tensors that are not floating point.
    """
    raw = {spec.name: delta.raw(spec.name) for spec in delta.layout.raw}
    return Delta(whole | raw, layout=delta.layout, dtype=delta.dtype)

"""DARE: a random part of the delta, drawn from the seed.

Yu et al., "Language Models are Super Mario", ICML 2024, https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fl_darex.compression.method import Local, Method
from fl_darex.delta import Delta
from fl_darex.pruning import draw
from fl_darex.survivors import Survivors

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms


class Dare(Method):
    """Every entry survives with probability 1-p, whatever its value; q = 1-p is unbiased."""

    name: ClassVar[str] = "dare"
    seeded: ClassVar[bool] = True

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return what the round's seeded mask keeps."""
        return draw(delta, terms.drawn)

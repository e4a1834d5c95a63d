"""Seeded random masks from integers alone: the same on every machine.

DARE drops entries without looking at them, so a mask need not be sent: both ends derive it from
(run seed, round, slot, tensor name). Only integer additions, multiplications, shifts and look-ups
are used: no floating point, no library distribution whose stream may change. NumPy is all it
needs; `fl_darex.masks.on_torch` draws the same masks where a torch tensor lives.

Source: DARE is Yu et al., "Language Models are Super Mario", https://arxiv.org/abs/2311.03099.
"""

from fl_darex.masks.bernoulli import Positions, draw, joined, survivors
from fl_darex.masks.disjoint import (
    disjoint_key,
    disjoint_survivors,
    draw_disjoint,
    fitting,
    places,
)
from fl_darex.masks.exact import draw_exact, exact_survivors
from fl_darex.masks.keys import BLOCK, ONE, SHARED, keep_threshold, mask_key, streams, words

__all__ = [
    "BLOCK",
    "ONE",
    "SHARED",
    "Positions",
    "disjoint_key",
    "disjoint_survivors",
    "draw",
    "draw_disjoint",
    "draw_exact",
    "exact_survivors",
    "fitting",
    "joined",
    "keep_threshold",
    "mask_key",
    "places",
    "streams",
    "survivors",
    "words",
]

"""Where survivors are: drawn from a seed, in few columns, the union of draws, or listed.

A mask says which entries of a layout's pruned tensors survive. It is asked for whole tensors, or
block by block in canonical order (tensor after tensor, by name), which is how a server adds many
clients without holding any delta in full.
"""

from fl_darex.positions.blocks import Blocks, Mask, Positions, joined
from fl_darex.positions.listed import ListedMask
from fl_darex.positions.seeded import Draws, SeededMask, UnionMask
from fl_darex.positions.structured import StructuredMask
from fl_darex.positions.whole import by_tensor, positions_in

__all__ = [
    "Blocks",
    "Draws",
    "ListedMask",
    "Mask",
    "Positions",
    "SeededMask",
    "StructuredMask",
    "UnionMask",
    "by_tensor",
    "joined",
    "positions_in",
]

"""Where survivors are: drawn from a seed, in few columns, the union of draws, or listed.

A mask says which entries of a layout's pruned tensors survive. It is asked for whole tensors, or
block by block in canonical order (tensor after tensor, by name), which is how a server adds many
clients without holding any delta in full.
"""

from fl_darex.masks import Positions, joined
from fl_darex.positions.draws import Draws
from fl_darex.positions.listed import ListedMask
from fl_darex.positions.mask import Blocks, Mask
from fl_darex.positions.seeded import SeededMask
from fl_darex.positions.structured import StructuredMask
from fl_darex.positions.union import UnionMask, united

__all__ = [
    "KINDS",
    "Blocks",
    "Draws",
    "ListedMask",
    "Mask",
    "Positions",
    "SeededMask",
    "StructuredMask",
    "UnionMask",
    "joined",
    "united",
]

KINDS: dict[str, type[Mask]] = {
    kind.kind: kind for kind in (SeededMask, ListedMask, UnionMask, StructuredMask)
}
"""Every kind of mask that a packet can carry."""

"""Which tensors are too small to be pruned.

Of a bias of 10 entries p = .99 leaves one in ten rounds, a hundred times too large; whole, it costs
next to nothing. So the smallest tensors go whole, as long as all of them together are few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fl_darex.masks import ONE

_FEW = 256  # entries: half a kilobyte in fp16, less than Flower's own records around them
_SHARE = 0.05  # of the survivors


def whole_up_to(sizes: Iterable[int], keep: int, ratio: float = 1.0) -> int:
    """Return up to which size tensors had better be sent whole.

    It is the largest size at which all tensors of that size or less have, together, at most 256
    entries or a twentieth of what survives of the whole model in bits, whichever is more.

    Args:
        sizes: Entries of each tensor that could be pruned.
        keep: Fraction kept in units of 2**-32; at 2**32 nothing is dropped, and the size is 0.
        ratio: Bits of a survivor for each bit of an entry that is sent whole, 1 at most.

    Returns:
        The size of the largest tensor to be sent whole; 0: none is.
    """
    counts = Counter(sizes)  # those of one size go together
    survivors = sum(size * count for size, count in counts.items()) * keep / ONE
    most, total, found = max(_FEW, _SHARE * survivors * ratio), 0, 0
    for size, count in sorted(counts.items()) if keep < ONE else ():
        total += size * count
        if total > most:
            break
        found = size
    return found

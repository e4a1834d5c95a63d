"""Structured pruning of deltas: whole input dimensions, and a random part of what is left.

"DARE the Extreme", Sec. C.10 and Table 9: keep a of the input dimensions of each layer and b of the
deltas inside them, so that ``1-p = a * b``. (The paper calls a * b the pruning rate; it is the
rate that is kept.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_darex import masks
from fl_darex.delta import Delta, as_delta
from fl_darex.positions import SeededMask, StructuredMask
from fl_darex.pruning.gather import gather
from fl_darex.survivors import Survivors

COLUMNS = 0.05
"""The paper's a."""


def structured(
    delta: Delta | Mapping[str, Any],
    p: float,
    columns: float = COLUMNS,
    *,
    seed: int,
    round_: int = 0,
    slot: int = 0,
    exact: bool = False,
) -> Survivors:
    """Keep a random part of each tensor's input columns, and of the entries in them.

    Every entry survives with probability 1-p, so q = 1-p makes the result unbiased, as in DARE;
    entries of one column survive or go together more often. Each tensor draws its own columns.
    Tensors with fewer than two axes (biases, norms) have none and are pruned as by `dare`.

    Args:
        delta: A `Delta`, or differences by tensor name.
        p: Fraction dropped of all entries, in [0, 1).
        columns: Fraction of the input dimensions (all axes but the first) that is kept, from 1-p
            to 1; inside them ``(1-p) / columns`` of the entries survive.
        seed: The run's seed.
        round_: The federated round.
        slot: The client's partition; `fl_darex.masks.SHARED` for one that all share.
        exact: Keep an exact number of entries inside the columns, too.

    Raises:
        ValueError: If ``p`` is outside [0, 1), or ``columns`` outside [1-p, 1].
    """
    keep = masks.keep_threshold(p)
    drawn = SeededMask(seed, round_, slot, keep, exact)
    mask = StructuredMask(drawn, columns_kept(keep, columns))
    return draw_structured(as_delta(delta), mask)


def columns_kept(keep: int, columns: float) -> int:
    """Return the keep threshold of columns in units of 2**-32.

    Args:
        keep: Keep threshold of all entries.
        columns: As of `structured`.

    Raises:
        ValueError: If ``columns`` is outside [1-p, 1].
    """
    # A share that is meant to equal 1-p may lie a rounding error below it.
    share = round(columns * masks.ONE) if 0.0 < columns <= 1.0 else 0
    if share < keep - 1:
        raise ValueError(
            f"columns must be in [1-p, 1] = [{keep / masks.ONE:g}, 1], got {columns!r}; "
            "fewer columns do not hold that many survivors"
        )
    return max(share, keep)


def draw_structured(delta: Delta, mask: StructuredMask) -> Survivors:
    """Gather what a structured mask keeps; q is its keep rate."""
    return gather(delta, mask, mask.chance / masks.ONE)

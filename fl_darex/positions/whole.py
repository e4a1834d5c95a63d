"""All positions of a layout's tensors, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fl_darex.delta import Layout
from fl_darex.positions.blocks import Blocks, Mask, Positions, joined
from fl_darex.positions.listed import ListedMask


def positions_in(layout: Layout, mask: Mask) -> dict[str, Positions]:
    """Return the surviving flat positions of every pruned tensor."""
    if isinstance(mask, ListedMask):
        return {spec.name: mask.where[spec.name] for spec in layout.pruned}
    blocks = Blocks.of(layout)
    parts = mask.in_blocks(blocks, blocks.first)
    ends = np.searchsorted(blocks.tensor, np.arange(len(blocks.names)), "right").tolist()
    starts = [0, *ends][:-1]
    return {
        name: joined(parts[start:end])
        for name, start, end in zip(blocks.names, starts, ends, strict=True)
    }


def by_tensor(layout: Layout, mask: Mask) -> Iterator[tuple[str, Positions]]:
    """Yield each pruned tensor's name and surviving flat positions, one tensor at a time."""
    blocks = Blocks.of(layout)
    for index, name in enumerate(blocks.names):
        start, end = np.searchsorted(blocks.tensor, [index, index + 1]).tolist()
        rows = blocks.rows(start, end)
        yield name, joined(mask.in_blocks(rows, rows.first))

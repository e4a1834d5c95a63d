"""From positions to survivors: the numbers of a delta where a mask keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fl_darex.delta import Delta
from fl_darex.positions import Mask
from fl_darex.survivors import Numbers, Q, Survivors


def gather(delta: Delta, mask: Mask, q: Q, where: Mapping[str, Any] | None = None) -> Survivors:
    """Return the survivors of a delta.

    Args:
        delta: What changed.
        mask: Where the survivors are.
        q: What they are divided by.
        where: The mask's positions by tensor, NumPy arrays or torch tensors, if they are at hand;
            None: they are drawn tensor by tensor and forgotten.
    """
    layout = delta.layout
    drawn = mask.by_tensor(layout) if where is None else where.items()
    taken = {name: delta.take(name, positions) for name, positions in drawn}
    counts = tuple(taken[spec.name].size for spec in layout.pruned)
    return Survivors(
        layout=layout,
        mask=mask,
        numbers=_joined((taken.pop(s.name) for s in layout.pruned), sum(counts), delta.dtype),
        counts=counts,
        dense={spec.name: delta.whole(spec.name) for spec in layout.dense},
        raw={spec.name: delta.raw(spec.name) for spec in layout.raw},
        q=q,
    )


def gather_from(whole: Mapping[str, Numbers], delta: Delta, mask: Mask) -> Survivors:
    """Return survivors of other numbers than a delta's own, such as its sum with a residual.

    Args:
        whole: The numbers of each pruned and each dense tensor, flattened.
        delta: Whose layout it is, and whose tensors that are not floating point.
        mask: Where the survivors are; q is 1.
    """
    layout = delta.layout
    parts = [whole[name][positions] for name, positions in mask.by_tensor(layout)]
    counts = tuple(part.size for part in parts)
    return Survivors(
        layout=layout,
        mask=mask,
        numbers=_joined(iter(parts), sum(counts), delta.dtype),
        counts=counts,
        dense={spec.name: whole[spec.name] for spec in layout.dense},
        raw={spec.name: delta.raw(spec.name) for spec in layout.raw},
        q=1.0,
    )


def _joined(parts: Iterable[Numbers], count: int, kind: np.dtype[Any]) -> Numbers:
    """Return the parts as one array; each is let go as soon as it is copied."""
    joined, start = np.empty(count, dtype=kind), 0
    for part in parts:
        joined[start : start + part.size] = part
        start += part.size
    return joined
